//! Caches on the instance's disk, shared by its jobs.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::Home;
use crate::support::scenario::Scenario;

fn cache(key: &str) -> Value {
    json!({"key": key, "paths": ["vendor/"], "policy": "pull-push", "when": "on_success", "untracked": false,
        "fallback_keys": null})
}

fn run(gitlab: &GitLab, home: &Home, job: JobBuilder) -> Job {
    // The project directory starts empty, so files can come only from the cache.
    home.run(gitlab, job.variable("GIT_STRATEGY", "empty"))
}

/// The archives of all caches on the machine.
fn archives(home: &Home) -> Vec<PathBuf> {
    let found = Command::new("find").arg(home.path("cache")).args(["-name", "cache.zip"]).output().expect("run find");
    String::from_utf8_lossy(&found.stdout).lines().map(PathBuf::from).collect()
}

#[test]
fn restores_caches_by_key_fallback_and_policy() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("user = \"nobody\"").home(&gitlab);
    let fill = job(&["mkdir -p vendor/deep; echo kept >vendor/deep/f; ln -s f vendor/deep/link"])
        .set("cache", json!([cache("deps-$CI_JOB_NAME")]));
    let filled = run(&gitlab, &home, fill);
    assert!(
        filled.log().contains("Creating cache deps-unit") && filled.log().contains("Created cache"),
        "{}",
        filled.log()
    );
    let used = run(&gitlab, &home, job(&["cat vendor/deep/link"]).set("cache", json!([cache("deps-unit")])));
    assert!(used.lines().contains(&"kept".to_owned()), "{}", used.log());
    assert!(used.log().contains("Successfully extracted cache"));
    let mut fallback = cache("another");
    fallback["fallback_keys"] = json!(["none", "deps-unit"]);
    fallback["policy"] = json!("pull");
    let fallen = run(&gitlab, &home, job(&["cat vendor/deep/f"]).set("cache", json!([fallback])));
    assert!(fallen.lines().contains(&"kept".to_owned()), "{}", fallen.log());
    assert!(fallen.log().contains("Not uploading cache another"), "{}", fallen.log());
    let mut push = cache("deps-unit");
    push["policy"] = json!("push");
    let pushed = run(&gitlab, &home, job(&["ls vendor 2>/dev/null || echo empty"]).set("cache", json!([push])));
    assert!(pushed.lines().contains(&"empty".to_owned()), "{}", pushed.log());
}

#[test]
fn a_cache_never_fails_a_job() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let fill = job(&["mkdir vendor; echo x >vendor/f"]).set("cache", json!([cache("k")]));
    run(&gitlab, &home, fill);
    for archive in archives(&home) {
        std::fs::write(archive, "half of an archive").expect("write the file");
    }
    let broken = run(&gitlab, &home, job(&["echo on"]).set("cache", json!([cache("k")])));
    assert_eq!(broken.state, "success", "{}", broken.log());
    assert!(broken.has("WARNING: cache k: cannot extract the archive: not a valid zip archive"), "{}", broken.log());
    let long = "x".repeat(10_000);
    for key in ["../../etc", long.as_str(), "a/../b", "%2e%2e%2fx"] {
        let odd = run(&gitlab, &home, job(&["mkdir vendor; echo x >vendor/f"]).set("cache", json!([cache(key)])));
        assert_eq!(odd.state, "success", "{key:.20}: {}", odd.log());
        let why =
            if key.len() > 255 { "WARNING: cache key of 10000 bytes is too long" } else { "WARNING: cache key \"" };
        assert!(odd.has(why), "{key:.20}: {}", odd.log());
    }
    assert!(!home.path("etc").exists() && !home.path("x").exists());
}

#[test]
fn a_failed_cache_does_not_affect_the_other_caches_of_a_job() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let other = || {
        let mut other = cache("other");
        other["paths"] = json!(["[tools", "tools/*"]);
        other
    };
    let fill = job(&["mkdir vendor tools; echo library >vendor/f; echo compiler >tools/f"]);
    let filled = run(&gitlab, &home, fill.set("cache", json!([cache("broken"), other()])));
    assert!(filled.has("WARNING: [tools: invalid pattern: a [ without its ]"), "{}", filled.log());
    let broken = archives(&home).into_iter().find(|path| path.ends_with("broken/cache.zip")).expect("an archive");
    std::fs::write(broken, "<html>sign in</html>").expect("write the file");
    let script = "cat vendor/f tools/f || true";
    let used = run(&gitlab, &home, job(&[script]).set("cache", json!([cache("broken"), other()])));
    let lines = used.lines();
    assert!(lines.contains(&"compiler".to_owned()) && !lines.contains(&"library".to_owned()), "{lines:#?}");
    assert!(used.has("WARNING: cache broken: cannot extract the archive: "), "{lines:#?}");
}
