//! Checkouts from one job to the next: when the agent keeps them, and when it fetches them again.

use crate::sources::Scene;
use crate::support::git::Failure;
use crate::support::job::{JobBuilder, job};

/// One scene with jobs on the machine, which run as an ordinary user, and one with jobs in containers.
fn scenes() -> [Scene; 2] {
    [Scene::new("user = \"nobody\"", ""), Scene::in_containers("", "")]
}

/// Asserts that the agent fetched nothing again.
fn assert_reused(lines: &[String]) {
    for part in ["starting with an empty directory", "fetching it again", "Created fresh repository"] {
        assert!(!lines.iter().any(|line| line.contains(part)), "{part} in {lines:#?}");
    }
}

/// The output line with this beginning.
fn line<'a>(lines: &'a [String], start: &str) -> &'a str {
    lines.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} in {lines:#?}"))
}

#[test]
fn a_server_that_fails_costs_no_checkout() {
    for scene in scenes() {
        let (url, sha) = scene.git.repository("team/demo", &[("a.txt", "one\n"), ("b.txt", "two\n")]);
        let keep = |job: JobBuilder| job.variable("GIT_CLEAN_FLAGS", "-ffdx -e kept");
        let look = ["stat -c '%n %i' a.txt", "cat kept/file"];
        let first = scene.pass(keep(job(&["mkdir kept; echo built >kept/file", look[0]]).sources(&url, &sha)));
        for (part, failure) in [
            ("GET /team/demo.git", Failure::Status(503)),
            ("POST /team/demo.git", Failure::Status(503)),
            ("GET /team/demo.git", Failure::Reset),
            ("POST /team/demo.git", Failure::Reset),
            ("POST /team/demo.git", Failure::Cut),
            ("GET /team/demo.git", Failure::Status(401)),
            ("GET /team/demo.git", Failure::Status(403)),
            ("GET /team/demo.git", Failure::Status(404)),
        ] {
            let sha = scene.git.commit("team/demo", &[("b.txt", &format!("{part} {failure:?}\n"))], "next");
            scene.git.fail(part, failure);
            let job = scene.run(keep(job(&["true"]).sources(&url, &sha)));
            assert_eq!(job.state, "failed", "{part} {failure:?}: {}", job.log());
            assert_reused(&job.lines());
            assert!(!job.has("had left running"), "{part} {failure:?}: {}", job.log());
            scene.git.heal();
        }
        let sha = scene.git.commit("team/demo", &[("b.txt", "three\n")], "last");
        let lines = scene.pass(keep(job(&[look[0], look[1], "cat b.txt"]).sources(&url, &sha)));
        assert_reused(&lines);
        assert_eq!(line(&lines, "a.txt "), line(&first, "a.txt "));
        assert!(lines.contains(&"built".to_owned()) && lines.contains(&"three".to_owned()), "{lines:#?}");
    }
}

