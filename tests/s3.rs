//! Caches in S3, with a server that verifies every signature.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::gitlab::{Answer, GitLab, Job, Request};
use crate::support::http::{listen, receive, write_half};
use crate::support::http::{read_request, write_answer};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::Home;
use crate::support::s3::{ACCESS_KEY, S3, SECRET_KEY};
use crate::support::scenario::Scenario;

fn cache(key: &str) -> Value {
    json!([{"key": key, "paths": ["vendor/"], "policy": "pull-push", "when": "on_success", "untracked": false,
        "fallback_keys": null}])
}

fn run(gitlab: &GitLab, home: &Home, environment: &[(&str, &str)], job: JobBuilder) -> Job {
    // The project directory starts empty, so files can come only from the cache.
    let job = home.run_with(gitlab, environment, job.variable("GIT_STRATEGY", "empty"));
    assert_eq!(job.state, "success", "{}", job.log());
    job
}

fn fill(key: &str) -> JobBuilder {
    job(&["mkdir -p vendor; echo kept >vendor/f; touch -d '1 hour ago' vendor/f vendor"]).set("cache", cache(key))
}

fn used(key: &str) -> JobBuilder {
    job(&["cat vendor/f || echo nothing"]).set("cache", cache(key))
}

#[test]
fn machines_share_a_cache_and_do_not_upload_unchanged_content() {
    let (gitlab, s3) = (GitLab::start(), S3::start());
    let configuration = s3.configuration("Path = \"/some/path/\"", &S3::keys());
    let machines = [0, 1].map(|_| Scenario::shell().config("user = \"nobody\"").runner(&configuration).home(&gitlab));
    let key = "deps ü+main/1";
    let filled = run(&gitlab, &machines[0], &[], fill(key));
    assert!(filled.log().contains("Uploading cache.zip to http://127.0.0.1"), "{}", filled.log());
    let name = "some/path/runner/tokenOfTh/project/9/deps ü+main/1";
    assert_eq!(s3.objects(), [name], "the name that gitlab-runner gives it");
    let listed =
        std::process::Command::new("unzip").arg("-Z1").arg(s3.bucket().join(name)).output().expect("run unzip");
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "vendor/\nvendor/f\n");

    let other = run(&gitlab, &machines[1], &[], used(key));
    assert!(other.lines().contains(&"kept".to_owned()), "{}", other.log());
    assert!(other.log().contains("Archive is up to date!"), "{}", other.log());
    assert!(!other.log().contains("Uploading cache.zip"), "{}", other.log());
}

#[test]
fn uploads_with_the_configured_format_and_encryption() {
    let (gitlab, s3) = (GitLab::start(), S3::start());
    let home = Scenario::shell()
        .runner(&s3.configuration("Shared = true", &(S3::keys() + "\nServerSideEncryption = \"S3\"")))
        .home(&gitlab);
    for (format, magic) in [("tarzstd", &[0x28, 0xb5, 0x2f, 0xfd]), ("zipzstd", b"PK\x03\x04")] {
        let with = |job: JobBuilder| job.variable("CACHE_COMPRESSION_FORMAT", format);
        run(&gitlab, &home, &[], with(fill(format)));
        let content = std::fs::read(s3.bucket().join("project/9").join(format)).expect("an object");
        assert_eq!(&content[..4], magic, "{format}");
        // Another machine has only the object in S3.
        std::fs::remove_dir_all(home.path("cache")).expect("remove the directory");
        let other = run(&gitlab, &home, &[], with(used(format)));
        assert!(other.lines().contains(&"kept".to_owned()), "{}", other.log());
    }
}

#[test]
fn a_wrong_secret_key_does_not_fail_the_job() {
    let (gitlab, s3) = (GitLab::start(), S3::start());
    let wrong = format!("AccessKey = \"{ACCESS_KEY}\"\nSecretKey = \"wrong\"");
    let home = Scenario::shell().runner(&s3.configuration("", &wrong)).home(&gitlab);
    let filled = run(&gitlab, &home, &[], fill("k"));
    assert!(filled.log().contains("SignatureDoesNotMatch"), "{}", filled.log());
    assert!(filled.log().contains("Failed to create cache"), "{}", filled.log());
    assert_eq!(s3.objects(), Vec::<String>::new());
    let used = run(&gitlab, &home, &[], used("k"));
    assert!(used.log().contains("using the local copy"), "{}", used.log());
    assert!(used.lines().contains(&"kept".to_owned()), "{}", used.log());
}

/// A service that responds with `answer` and records the requests.
fn service(answer: impl Fn(&Request) -> Answer + Clone + Send + 'static) -> (String, Arc<Mutex<Vec<Request>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let url = listen(None, move |mut connection| {
        while let Some(request) = read_request(&mut connection) {
            let written = write_answer(connection.get_mut(), &answer(&request));
            kept.lock().expect("the thread must not panic").push(request);
            if written.is_err() {
                return;
            }
        }
    });
    (url, seen)
}

