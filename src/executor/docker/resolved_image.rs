//! Resolves the image of a job or service: name, entrypoint, user, platform, pull policies, within the limits of the
//! configuration.

use super::policy;
use super::reference::ImageReference;
use crate::config::docker::{DockerConfig, Patterns, PullPolicy, Service};
use crate::failure::{FailureReason, JobError};
use crate::payload::{Image, Payload};

/// The exit code of a job whose image has unsupported options, as in gitlab-runner.
const UNSUPPORTED_OPTIONS: i32 = 3;

/// An image with the settings of its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The name as written, with variables replaced.
    pub name: String,
    /// The parsed name.
    pub reference: ImageReference,
    /// `None` for the image's entrypoint; empty for no entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// `None` for the image's command.
    pub command: Option<Vec<String>>,
    /// Empty for the image's user.
    pub user: String,
    /// Empty for the machine's platform.
    pub platform: String,
    /// The pull policies, in the order of attempts.
    pub policies: Vec<PullPolicy>,
    /// Whether the container is privileged.
    pub privileged: bool,
}

/// Replaces variables in a text.
pub type Expand<'a> = &'a dyn Fn(&str) -> String;

/// Fails if the job's images have unknown options. The error names them.
pub fn check_options(payload: &Payload) -> Result<(), JobError> {
    let mut unknown = Vec::new();
    let images = std::iter::once(("image", &payload.image));
    for (kind, image) in images.chain(payload.services.iter().map(|service| ("service", service))) {
        let options = &image.executor_opts;
        let docker = options.docker.unknown.iter().map(|key| format!("docker:{key}"));
        for key in docker.chain(options.unknown.iter().cloned()) {
            unknown.push(format!("{kind} `{}`: {key}", image.name));
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let message = format!("unsupported image options ({}); remove them", unknown.join("; "));
    Err(JobError { exit_code: Some(UNSUPPORTED_OPTIONS), ..JobError::system(message) })
}

/// All valid image names of a job.
pub fn references(docker: &DockerConfig, payload: &Payload, expand: Expand<'_>) -> Vec<ImageReference> {
    let own = if payload.image.name.is_empty() { &docker.image } else { &payload.image.name };
    let configured = docker.services.iter().map(|service| &service.name);
    let names = std::iter::once(own).chain(configured).chain(payload.services.iter().map(|service| &service.name));
    names.filter_map(|name| ImageReference::parse(&expand(name)).ok()).collect()
}

/// The job's image, and warnings about overridden settings. Fails if the image is missing, its name is invalid, or a
/// setting is not allowed.
pub fn resolve_job_image(
    docker: &DockerConfig,
    image: &Image,
    expand: Expand<'_>,
) -> Result<(ResolvedImage, Vec<String>), JobError> {
    let own = expand(&image.name);
    let configured = expand(&docker.image);
    let name = if own.is_empty() { configured.clone() } else { own };
    if name.is_empty() {
        let message = "the image is missing; set `image` for the job, or below [runners.docker]";
        return Err(JobError::system(message));
    }
    if name != configured {
        check_allowed("image", "allowed_images", &name, &docker.allowed_images)?;
    }
    let mut warnings = Vec::new();
    let user = user(docker, &expand(&image.executor_opts.docker.user), &mut warnings)?;
    let resolved = ResolvedImage {
        reference: reference(&name)?,
        entrypoint: entrypoint(docker, &name, &image.entrypoint, &mut warnings),
        command: None,
        user,
        platform: expand(&image.executor_opts.docker.platform),
        policies: policy::policies_for_image(&image.pull_policy, docker)?,
        privileged: is_privileged(docker.privileged, &docker.allowed_privileged_images, &name),
        name,
    };
    Ok((resolved, warnings))
}

/// A service of the job. Fails as [`resolve_job_image`] does.
pub fn resolve_service_image(
    docker: &DockerConfig,
    image: &Image,
    expand: Expand<'_>,
) -> Result<(ResolvedImage, Vec<String>), JobError> {
    let name = expand(&image.name);
    if !docker.services.iter().any(|service| expand(&service.name) == name) {
        check_allowed("service", "allowed_services", &name, &docker.allowed_services)?;
    }
    let mut warnings = Vec::new();
    let resolved = ResolvedImage {
        reference: reference(&name)?,
        entrypoint: entrypoint(docker, &name, &image.entrypoint, &mut warnings),
        command: given(&image.command),
        user: expand(&image.executor_opts.docker.user),
        platform: expand(&image.executor_opts.docker.platform),
        policies: policy::policies_for_image(&image.pull_policy, docker)?,
        privileged: is_service_privileged(docker, &name),
        name,
    };
    Ok((resolved, warnings))
}

/// A service in the configuration, which is always allowed. Fails if its name is invalid.
pub fn resolve_configured_service(
    docker: &DockerConfig,
    service: &Service,
    expand: Expand<'_>,
) -> Result<ResolvedImage, JobError> {
    let name = expand(&service.name);
    Ok(ResolvedImage {
        reference: reference(&name)?,
        entrypoint: given(&service.entrypoint),
        command: given(&service.command),
        user: String::new(),
        platform: String::new(),
        policies: policy::policies_for_image(&[], docker)?,
        privileged: is_service_privileged(docker, &name),
        name,
    })
}

fn reference(name: &str) -> Result<ImageReference, JobError> {
    ImageReference::parse(name).map_err(|error| JobError::new(FailureReason::ImagePullFailure, error.to_string()))
}

fn given(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn check_allowed(kind: &str, key: &str, name: &str, allowed: &Patterns) -> Result<(), JobError> {
    if allowed.is_empty() || allowed.match_name(name) {
        return Ok(());
    }
    Err(JobError::system(format!(
        "the {kind} `{name}` is not allowed on this runner: use one that matches {allowed}, or add it to `{key}` below \
         [runners.docker]"
    )))
}

/// `[""]` means no entrypoint; an empty list means the image's own.
fn entrypoint(docker: &DockerConfig, name: &str, wanted: &[String], warnings: &mut Vec<String>) -> Option<Vec<String>> {
    let wanted = given(wanted)?;
    if docker.disable_entrypoint_overwrite {
        warnings.push(format!(
            "the image's own entrypoint of `{name}` is used, because the runner has disable_entrypoint_overwrite"
        ));
        return None;
    }
    Some(wanted)
}

/// A configured user overrides the user of the job.
fn user(docker: &DockerConfig, wanted: &str, warnings: &mut Vec<String>) -> Result<String, JobError> {
    if !docker.user.is_empty() && !wanted.is_empty() && wanted != docker.user {
        warnings.push(format!(
            "the user `{wanted}` of the job is ignored, because this runner has `user = \"{}\"`",
            docker.user
        ));
    }
    let user = if docker.user.is_empty() { wanted } else { &docker.user };
    let allowed = &docker.allowed_users;
    if !user.is_empty() && !allowed.is_empty() && !allowed.iter().any(|one| one == user) {
        return Err(JobError::system(format!(
            "jobs may not run as user `{user}` on this runner: use one of {}, or add it to `allowed_users` below \
             [runners.docker]",
            allowed.join(", ")
        )));
    }
    Ok(user.to_owned())
}

fn is_privileged(wanted: bool, allowed: &Patterns, name: &str) -> bool {
    wanted && (allowed.is_empty() || allowed.match_name(name))
}

fn is_service_privileged(docker: &DockerConfig, name: &str) -> bool {
    let wanted = docker.services_privileged.unwrap_or(docker.privileged);
    is_privileged(wanted, &docker.allowed_privileged_services, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::image::{DockerOptions, ExecutorOptions};

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn patterns(list: &[&str]) -> Patterns {
        Patterns::parse(texts(list)).expect("the patterns must be valid")
    }

    fn image(name: &str) -> Image {
        Image { name: name.to_owned(), ..Image::default() }
    }

    fn as_user(user: &str) -> Image {
        let docker = DockerOptions { user: user.to_owned(), ..DockerOptions::default() };
        Image { executor_opts: ExecutorOptions { docker, ..ExecutorOptions::default() }, ..image("alpine") }
    }

    fn expand(text: &str) -> String {
        text.replace("$TAG", "1.2")
    }

    fn resolve(docker: &DockerConfig, image: &Image) -> Result<ResolvedImage, JobError> {
        resolve_job_image(docker, image, &expand).map(|(resolved, _)| resolved)
    }

    #[test]
    fn the_configured_image_is_used_if_the_job_has_none() {
        let docker = DockerConfig {
            image: "configured:$TAG".to_owned(),
            allowed_images: patterns(&["r.test/*:*"]),
            ..DockerConfig::default()
        };
        assert_eq!(resolve(&docker, &image("")).expect("the image must be allowed").name, "configured:1.2");
        assert_eq!(resolve(&docker, &image("configured:1.2")).expect("always allowed").name, "configured:1.2");
        assert_eq!(
            resolve(&docker, &image("r.test/a:$TAG")).expect("the image must be allowed").reference.full(),
            "r.test/a:1.2"
        );
        let error = resolve(&docker, &image("alpine")).expect_err("must be refused");
        assert_eq!(error.reason, FailureReason::RunnerSystemFailure);
        assert!(error.message.contains("r.test/*:*") && error.message.contains("allowed_images"), "{error}");
        assert!(
            resolve(&DockerConfig::default(), &image(""))
                .expect_err("an image must be required")
                .message
                .contains("the image is missing")
        );
        let error = resolve(&DockerConfig::default(), &image("Not A Name")).expect_err("must be refused");
        assert_eq!(error.reason, FailureReason::ImagePullFailure);
    }

    #[test]
    fn the_jobs_entrypoint_is_used_unless_disabled() {
        let mut docker = DockerConfig::default();
        let with = |entrypoint: &[&str]| Image { entrypoint: texts(entrypoint), ..image("alpine") };
        let resolved = |docker: &DockerConfig, entrypoint: &[&str]| {
            let (resolved, warnings) =
                resolve_job_image(docker, &with(entrypoint), &expand).expect("the image must be allowed");
            (resolved.entrypoint, warnings.len())
        };
        assert_eq!(resolved(&docker, &[]), (None, 0));
        assert_eq!(resolved(&docker, &["/init", "-x"]), (Some(texts(&["/init", "-x"])), 0));
        assert_eq!(resolved(&docker, &[""]), (Some(texts(&[""])), 0));
        docker.disable_entrypoint_overwrite = true;
        assert_eq!(resolved(&docker, &["/init"]), (None, 1));
        assert_eq!(resolved(&docker, &[]), (None, 0));
    }

    #[test]
    fn the_user_is_configured_or_allowed() {
        let docker = |user: &str, allowed: &[&str]| DockerConfig {
            user: user.to_owned(),
            allowed_users: texts(allowed),
            ..DockerConfig::default()
        };
        let resolved =
            |docker: &DockerConfig, user: &str| resolve(docker, &as_user(user)).map(|resolved| resolved.user);
        for (configured, allowed, wanted, expected) in [
            ("", &[][..], "1000", Some("1000")),
            ("", &[], "", Some("")),
            ("ci", &[], "", Some("ci")),
            ("ci", &[], "root", Some("ci")),
            ("", &["a", "b"], "b", Some("b")),
            ("", &["a", "b"], "", Some("")),
            ("", &["a", "b"], "c", None),
            ("a", &["a", "b"], "", Some("a")),
        ] {
            let outcome = resolved(&docker(configured, allowed), wanted);
            match expected {
                Some(user) => {
                    assert_eq!(outcome.expect("the image must be allowed"), user, "{configured} {allowed:?} {wanted}")
                }
                None => assert!(outcome.expect_err("must be refused").message.contains("allowed_users")),
            }
        }
    }

    #[test]
    fn only_listed_images_are_privileged() {
        let docker = DockerConfig {
            privileged: true,
            allowed_privileged_images: patterns(&["docker:*"]),
            allowed_privileged_services: patterns(&["**/dind:*"]),
            ..DockerConfig::default()
        };
        let privileged = |name| resolve(&docker, &image(name)).expect("the image must be allowed").privileged;
        assert!(privileged("docker:dind") && !privileged("alpine:3"));
        let service = |docker: &DockerConfig, name| {
            resolve_service_image(docker, &image(name), &expand).expect("the image must be allowed").0.privileged
        };
        assert!(service(&docker, "r.test/x/dind:1") && !service(&docker, "postgres:16"));
        assert!(!service(&DockerConfig { services_privileged: Some(false), ..docker.clone() }, "r.test/dind:1"));
        assert!(!service(&DockerConfig::default(), "dind:1"));
    }

    #[test]
    fn services_of_the_configuration_are_always_allowed() {
        let docker = DockerConfig {
            allowed_services: patterns(&["redis:*"]),
            services: vec![Service { name: "db:$TAG".to_owned(), ..Service::default() }],
            ..DockerConfig::default()
        };
        assert!(resolve_service_image(&docker, &image("redis:7"), &expand).is_ok());
        assert!(resolve_service_image(&docker, &image("db:1.2"), &expand).is_ok());
        let error = resolve_service_image(&docker, &image("mysql:8"), &expand).expect_err("must be refused");
        assert!(error.message.contains("allowed_services"), "{error}");
        assert!(resolve_configured_service(&docker, &docker.services[0], &expand).is_ok());
    }

    #[test]
    fn unknown_options_fail_the_job() {
        let mut payload = Payload { image: as_user("x"), ..Payload::default() };
        assert!(check_options(&payload).is_ok());
        payload.services.push(image("db"));
        payload.services[0].executor_opts.docker.unknown.push("gpus".to_owned());
        payload.image.executor_opts.unknown.push("podman".to_owned());
        let error = check_options(&payload).expect_err("must be refused");
        assert_eq!((error.reason, error.exit_code), (FailureReason::RunnerSystemFailure, Some(3)));
        assert!(error.message.contains("image `alpine`: podman; service `db`: docker:gpus"), "{error}");
    }
}
