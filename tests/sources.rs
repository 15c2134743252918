//! Sources from a real git server, in directories that an earlier job prepared.

use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::Home;
use crate::support::scenario::Scenario;

/// An agent with a git server.
pub struct Scene {
    pub gitlab: GitLab,
    pub home: Home,
    pub git: GitServer,
    _root: tempfile::TempDir,
}

impl Scene {
    /// Jobs run on the machine.
    pub fn new(global: &str, runner: &str) -> Self {
        Self::of(|gitlab| Scenario::shell().config(global).runner(runner).home(gitlab))
    }

    /// Jobs run in containers.
    pub fn in_containers(runner: &str, docker: &str) -> Self {
        Self::of(|gitlab| Scenario::containers().runner(runner).docker(docker).home(gitlab))
    }

    fn of(home: impl FnOnce(&GitLab) -> Home) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let gitlab = GitLab::start();
        let home = home(&gitlab);
        let git = GitServer::start(root.path());
        Self { gitlab, home, git, _root: root }
    }

    pub fn run(&self, job: JobBuilder) -> Job {
        self.home.run(&self.gitlab, job)
    }

    /// A job that must succeed.
    pub fn pass(&self, job: JobBuilder) -> Vec<String> {
        let job = self.run(job);
        assert_eq!(job.state, "success", "{}", job.log());
        job.lines()
    }
}

#[test]
fn fetches_a_repository_with_the_jobs_token_and_reuses_it() {
    let scene = Scene::new("user = \"nobody\"", "");
    let (url, sha) = scene.git.repository("team/demo", &[("hello.txt", "one\n")]);
    let lines = scene.pass(job(&["cat hello.txt", "echo left >untracked.txt"]).sources(&url, &sha));
    assert!(lines.contains(&"one".to_owned()), "{lines:#?}");
    assert!(lines.iter().any(|line| line == "Created fresh repository."));
    let second = scene.git.commit("team/demo", &[("hello.txt", "two\n")], "second");
    let lines = scene.pass(job(&["cat hello.txt", "ls"]).sources(&url, &second));
    assert!(lines.contains(&"two".to_owned()) && !lines.contains(&"untracked.txt".to_owned()), "{lines:#?}");
    assert!(!lines.iter().any(|line| line == "Created fresh repository."), "{lines:#?}");
    assert!(!scene.git.authorizations().is_empty());
}

#[test]
fn the_token_is_not_stored_in_the_repository_but_git_can_log_in() {
    let scene = Scene::new("", "");
    let (url, sha) = scene.git.repository("team/demo", &[("a", "b")]);
    let script = [
        "git ls-remote origin HEAD >/dev/null && echo listed",
        "git fetch -q origin main && echo fetched",
        "grep -r glcbt- .git && echo leaked || echo clean",
        "git config --local remote.origin.url",
    ];
    let lines = scene.pass(job(&script).sources(&url, &sha).masked("CI_JOB_TOKEN", "glcbt-of-this-job"));
    for line in ["listed", "fetched", "clean", url.as_str()] {
        assert!(lines.contains(&line.to_owned()), "{line} in {lines:#?}");
    }
    let left = std::process::Command::new("grep")
        .args(["-rl", "glcbt-"])
        .arg(scene.home.path("builds"))
        .output()
        .expect("run the program");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "credentials are removed at the end");
}