/// The metadata service of an instance whose profile provides this key pair.
fn instance(access_key: &'static str, secret_key: &'static str) -> (String, Arc<Mutex<Vec<Request>>>) {
    service(move |request| match (request.method.as_str(), request.path.as_str()) {
        ("PUT", "/latest/api/token") => {
            Answer::new(200).with("X-aws-ec2-metadata-token-ttl-seconds", "300").body("session")
        }
        (_, path) if request.header("X-aws-ec2-metadata-token") != "session" => Answer::new(401).body(path),
        ("GET", "/latest/meta-data/iam/security-credentials/") => Answer::new(200).body("builders"),
        ("GET", "/latest/meta-data/iam/security-credentials/builders") => Answer::json(
            200,
            &json!({"Code": "Success", "AccessKeyId": access_key, "SecretAccessKey": secret_key, "Token": "lent",
                "Expiration": "2099-01-01T00:00:00Z"}),
        ),
        _ => Answer::new(404),
    })
}

#[test]
fn without_configured_keys_the_instance_profile_signs() {
    let (gitlab, s3) = (GitLab::start(), S3::start());
    let home = Scenario::shell().runner(&s3.configuration("", "")).home(&gitlab);
    let (metadata, _) = instance(ACCESS_KEY, SECRET_KEY);
    let environment = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.as_str())];
    let filled = run(&gitlab, &home, &environment, fill("k"));
    assert_eq!(s3.objects().len(), 1, "{}", filled.log());
    // A job gets neither the keys nor access to them.
    assert!(!filled.log().contains(SECRET_KEY));
}

#[test]
fn a_configured_role_signs() {
    let (gitlab, s3) = (GitLab::start(), S3::start());
    let home = Scenario::shell()
        .runner(&s3.configuration("", "RoleARN = \"arn:aws:iam::123456789012:role/caches\""))
        .home(&gitlab);
    let (metadata, _) = instance("AKIDOFTHEINSTANCE", "of the instance");
    let (sts, asked) = service(|_| {
        Answer::new(200).with("Content-Type", "text/xml").body(format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
             <AccessKeyId>{ACCESS_KEY}</AccessKeyId><SecretAccessKey>{SECRET_KEY}</SecretAccessKey>\
             <SessionToken>of the role</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
             </Credentials></AssumeRoleResult></AssumeRoleResponse>"
        ))
    });
    let environment =
        [("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.as_str()), ("AWS_ENDPOINT_URL_STS", sts.as_str())];
    let filled = run(&gitlab, &home, &environment, fill("k"));
    assert_eq!(s3.objects().len(), 1, "{}", filled.log());
    let asked = asked.lock().expect("the thread must not panic");
    let body = String::from_utf8_lossy(&asked[0].body).into_owned();
    assert!(body.contains("Action=AssumeRole") && body.contains("role%2Fcaches"), "{body}");
    assert!(body.contains("arn%3Aaws%3As3%3A%3A%3Acaches%2Frunner%2FtokenOfTh%2F%2A"), "no more than it needs: {body}");
    assert!(asked[0].header("Authorization").contains("AKIDOFTHEINSTANCE"));
}

#[test]
fn an_invalid_response_of_the_store_is_reported_and_does_not_fail_the_job() {
    let archive = [b"PK\x03\x04".as_slice(), &[7; 5000]].concat();
    let page = || Answer::new(200).with("Content-Type", "text/html").body("<html>sign in</html>");
    let elsewhere = || Answer::new(302).with("Location", "/caches/again");
    for (half, answer, restoring, saving) in [
        (false, page(), "the store did not return an archive", None),
        (true, Answer::new(200).body(archive), "the archive is incomplete: 2502 bytes are missing", None),
        (false, elsewhere(), "received: 302 Found to ", Some("received: 302 Found to ")),
        (false, Answer::new(418).body("no"), "received: 418 I'm a teapot", Some("received: 418 I'm a teapot")),
    ] {
        let gitlab = GitLab::start();
        let url = listen(None, move |mut connection| {
            while let Some(request) = receive(&mut connection) {
                let written = match (half, request.method.as_str()) {
                    (true, "GET") => write_half(connection.get_mut(), &answer),
                    _ => write_answer(connection.get_mut(), &answer),
                };
                if half || written.is_err() {
                    return;
                }
            }
        });
        let address = url.trim_start_matches("http://");
        let store = format!(
            "[runners.cache]\nType = \"s3\"\n[runners.cache.s3]\nServerAddress = \"{address}\"\nInsecure = true\n\
             BucketName = \"caches\"\n{}\n",
            S3::keys()
        );
        let home = Scenario::shell().runner(&store).home(&gitlab);
        let job = run(&gitlab, &home, &[], fill("deps"));
        assert!(job.has(&format!("WARNING: cache deps: {restoring}")), "{restoring}: {}", job.log());
        assert!(job.has("Failed to extract cache"), "{restoring}: {}", job.log());
        if let Some(saving) = saving {
            assert!(job.has(&format!("WARNING: cache deps: {saving}")), "{saving}: {}", job.log());
            assert!(job.has("Failed to create cache"), "{saving}: {}", job.log());
        }
    }
}
