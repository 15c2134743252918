use super::*;

#[test]
fn ignores_nulls_and_unknown_keys() {
    let payload = decode(
        br#"{"id": 7, "token": "t", "variables": null, "steps": [{"name": "script", "script": null, "x": 1}],
            "git_info": {"depth": null, "refspecs": null}, "run": null, "features": null, "news": {}}"#,
    )
    .expect("must decode");
    assert_eq!((payload.id, payload.steps.len(), payload.variables.len()), (7.into(), 1, 0));
}

#[test]
fn drops_nulls_in_lists() {
    let payload = decode(
        br#"{"id": 7, "token": "t", "variables": [null, {"key": "A", "value": null}], "hooks": [null],
            "steps": [null, {"name": "script", "script": ["a", null, "b"]}], "cache": [{"paths": [null]}],
            "dependencies": [null, {"artifacts_file": null}], "features": {"failure_reasons": [null, "x"]}}"#,
    )
    .expect("must decode");
    assert_eq!((payload.variables.len(), payload.hooks.len(), payload.dependencies.len()), (1, 0, 1));
    assert_eq!(payload.steps[0].script, ["a", "b"]);
    assert!(payload.cache[0].paths.is_empty());
    assert_eq!(payload.features.failure_reasons, ["x"]);
}

#[test]
fn accepts_numbers_as_text_and_text_as_numbers() {
    let payload = decode(
        br#"{"id": "7", "token": "t", "allow_git_fetch": "true", "runner_info": {"timeout": "60"},
            "git_info": {"depth": 20.0}, "variables": [{"key": "PORT", "value": 8080, "masked": 1, "raw": "false"},
            {"key": "ON", "value": true}], "steps": [{"name": "script", "script": ["echo", 5]}]}"#,
    )
    .expect("must decode");
    assert_eq!(payload.id, 7.into());
    assert_eq!((payload.timeout_seconds(), payload.git_info.depth), (60, 20));
    let variable = &payload.variables[0];
    assert_eq!((variable.value.as_str(), variable.masked, variable.raw), ("8080", true, false));
    assert_eq!(payload.variables[1].value, "true");
    assert!(payload.allow_git_fetch);
    assert_eq!(payload.steps[0].script, ["echo", "5"]);
}

#[test]
fn detects_unsupported_features() {
    let of = |text: &str| decode(format!(r#"{{"id": 7, "token": "t", {text}}}"#).as_bytes()).expect("must decode");
    for nothing in [r#""run": null"#, r#""run": """#, r#""run": "null""#, r#""run": []"#, r#""secrets": null"#] {
        let payload = of(nothing);
        assert!(!payload.run && payload.secrets.is_empty(), "{nothing}");
    }
    assert!(of(r#""run": [{"name": "x"}]"#).run && of(r#""run": "[{}]""#).run);
    let secrets = of(r#""secrets": {"DB": {"file": false, "token": "$T", "vault": {}}, "NONE": null}"#).secrets;
    let providers: Vec<_> =
        secrets.iter().map(|(name, secret)| (&name[..], secret.as_ref().and_then(Secret::provider))).collect();
    assert_eq!(providers, [("DB", Some("vault")), ("NONE", None)]);
}

#[test]
fn accepts_unknown_image_options() {
    let payload = decode(
        br#"{"id": 7, "token": "t", "image": {"name": "alpine", "entrypoint": null, "executor_opts":
            {"docker": {"user": 1000, "platform": null, "gpus": "all"}, "kubernetes": {"user": "x"}, "podman": {}}},
            "services": [null, {"name": "db", "alias": null, "variables": null}], "credentials": null}"#,
    )
    .expect("must decode");
    let options = payload.image.executor_opts;
    assert_eq!((options.docker.user.as_str(), options.docker.platform.as_str()), ("1000", ""));
    assert_eq!((options.docker.unknown, options.unknown), (vec!["gpus".to_owned()], vec!["podman".to_owned()]));
    assert_eq!((payload.services.len(), payload.credentials.len()), (1, 0));
    assert!(decode(br#"{"id": 7, "token": "t", "image": null}"#).expect("must decode").image.name.is_empty());
}

#[test]
fn finds_the_job_to_fail_in_a_broken_payload() {
    for broken in [
        r#"{"id": 7, "token": "glcbt-x", "steps": 5}"#,
        r#"{"id": 7, "token": "glcbt-x", "steps": [{"na"#,
        r#"{"id": "7", "token": "glcbt-x", "variables": {}}"#,
    ] {
        let error = decode(broken.as_bytes()).expect_err("must not decode");
        let job = error.job.expect("the job must be found");
        assert_eq!((job.id.to_string().as_str(), job.token.reveal()), ("7", "glcbt-x"));
        assert!(!error.why.contains("glcbt"));
    }
    assert!(decode(b"<html>").expect_err("must not decode").job.is_none());
}

#[test]
fn never_takes_an_id_for_another() {
    let id = |text: &str| decode(format!(r#"{{"id": {text}, "token": "t"}}"#).as_bytes());
    for (text, number) in [("7", 7), ("\"7\"", 7), ("7.0", 7), ("9223372036854775807", i64::MAX)] {
        assert_eq!(id(text).expect(text).id, number.into());
    }
    for (text, found) in [
        ("9223372036854775808", Some("9223372036854775808")),
        ("99999999999999999999999", Some("99999999999999999999999")),
        ("\"99999999999999999999\"", Some("99999999999999999999")),
        ("\"build-7\"", Some("build-7")),
        ("1e2", Some("100")),
        ("7.5", None),
        ("1e40", None),
        ("-7", None),
        ("0", None),
        ("true", None),
        ("null", None),
        ("[7]", None),
        ("{\"id\": 7}", None),
        ("\"../7\"", None),
        ("\"7?x\"", None),
        ("\"\"", None),
    ] {
        match id(text) {
            Ok(payload) => assert_eq!(Some(payload.id.to_string().as_str()), found, "{text}"),
            Err(error) => assert_eq!(error.job.map(|job| job.id.to_string()).as_deref(), found, "{text}"),
        }
    }
}

proptest::proptest! {
    /// For any bytes, a job is decoded, or the error says whether it can be reported as failed.
    #[test]
    fn a_payload_with_changed_bytes_is_decoded_or_refused(
        changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 0..8),
    ) {
        let text = br#"{"id":4711,"token":"glcbt-abc","job_info":{"id":1,"project_id":9},"git_info":{"depth":20},
            "runner_info":{"timeout":"60"},"variables":[{"key":"A","value":"b","masked":true}],"image":{"name":"x",
            "executor_opts":{"docker":{"user":1}}},"steps":[{"name":"script","script":["a"]}],"inputs":[{"key":"k",
            "value":{"type":"string","content":"c"}}],"secrets":{"S":{"vault":{}}},"cache":[{"key":"k","paths":["p"]}]}"#;
        let mut text = text.to_vec();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let lossy = String::from_utf8_lossy(&text).into_owned();
        if let Err(error) = decode(lossy.as_bytes()) {
            proptest::prop_assert!(!error.why.contains("glcbt"));
        }
    }
}