#[test]
fn files_planted_by_an_earlier_job_neither_run_nor_break_the_next_job() {
    let scene = Scene::new("user = \"nobody\"", "");
    let attributes = [("f.txt", "x\n"), (".gitattributes", "*.txt filter=evil diff=evil\n")];
    let (url, sha) = scene.git.repository("team/demo", &attributes);
    let mark = scene.home.path("builds/planted");
    let run = format!("touch {}", mark.display());
    let plants = [
        format!("mkdir -p .git/hooks; for h in post-checkout pre-commit reference-transaction post-index-change; do printf '#!/bin/sh\\n{run}\\n' >.git/hooks/$h; chmod +x .git/hooks/$h; done"),
        format!("git config core.fsmonitor '{run}'; git config core.hooksPath /tmp; git config core.sshCommand '{run}'; git config filter.evil.smudge '{run}; cat'; git config filter.evil.clean '{run}; cat'; git config core.alternateRefsCommand '{run}'"),
        format!("printf '[core]\\n\\tfsmonitor = {run}\\n' >planted.conf; git config include.path ../planted.conf"),
        "rm -rf .git; echo 'gitdir: /nowhere' >.git".to_owned(),
        "rm -rf .git; ln -s /nowhere .git".to_owned(),
        "mkdir -p .git/objects/info; echo /nowhere/objects >.git/objects/info/alternates; echo /nowhere >.git/commondir".to_owned(),
        "touch .git/index.lock .git/shallow.lock .git/HEAD.lock .git/config.lock .git/refs/heads/x.lock; echo garbage >.git/index".to_owned(),
        "rm -rf .git/objects; ln -s /tmp .git/objects".to_owned(),
        "find .git/objects -type f | xargs chmod u+w; find .git/objects -type f -name '*.pack' -delete; find .git/objects -type f ! -name mayfly-format -delete".to_owned(),
        "mkdir -p closed/inner; touch closed/inner/f; chmod 000 closed/inner closed; chmod 555 .".to_owned(),
        "perl -e 'for (1..1200) { mkdir \"deep-directory\" and chdir \"deep-directory\" or exit 1 }'".to_owned(),
    ];
    for plant in &plants {
        scene.pass(job(&[plant]).sources(&url, &sha));
        let lines = scene.pass(job(&["cat f.txt", "git status --short | grep -v '^??' || true"]).sources(&url, &sha));
        assert!(lines.contains(&"x".to_owned()), "after `{plant}`: {lines:#?}");
        assert!(!mark.exists(), "`{plant}` ran");
    }
}

#[test]
fn strategies_and_hooks() {
    let scene =
        Scene::new("", "pre_get_sources_script = \"echo before git\"\npost_get_sources_script = \"echo behind git\"");
    let (url, sha) = scene.git.repository("team/demo", &[("a.txt", "b\n")]);
    let lines = scene.pass(
        job(&["ls"])
            .sources(&url, &sha)
            .variable("GIT_STRATEGY", "clone")
            .hook("pre_get_sources_script", &["echo hooked"]),
    );
    let at = |text: &str| lines.iter().position(|line| line == text).unwrap_or_else(|| panic!("{text} in {lines:#?}"));
    assert!(
        at("before git") < at("hooked")
            && at("hooked") < at("Created fresh repository.")
            && at("behind git") < at("a.txt")
    );
    let lines = scene.pass(job(&["ls; echo end"]).sources(&url, &sha).variable("GIT_STRATEGY", "none"));
    assert!(lines.contains(&"a.txt".to_owned()), "none leaves everything as it is");
    let lines = scene.pass(job(&["ls; echo end"]).sources(&url, &sha).variable("GIT_STRATEGY", "empty"));
    assert!(!lines.contains(&"a.txt".to_owned()));
    let lines = scene.pass(job(&["ls; echo end"]).sources(&url, &sha).variable("GIT_CHECKOUT", "false"));
    assert!(lines.iter().any(|line| line == "Skipping Git checkout"));
}