#[test]
fn submodules_and_large_files_that_fail_cost_no_checkout() {
    for scene in scenes() {
        let (library, _) = scene.git.repository("team/library", &[("lib.txt", "from the library\n")]);
        let attributes = (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
        let (url, _) = scene.git.repository("team/demo", &[("a.txt", "one\n"), attributes]);
        scene.git.add_submodule("team/demo", "lib", &library);
        let pointer = scene.git.large_file("team/demo", b"the large file itself\n");
        let sha = scene.git.commit("team/demo", &[("data.bin", &pointer)], "with a large file");
        let asked = |lines: &[&str], sha: &str| {
            let asked = job(lines).sources(&url, sha).variable("GIT_SUBMODULE_STRATEGY", "normal");
            asked.variable("GIT_CLEAN_FLAGS", "-ffdx -e kept")
        };
        let look = "stat -c '%n %i' a.txt; cat kept/file lib/kept/file";
        let first = scene.pass(asked(&["mkdir kept lib/kept; echo built | tee kept/file >lib/kept/file", look], &sha));
        let other = scene.git.large_file("team/demo", b"another large file\n");
        let sha = scene.git.commit("team/demo", &[("data.bin", &other)], "next");
        for part in ["/team/demo.git/info/lfs", "/team/library.git"] {
            scene.git.fail(part, Failure::Status(403));
            let failed = scene.run(asked(&["true"], &sha));
            assert_eq!(failed.state, "failed", "{part}: {}", failed.log());
            assert_reused(&failed.lines());
            let find = ["-path", "*/kept/file", "-not", "-path", "*/.git/*"];
            let left =
                std::process::Command::new("find").arg(scene.home.path("")).args(find).output().expect("run find");
            let left = String::from_utf8_lossy(&left.stdout).into_owned();
            assert_eq!(left.lines().count(), 2, "after {part}: {left}");
            let failed = scene.run(asked(&["true"], &sha).variable("FF_ENABLE_JOB_CLEANUP", "true"));
            assert_eq!(failed.state, "failed", "{part}: {}", failed.log());
            scene.git.heal();
        }
        let lines = scene.pass(asked(&[look, "cat data.bin lib/lib.txt"], &sha));
        assert_reused(&lines);
        assert_eq!(line(&lines, "a.txt "), line(&first, "a.txt "));
        for part in ["another large file", "from the library"] {
            assert!(lines.contains(&part.to_owned()), "{part} in {lines:#?}");
        }
        assert_eq!(lines.iter().filter(|line| *line == "built").count(), 2, "{lines:#?}");
    }
}

#[test]
fn a_second_try_keeps_the_files_that_the_first_one_found() {
    let scene = Scene::new("", "");
    let (url, sha) = scene.git.repository("team/demo", &[("a.txt", "one\n")]);
    let keep = |lines: &[&str], sha: &str| job(lines).sources(&url, sha).variable("GIT_CLEAN_FLAGS", "-ffdx -e kept");
    scene.pass(keep(&["echo built >kept"], &sha));
    let sha = scene.git.commit("team/demo", &[("a.txt", "two\n")], "next");
    scene.git.fail("POST /team/demo.git", Failure::Status(503));
    let asked = keep(&["cat a.txt kept"], &sha).variable("GET_SOURCES_ATTEMPTS", "3");
    let id = scene.gitlab.queue(asked.variable("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", "false").build());
    let mut agent = scene.home.start(&["--once"]);
    scene.gitlab.wait_for_log(id, "Retrying...");
    scene.git.heal();
    let job = scene.gitlab.finished(id);
    assert!(agent.wait().success());
    assert_eq!(job.state, "success", "{}", job.log());
    let lines = job.lines();
    assert!(lines.contains(&"two".to_owned()) && lines.contains(&"built".to_owned()), "{lines:#?}");
}

#[test]
fn a_damaged_repository_is_fetched_again_beside_the_files_that_the_job_keeps() {
    for scene in scenes() {
        let (url, _) = scene.git.repository("team/demo", &[("a.txt", "one\n"), ("dir/b.txt", "two\n")]);
        let sha = scene.git.commit("team/demo", &[("a.txt", "three\n")], "next");
        let asked = |lines: &[&str]| job(lines).sources(&url, &sha).variable("GIT_CLEAN_FLAGS", "-ffdx -e kept");
        for damage in [
            "echo garbage >.git/shallow",
            "echo garbage >.git/packed-refs",
            "find .git/objects -type f -name '*.pack' -exec chmod u+w {} + -exec sh -c 'echo garbage >$0' {} ';'",
            "find .git/objects/[0-9a-f]* -type f -exec chmod u+w {} + -exec sh -c ': >$0' {} ';'",
            "mkdir -p .git/refs/remotes/origin; rm -rf .git/refs/remotes/origin/main .git/packed-refs; \
             mkdir -p .git/refs/remotes/origin/main; cat .git/HEAD >.git/refs/remotes/origin/main/x",
        ] {
            scene.pass(asked(&["echo built >kept", damage, "true"]));
            let lines = scene.pass(asked(&["cat a.txt dir/b.txt kept"]));
            assert!(
                !lines.iter().any(|line| line.contains("starting with an empty directory")),
                "{damage}: {lines:#?}"
            );
            for part in ["three", "two", "built"] {
                assert!(lines.contains(&part.to_owned()), "{part} after {damage}: {lines:#?}");
            }
        }
    }
}

#[test]
fn a_commit_that_is_gone_costs_no_checkout() {
    let scene = Scene::new("", "");
    let (url, sha) = scene.git.repository("team/demo", &[("a.txt", "one\n")]);
    let keep = |lines: &[&str], sha: &str| job(lines).sources(&url, sha).variable("GIT_CLEAN_FLAGS", "-ffdx -e kept");
    scene.pass(keep(&["echo built >kept"], &sha));
    let job = scene.run(keep(&["true"], &"ab".repeat(20)));
    assert_eq!(job.state, "failed", "{}", job.log());
    assert!(job.has("was not fetched: it was removed"), "{}", job.log());
    assert_reused(&job.lines());
    assert!(scene.pass(keep(&["cat kept"], &sha)).contains(&"built".to_owned()));
}

#[test]
fn read_only_directories_are_cleaned_or_kept_as_the_job_says() {
    let scene = Scene::new("user = \"nobody\"", "");
    let (url, sha) = scene.git.repository("team/demo", &[("dir/a.txt", "one\n"), ("dir/b.txt", "x\n")]);
    let build = "mkdir -p go/mod/a@v1/b go/mod/a@v1/empty kept/mod; touch go/mod/f go/mod/a@v1/f go/mod/a@v1/b/f kept/mod/f; \
                 chmod -R a-w go/mod kept/mod; mkdir closed; touch closed/f; chmod 000 closed; chmod 555 dir";
    let asked = |lines: &[&str], sha: &str| job(lines).sources(&url, sha).variable("GIT_CLEAN_FLAGS", "-ffdx -e kept/");
    scene.pass(asked(&[build], &sha));
    let sha = scene.git.commit("team/demo", &[("dir/a.txt", "two\n"), ("dir/c.txt", "new\n")], "next");
    let lines = scene.pass(asked(&["ls; cat dir/a.txt dir/c.txt; stat -c 'mode %a' kept/mod"], &sha));
    for part in ["two", "new", "kept", "mode 555"] {
        assert!(lines.contains(&part.to_owned()), "{part} in {lines:#?}");
    }
    for part in ["go", "closed"] {
        assert!(!lines.contains(&part.to_owned()), "{part} in {lines:#?}");
    }
    assert_reused(&lines);
    let warnings: Vec<&String> = lines.iter().filter(|line| line.to_lowercase().contains("warning")).collect();
    assert!(warnings.iter().all(|line| line.contains("read-only directories writable")), "{warnings:#?}");
    // One warning of the checkout, and one of the cleaning.
    assert!((1..=2).contains(&warnings.len()), "{warnings:#?}");
}

#[test]
fn a_cache_is_restored_over_read_only_directories() {
    let scene = Scene::new("user = \"nobody\"", "");
    let cached = |lines: &[&str]| {
        let cache = serde_json::json!([{"key": "k", "paths": ["go"], "policy": "pull-push", "when": "always"}]);
        job(lines).set("cache", cache)
    };
    let build = "mkdir -p go/mod/a@v1/b go/bin; echo one >go/mod/a@v1/b/f; echo two >go/mod/g; ln -s b go/mod/a@v1/link; \
                 chmod -R a-w go/mod";
    scene.pass(cached(&[build]));
    let lines = scene.pass(cached(&["cat go/mod/a@v1/link/f go/mod/g; stat -c '%n %a' go/mod go/mod/a@v1/b"]));
    for part in ["one", "two", "go/mod 555", "go/mod/a@v1/b 555"] {
        assert!(lines.contains(&part.to_owned()), "{part} in {lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.to_lowercase().contains("denied")), "{lines:#?}");
}

#[test]
fn locks_and_checkouts_of_other_tools_do_not_stop_git() {
    for scene in scenes() {
        let (library, _) = scene.git.repository("team/library", &[("lib.txt", "from the library\n")]);
        let (url, _) = scene.git.repository("team/demo", &[("a.txt", "one\n"), ("src/t/u.txt", "tracked\n")]);
        let sha = scene.git.add_submodule("team/demo", "lib", &library);
        let asked = |lines: &[&str], sha: &str| {
            let asked = job(lines).sources(&url, sha).variable("GIT_SUBMODULE_STRATEGY", "recursive");
            asked.variable("GIT_CLEAN_FLAGS", "-ffdx -e build/")
        };
        let locks = "mkdir -p .git/objects/info/commit-graphs; touch .git/objects/maintenance.lock \
                     .git/objects/info/commit-graph.lock .git/objects/info/commit-graphs/commit-graph-chain.lock \
                     .git/objects/pack/multi-pack-index.lock .git/index.lock .git/refs/heads/x.lock";
        // Directories that git takes for a repository, in the checkout and in the submodule.
        let other = "for d in build/_deps/x lib/build/y; do mkdir -p $d/.git/objects $d/.git/refs $d/src; \
                     echo 'ref: refs/heads/main' >$d/.git/HEAD; echo built >$d/src/f; done";
        let evil = "mkdir -p build/evil/.git/objects build/evil/.git/refs; mkfifo build/evil/.git/HEAD";
        let planted = "for d in src src/t; do mkdir -p $d/.git/objects $d/.git/refs; echo 'ref: refs/heads/x' >$d/.git/HEAD; done";
        scene.pass(asked(&[locks, other, evil, planted], &sha));
        let sha = scene.git.commit("team/demo", &[("a.txt", "two\n")], "next");
        let look = "cat a.txt build/_deps/x/.git/HEAD lib/build/y/.git/HEAD lib/build/y/src/f lib/lib.txt; \
                    find .git -name '*.lock' | wc -l; ls -A src src/t";
        let lines = scene.pass(asked(&[look], &sha));
        assert_reused(&lines);
        for part in ["two", "built", "from the library", "0"] {
            assert!(lines.contains(&part.to_owned()), "{part} in {lines:#?}");
        }
        assert_eq!(lines.iter().filter(|line| *line == "ref: refs/heads/main").count(), 2, "{lines:#?}");
        assert!(!lines.contains(&".git".to_owned()), "in a directory of the checkout: {lines:#?}");
    }
}
