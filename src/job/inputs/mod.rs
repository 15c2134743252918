//! Job inputs: typed values that GitLab sends with a job, interpolated into its scripts, images, artifacts and caches
//! at `${{ … }}`. The expressions are in Moa, GitLab's expression language.

mod expression;
mod operators;
mod template;

use serde_json::{Map, Value, json};

use crate::failure::JobError;
use crate::payload::input::Input;
use crate::payload::{Image, Payload};

/// The values that expressions can refer to.
struct Scope {
    /// The root objects: `job`, which contains `inputs`.
    root: Value,
    /// Inputs that must not appear in any text.
    sensitive: Vec<String>,
}

/// Interpolates the inputs of a job. Fails if an input does not have its type, or an expression cannot be evaluated.
pub fn fill_in(payload: &mut Payload) -> Result<(), JobError> {
    let scope = scope(&payload.inputs).map_err(JobError::configuration)?;
    texts(payload)
        .try_for_each(|text| {
            *text = template::fill_in(text, &scope)?;
            Ok(())
        })
        .map_err(|why: String| JobError::configuration(format!("job inputs: {why}")))
}

fn scope(inputs: &[Input]) -> Result<Scope, String> {
    if let Some(input) = inputs.iter().find(|input| !input.value.has_declared_type()) {
        return Err(format!("the job input `{}` is not of type `{}`", input.key, input.value.kind));
    }
    let (sensitive, open): (Vec<&Input>, Vec<&Input>) = inputs.iter().partition(|input| input.value.sensitive);
    let open: Map<String, Value> =
        crate::ordered::map(open.into_iter().map(|input| (input.key.clone(), input.value.content.clone())));
    let sensitive = sensitive.into_iter().map(|input| input.key.clone()).collect();
    Ok(Scope { root: json!({ "job": { "inputs": open } }), sensitive })
}

/// All texts that can contain expressions: `script`, `after_script`, `artifacts`, `cache`, `image`, `services`.
fn texts(payload: &mut Payload) -> impl Iterator<Item = &mut String> {
    let scripts = payload.steps.iter_mut().flat_map(|step| &mut step.script);
    let images = std::iter::once(&mut payload.image).chain(&mut payload.services).flat_map(image_texts);
    let artifacts = payload.artifacts.iter_mut().flat_map(|artifact| {
        let lists = artifact.paths.iter_mut().chain(&mut artifact.exclude);
        lists.chain(&mut artifact.name).chain([&mut artifact.when, &mut artifact.expire_in])
    });
    let caches = payload.cache.iter_mut().flat_map(|cache| {
        let lists = cache.paths.iter_mut().chain(&mut cache.fallback_keys);
        lists.chain([&mut cache.key, &mut cache.policy, &mut cache.when])
    });
    scripts.chain(images).chain(artifacts).chain(caches)
}

fn image_texts(image: &mut Image) -> impl Iterator<Item = &mut String> {
    let docker = &mut image.executor_opts.docker;
    let single = [&mut image.name, &mut image.alias, &mut docker.platform, &mut docker.user];
    let lists = image.entrypoint.iter_mut().chain(&mut image.command).chain(&mut image.pull_policy);
    single.into_iter().chain(lists).chain(image.variables.iter_mut().map(|variable| &mut variable.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureReason;
    use crate::payload::decode;

    fn filled(inputs: Value, line: &str) -> Result<Payload, JobError> {
        let body = json!({
            "id": 1, "token": "t", "inputs": inputs,
            "steps": [{"name": "script", "script": [line]}, {"name": "after_script", "script": [line]}],
            "image": {"name": line, "entrypoint": [line], "executor_opts": {"docker": {"user": line}}},
            "services": [{"name": "redis", "alias": line, "variables": [{"key": "K", "value": line}]}],
            "artifacts": [{"name": line, "paths": [line], "exclude": [line]}, {"paths": ["p"]}],
            "cache": [{"key": line, "paths": [line], "policy": line}],
            "variables": [{"key": "V", "value": line}],
        });
        let mut payload = decode(body.to_string().as_bytes()).expect("a payload");
        fill_in(&mut payload).map(|()| payload)
    }

    fn level(content: Value, kind: &str) -> Value {
        json!([{"key": "level", "value": {"type": kind, "content": content, "sensitive": false}}])
    }

    fn sensitive_level(content: &str) -> Value {
        json!([{"key": "level", "value": {"type": "string", "content": content, "sensitive": true}}])
    }

    #[test]
    fn interpolates_inputs_everywhere() {
        let line = "--level=${{ job.inputs.level }}";
        let payload = filled(level(json!("fast"), "string"), line).expect("the inputs must be filled in");
        let expected = "--level=fast";
        assert_eq!((&payload.steps[0].script[0][..], &payload.steps[1].script[0][..]), (expected, expected));
        let (image, service) = (&payload.image, &payload.services[0]);
        assert_eq!([&image.name, &image.entrypoint[0], &image.executor_opts.docker.user], [expected; 3]);
        assert_eq!([&service.name[..], &service.alias, &service.variables[0].value], ["redis", expected, expected]);
        let (artifact, cache) = (&payload.artifacts[0], &payload.cache[0]);
        assert_eq!(
            (artifact.name.as_deref(), &artifact.paths[0][..], &artifact.exclude[0][..]),
            (Some(expected), expected, expected)
        );
        assert_eq!([&cache.key, &cache.paths[0], &cache.policy], [expected; 3]);
        assert_eq!((payload.artifacts[1].name.as_deref(), &payload.variables[0].value[..]), (None, line));
    }

    #[test]
    fn checks_the_type_of_inputs() {
        for (kind, good) in [
            ("string", json!("a")),
            ("number", json!(1.5)),
            ("boolean", json!(true)),
            ("array", json!([1])),
            ("struct", json!({"a": 1})),
        ] {
            assert!(filled(level(good.clone(), kind), "x").is_ok(), "{kind}");
            assert!(filled(level(Value::Null, kind), "x").is_err(), "{kind}");
            let other = if kind == "array" { "string" } else { "array" };
            let error = filled(level(good, other), "x").expect_err("another type must be refused");
            assert_eq!(error.reason, FailureReason::RunnerConfigurationError);
        }
        assert!(filled(level(json!("a"), "bytes"), "x").is_err());
    }

    #[test]
    fn refuses_sensitive_inputs_in_text() {
        let line = "login ${{ job.inputs.level }}";
        let error = filled(sensitive_level("s3cr3t"), line).expect_err("an error").to_string();
        assert!(error.contains("`level` is sensitive") && !error.contains("s3cr3t"), "{error}");
        let whole = filled(sensitive_level("s3cr3t"), "${{ job }}").expect("the inputs must be filled in");
        assert_eq!(whole.steps[0].script, [r#"{"inputs":{}}"#]);
        assert!(filled(sensitive_level("s3cr3t"), "nothing of it").is_ok());
    }
}