#[test]
fn submodules_are_fetched_with_the_jobs_token() {
    let scene = Scene::new("", "");
    let (library, _) = scene.git.repository("team/library", &[("lib.txt", "from the library\n")]);
    let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
    let sha = scene.git.add_submodule("team/demo", "lib", &library);
    for _ in 0..2 {
        let lines = scene.pass(
            job(&["cat lib/lib.txt", "cd lib && git fetch -q origin && echo fetched"])
                .sources(&url, &sha)
                .variable("GIT_SUBMODULE_STRATEGY", "recursive"),
        );
        assert!(lines.contains(&"from the library".to_owned()) && lines.contains(&"fetched".to_owned()), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("starting with an empty directory")), "{lines:#?}");
    }
    let lines = scene.pass(job(&["ls -A lib | wc -l; git status --short && echo clean"]).sources(&url, &sha));
    assert!(lines.contains(&"0".to_owned()) && lines.contains(&"clean".to_owned()), "{lines:#?}");
}

#[test]
fn a_missing_commit_fails_the_job_after_all_attempts() {
    let scene = Scene::new("", "");
    let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
    let job = scene.run(job(&["echo never"]).sources(&url, &"ab".repeat(20)).variable("GET_SOURCES_ATTEMPTS", "2"));
    assert_eq!(job.failure_reason.as_deref(), Some("script_failure"));
    assert!(job.exit_code.is_some_and(|code| code != 0));
    assert!(job.log().contains("Retrying...") && !job.lines().contains(&"never".to_owned()));
}

#[test]
fn lfs_files_are_downloaded_unless_disabled() {
    let scene = Scene::new("user = \"nobody\"", "");
    let (url, _) =
        scene.git.repository("team/demo", &[(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")]);
    let pointer = scene.git.large_file("team/demo", b"the large file itself\n");
    let sha = scene.git.commit("team/demo", &[("data.bin", &pointer)], "with a large file");
    for _ in 0..2 {
        let lines = scene.pass(job(&["cat data.bin"]).sources(&url, &sha));
        assert!(lines.contains(&"the large file itself".to_owned()), "{lines:#?}");
    }
    let skipped = job(&["cat data.bin"]).sources(&url, &sha).variable("GIT_LFS_SKIP_SMUDGE", "1");
    let lines = scene.pass(skipped.variable("GIT_STRATEGY", "clone"));
    assert!(lines.iter().any(|line| line.starts_with("oid sha256:")), "{lines:#?}");
}

#[test]
fn git_logs_in_everywhere_without_tokens_on_disk() {
    let scene = Scene::new("user = \"nobody\"", "[runners.feature_flags]\nFF_GIT_URLS_WITHOUT_TOKENS = true");
    let (url, sha) = scene.git.repository("team/demo", &[("a", "b\n")]);
    let clone = format!("git clone -q {url} ../other && echo cloned; rm -rf ../other");
    let script = ["cat a", &clone, "grep -rq glcbt- .git ../*.tmp && echo leaked || echo clean"];
    for strategy in ["fetch", "none", "empty"] {
        let script = if strategy == "fetch" { &script[..] } else { &script[1..] };
        let mut asked = job(script).sources(&url, &sha).variable("GIT_STRATEGY", strategy);
        asked = asked.masked("CI_JOB_TOKEN", "glcbt-of-this-job");
        let lines = scene.pass(asked);
        for line in ["cloned", "clean"] {
            assert!(lines.contains(&line.to_owned()), "{line} with {strategy} in {lines:#?}");
        }
    }
}

#[test]
fn a_job_chooses_its_directory_where_the_runner_allows_it() {
    let scene = Scene::new("", "[runners.custom_build_dir]\nenabled = true");
    let (url, sha) = scene.git.repository("team/demo", &[("a", "b\n")]);
    let chosen = job(&["pwd", "cat a", "echo \"is $CI_PROJECT_DIR\""]).sources(&url, &sha);
    let lines = scene.pass(chosen.variable("GIT_CLONE_PATH", "$CI_BUILDS_DIR/go/src/demo"));
    let place = scene.home.path("builds").join("go/src/demo").display().to_string();
    for line in [place.clone(), "b".to_owned(), format!("is {place}")] {
        assert!(lines.iter().any(|other| other.ends_with(&line)), "{line} in {lines:#?}");
    }
}

#[test]
fn directory_names_are_never_interpreted() {
    let scene = Scene::new("user = \"nobody\"", "[runners.custom_build_dir]\nenabled = true");
    let (library, _) = scene.git.repository("team/library", &[("lib.txt", "from the library\n")]);
    let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
    let sha = scene.git.add_submodule("team/demo", "it's a lib", &library);
    for name in ["it's", "a b", "-n", "[x]*?", "\u{fc}ber", "$HOME", "a\"b", "back\\slash", "x;touch y;"] {
        let asked = job(&["cat \"it's a lib/lib.txt\"", "git fetch -q origin && echo fetched"]).sources(&url, &sha);
        let place = format!("$CI_BUILDS_DIR/{}", name.replace('$', "$$"));
        let asked = asked.variable("GIT_SUBMODULE_STRATEGY", "normal").variable("GIT_CLONE_PATH", &place);
        let lines = scene.pass(asked);
        for line in ["from the library", "fetched"] {
            assert!(lines.contains(&line.to_owned()), "{line} in {name}: {lines:#?}");
        }
        let checkout = scene.home.path("builds").join(name).join("a");
        assert!(checkout.exists(), "{}", checkout.display());
    }
}

#[test]
fn follows_a_redirect_on_the_same_server() {
    let scene = Scene::new("", "");
    scene.git.repository("team/library", &[("lib.txt", "from the library\n")]);
    let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
    let sha = scene.git.add_submodule("team/demo", "lib", &format!("{}/team/library", scene.git.url));
    let lines = scene.pass(job(&["cat lib/lib.txt"]).sources(&url, &sha).variable("GIT_SUBMODULE_STRATEGY", "normal"));
    assert!(lines.contains(&"from the library".to_owned()), "{lines:#?}");
}

#[test]
fn only_allowed_git_options_are_used() {
    let scene = Scene::new("", "");
    let (url, sha) = scene.git.repository("team/demo", &[("a", "b")]);
    scene.pass(job(&["touch kept"]).sources(&url, &sha));
    let asked = job(&["ls kept"]).sources(&url, &sha).variable("GIT_CLEAN_FLAGS", "-ffdx -e kept");
    scene.pass(asked.variable("GIT_FETCH_EXTRA_FLAGS", "--prune --tags --verbose -j 4"));
    for (variable, flags, named) in [
        ("GIT_FETCH_EXTRA_FLAGS", "--prune --upload-pack=evil", "--upload-pack=evil"),
        ("GIT_FETCH_EXTRA_FLAGS", "--recurse-submodules=yes", "--recurse-submodules=yes"),
        ("GIT_CLEAN_FLAGS", "-ffdx --interactive", "--interactive"),
        ("GIT_SUBMODULE_UPDATE_FLAGS", "-j 20000000", "-j"),
    ] {
        let asked = job(&["echo never"]).sources(&url, &sha).variable("GIT_SUBMODULE_STRATEGY", "normal");
        let job = scene.run(asked.variable(variable, flags));
        assert_eq!(job.failure_reason.as_deref(), Some("runner_configuration_error"), "{}", job.log());
        assert!(job.has(&format!("{variable}: `{named}`")), "{}", job.log());
    }
}

#[test]
fn reuses_a_checkout_without_rereading_its_files() {
    let scene = Scene::new("user = \"nobody\"", "");
    let (url, sha) = scene.git.repository("team/demo", &[("a.txt", "one\n"), ("b.txt", "two\n")]);
    let inode = "stat -c '%n %i %Z' a.txt b.txt";
    let first = scene.pass(job(&[inode, "stat -c '%a %U' $CI_BUILDS_DIR"]).sources(&url, &sha));
    assert!(first.contains(&"700 nobody".to_owned()), "{first:#?}");
    let second = scene.git.commit("team/demo", &[("b.txt", "three\n")], "second");
    let lines = scene.pass(job(&[inode, "cat b.txt"]).sources(&url, &second));
    let kept = first.iter().find(|line| line.starts_with("a.txt ")).expect("a line");
    assert!(lines.contains(kept) && lines.contains(&"three".to_owned()), "{first:#?} {lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("starting with an empty directory")), "{lines:#?}");
}

#[test]
fn a_job_that_replaces_its_directories_by_links_gains_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("set the permissions");
    let (theirs, victim) = (directory.path().join("theirs"), directory.path().join("victim"));
    for made in [&theirs, &victim] {
        std::fs::create_dir(made).expect("create the directory");
    }
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).expect("change the owner");
    let keys = format!("builds_dir = \"{0}/builds\"\ncache_dir = \"{0}/cache\"", theirs.display());
    let scene = Scene::new("user = \"nobody\"", &keys);
    let swap = |name: &str| {
        format!("mv {0}/{name} {0}/{name}.old; ln -s {1}/{name} {0}/{name}", theirs.display(), victim.display())
    };
    scene.pass(job(&[&swap("cache"), &swap("builds")]));
    let job = scene.run(job(&["true"]));
    assert_eq!(job.state, "failed", "{}", job.log());
    assert_eq!(std::fs::read_dir(&victim).expect("list the directory").count(), 0, "{}", job.log());
}

#[test]
fn each_slot_has_its_own_user_and_all_share_caches() {
    use crate::support::job::until_there;
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("open a file");
    let add = |name: &str, lines: &str| {
        let text = std::fs::read_to_string(format!("/etc/{name}")).expect("read the file");
        std::fs::write(path(name), format!("{text}\n{lines}\n")).expect("write a file");
    };
    add("passwd", "ci-0:x:65100:65100::/nonexistent:/bin/sh\nci-1:x:65101:65100::/nonexistent:/bin/sh");
    add("group", "ci:x:65100:");
    let mut scene = Scene::new("user = \"ci-%n\"\nconcurrent = 2", "");
    let program = scene.home.own_program();
    let real = program.with_file_name("mayfly.real");
    std::fs::rename(&program, &real).expect("rename the file");
    // Users that exist only for this agent.
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind {} /etc/passwd && mount --bind {} /etc/group && exec {} \"$@\"' sh \"$@\"\n",
        path("passwd"),
        path("group"),
        real.display()
    );
    crate::support::write_program(&program, &script);
    let cached = |lines: &[&str]| {
        let cache = serde_json::json!([{"key": "k", "paths": ["kept"], "policy": "pull-push", "when": "always"}]);
        job(lines).variable("GIT_STRATEGY", "none").set("cache", cache)
    };
    let first = scene.gitlab.queue(job(&["echo \"user $(id -un)\"", &until_there(path("go"))]).build());
    let mut agent = scene.home.start(&[]);
    scene.gitlab.wait_for_log(first, "user ci-0");
    let look = format!("ls {}/ci-0 || echo refused", scene.home.path("builds").display());
    let second = cached(&["echo \"user $(id -un)\"", &look, "mkdir -p kept; echo content >kept/file"]);
    let second = scene.gitlab.finished(scene.gitlab.queue(second.build()));
    let lines = second.lines();
    assert!(lines.contains(&"user ci-1".to_owned()) && lines.contains(&"refused".to_owned()), "{lines:#?}");
    std::fs::write(path("go"), "").expect("write a file");
    assert_eq!(scene.gitlab.finished(first).state, "success");
    // GitLab has a job's result before the agent releases the slot. A new agent begins with slot 0.
    agent.drain();
    let _next = scene.home.start(&[]);
    let third = cached(&["echo \"user $(id -un)\"", "cat kept/file"]);
    let lines = scene.gitlab.finished(scene.gitlab.queue(third.build())).lines();
    assert!(lines.contains(&"user ci-0".to_owned()) && lines.contains(&"content".to_owned()), "{lines:#?}");
}
