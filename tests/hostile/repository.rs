//! Attacks through the repository of an earlier job: files that git might run, and links that lead out of it.

use std::path::Path;

use serde_json::json;

use crate::support::git::{GitServer, git};
use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::scenario::Scenario;
use crate::support::write_program;

/// Script lines that plant files which git, the agent or an archiver might run, follow or block on. If one of them runs
/// something on the machine, a file appears in `witness`; files in `outside` must not change.
fn plants(witness: &str, outside: &str) -> Vec<String> {
    let run = |what: &str| format!("touch {witness}/{what}");
    let program = |path: &str, what: &str| format!("printf '#!/bin/sh\\n{}\\n' >{path}; chmod 4755 {path}", run(what));
    let mut lines = vec!["cd .git; mkdir -p hooks info modules/sub objects/info".to_owned()];
    for hook in [
        "post-checkout",
        "post-merge",
        "pre-auto-gc",
        "reference-transaction",
        "fsmonitor-watchman",
        "post-index-change",
    ] {
        lines.push(program(&format!("hooks/{hook}"), hook));
    }
    let config = format!(
        "[core]\\n\\tfsmonitor = {0}\\n\\thooksPath = .git/hooks\\n\\tsshCommand = {0}\\n\\tgitProxy = {0}\\n\\talternateRefsCommand = {0}\\n\
         [filter \"evil\"]\\n\\tsmudge = {0}\\n\\tclean = {0}\\n\\tprocess = {0}\\n\\trequired = true\\n\
         [credential]\\n\\thelper = !{0}\\n[remote \"origin\"]\\n\\tuploadpack = {0}\\n\\tvcs = ext\\n\
         [include]\\n\\tpath = ../evil.config\\n[diff]\\n\\texternal = {0}\\n[uploadpack]\\n\\tpackObjectsHook = {0}\\n",
        run("config")
    );
    lines.extend([
        format!("printf '{config}' >>config; cp config config.worktree; cp config ../evil.config; cp config modules/sub/config"),
        "echo '* filter=evil diff=evil' >info/attributes; cp info/attributes ../.gitattributes".to_owned(),
        "echo /etc >objects/info/alternates; cd ..".to_owned(),
        format!("printf '[submodule \"sub\"]\\n\\tpath = sub\\n\\turl = ./x\\n\\tupdate = !{}\\n' >.gitmodules", run("module")),
        program("program", "program"),
        "rm -f device pipe; mknod device b 8 0; mkfifo pipe; cp /bin/busybox setuid; chmod 4755 setuid".to_owned(),
        format!("rm -rf kept out shadow; mkdir -p kept; ln -s {outside} kept/link; ln -s {outside} out; ln -s /etc/shadow shadow"),
        format!("rm -rf /builds/team/demo.tmp; ln -s {outside} /builds/team/demo.tmp"),
    ]);
    lines
}

#[test]
fn files_left_by_a_job_are_neither_run_nor_followed() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let (witness, outside) = (home.path("witness"), home.path("outside"));
    create_writable(&witness);
    create_writable(&outside);
    std::fs::write(outside.join("precious"), "stays").expect("write a file");
    let (witness_name, outside_name) = (witness.display().to_string(), outside.display().to_string());
    let plants = plants(&witness_name, &outside_name);
    let plants: Vec<&str> = plants.iter().map(String::as_str).collect();
    let replace = format!("mv /builds/team /builds/other; ln -s {outside_name} /builds/team");
    let moved = [&plants[..], &[&replace]].concat();
    let with_files = |lines: &[&str]| {
        job(lines)
            .sources(&url, &sha)
            .set("cache", json!([{"key": "k", "paths": ["kept", "shadow", "device", "pipe"], "policy": "pull-push"}]))
            .set(
                "artifacts",
                json!([{"name": "out", "paths": ["out", "shadow", "pipe", "device", "setuid"],
                "when": "always", "artifact_format": "zip", "artifact_type": "archive"}]),
            )
    };
    let evil = format!("touch {witness_name}/variable");
    let clean = || {
        with_files(&["cat file.txt; ls -la"])
            .variable("GIT_SSH_COMMAND", &evil)
            .variable("GIT_EXTERNAL_DIFF", &evil)
            .variable("GIT_CONFIG_COUNT", "1")
            .variable("GIT_CONFIG_KEY_0", "core.fsmonitor")
            .variable("GIT_CONFIG_VALUE_0", &evil)
            .variable("LD_PRELOAD", "/builds/team/demo/setuid")
            .variable("GIT_TRACE", &format!("{outside_name}/trace"))
            .variable("GIT_SUBMODULE_STRATEGY", "recursive")
    };
    let jobs = [with_files(&plants), clean(), with_files(&moved), clean()];
    let ids = jobs.map(|job| gitlab.queue(job.build()));
    let mut agent = home.start(&["--max-builds", "4"]);
    for (index, id) in ids.into_iter().enumerate() {
        let job = gitlab.finished(id);
        // A job that moves its project directory away fails without artifacts; that is correct.
        if index % 2 == 1 {
            assert_eq!(job.state, "success", "{}", job.log());
            assert!(job.log().contains("from git"), "{}", job.log());
        }
        for artifact in &job.artifacts {
            assert!(!contains(&artifact.content, b"root:") && !contains(&artifact.content, b"precious"), "an artifact");
        }
    }
    assert!(agent.wait().success());
    assert_eq!(names(&witness), Vec::<String>::new(), "a planted program was run");
    assert_eq!(names(&outside), ["precious"], "a file was written outside");
    assert_eq!(std::fs::read_to_string(outside.join("precious")).expect("read the file"), "stays");
}

/// Creates a directory that every user can write.
fn create_writable(directory: &Path) {
    std::fs::create_dir(directory).expect("create the directory");
    std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("set the permissions");
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Ways to redirect a repository to `outside`, which contains another repository in `repo`; each is a separate job.
fn ways_out(outside: &str) -> Vec<(&'static str, String)> {
    let link = |name: &str, to: &str| format!("rm -rf {name}; ln -s {outside}/{to} {name}");
    vec![
        ("a file instead of .git", format!("rm -rf .git; echo 'gitdir: {outside}/repo' >.git")),
        ("a link instead of .git", link(".git", "repo")),
        ("a common directory", format!("echo {outside}/repo >.git/commondir")),
        (
            "a work tree elsewhere",
            format!(
                "printf '[core]\\n\\tworktree = {outside}\\n[extensions]\\n\\tworktreeConfig = true\\n' >>.git/config; \
                 cp .git/config .git/config.worktree"
            ),
        ),
        ("objects", link(".git/objects", "empty")),
        ("a pack", format!("rm -rf .git/objects/pack; ln -s {outside}/empty .git/objects/pack")),
        (
            "one name of objects",
            "for i in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do for j in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do rm \
            -rf .git/objects/$i$j; ln -s OUT/empty .git/objects/$i$j; done; done"
                .replace("OUT", outside),
        ),
        ("references", link(".git/refs", "empty")),
        ("references of the server", link(".git/refs/remotes", "empty")),
        ("large files", link(".git/lfs", "empty")),
        (
            "single files",
            [
                "config",
                "HEAD",
                "index",
                "index.lock",
                "FETCH_HEAD",
                "ORIG_HEAD",
                "shallow",
                "packed-refs",
                "config.lock",
            ]
            .map(|name| link(&format!(".git/{name}"), "precious"))
            .join("; "),
        ),
        (
            "tracked files",
            [link("file.txt", "precious"), link("dir", "empty"), link(".gitmodules", "precious")].join("; "),
        ),
        (
            "a submodule",
            format!(
                "rm -rf sub/.git .git/modules; echo 'gitdir: {outside}/repo' >sub/.git; {}",
                link("sub/x", "precious")
            ),
        ),
        ("a submodule's directory", link("sub", "repo")),
        (
            "what git keeps of a submodule",
            format!("mkdir -p .git/modules; rm -rf .git/modules/sub; ln -s {outside}/repo .git/modules/sub"),
        ),
        ("the files of the job", "rm -rf ../demo.tmp; ln -s OUT/empty ../demo.tmp".replace("OUT", outside)),
    ]
}

/// A repository `team/demo` with the submodule `sub`; returns its URL and commit.
fn repository_with_submodule(server: &GitServer, root: &Path) -> (String, String) {
    server.repository("team/sub", &[("x", "from the submodule\n")]);
    let files = [("file.txt", "from git\n"), ("dir/run.sh", "echo ran\n")];
    let (url, _) = server.repository("team/demo", &files);
    let work = root.join("team/demo.work");
    let submodule = root.join("team/sub.git").display().to_string();
    git(&work, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &submodule, "sub"]);
    let modules = work.join(".gitmodules");
    let text = std::fs::read_to_string(&modules).expect("read the file").replace(&submodule, "../sub.git");
    std::fs::write(modules, text).expect("write a file");
    (url, server.commit("team/demo", &[], "with a submodule"))
}

/// A bare repository whose settings and hooks create `witness` if git runs one of them.
fn create_hostile_repository(repository: &Path, witness: &Path) {
    std::fs::create_dir(repository).expect("create the directory");
    git(repository, &["init", "-q", "--bare", "."]);
    let run = format!("touch {}", witness.display());
    for key in ["core.fsmonitor", "filter.evil.smudge", "core.sshCommand"] {
        git(repository, &["config", key, &run]);
    }
    for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
        write_program(&repository.join("hooks").join(hook), &format!("#!/bin/sh\n{run}\n"));
    }
}

#[test]
fn no_part_of_a_repository_can_redirect_the_agent_outside() {
    let root = tempfile::tempdir().expect("a directory");
    let server = GitServer::start(root.path());
    let (url, sha) = repository_with_submodule(&server, root.path());
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    // Besides the builds directory, file tasks may write only to the caches, here those of another project.
    let outside = home.path("cache/other");
    std::fs::create_dir_all(outside.join("empty")).expect("create the directory");
    std::fs::write(outside.join("precious"), "stays").expect("write a file");
    create_hostile_repository(&outside.join("repo"), &outside.join("witness"));
    let listing = || {
        let list = std::process::Command::new("find").arg(&outside).args(["-printf", "%p %y %m %s %T@ %l\\n"]).output();
        let mut lines: Vec<String> =
            String::from_utf8_lossy(&list.expect("run find").stdout).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = listing();
    let with = |lines: &[&str]| {
        job(lines)
            .sources(&url, &sha)
            .variable("GIT_SUBMODULE_STRATEGY", "recursive")
            .set("cache", json!([{"key": "k", "paths": ["dir", "file.txt"], "untracked": true, "policy": "pull-push", "when": "always"}]))
            .set(
                "artifacts",
                json!([{"name": "out", "paths": ["dir", "file.txt", "sub"], "untracked": true, "when": "always",
                    "artifact_format": "zip", "artifact_type": "archive"}]),
            )
    };
    let mut agent = home.start(&[]);
    for (name, plant) in ways_out(&outside.display().to_string()) {
        let planted = gitlab.finished(gitlab.queue(with(&[&plant]).build()));
        let clean = gitlab.finished(gitlab.queue(with(&["cat file.txt sub/x; sh dir/run.sh"]).build()));
        assert_eq!(clean.state, "success", "{name}: {}\n{}", planted.log(), clean.log());
        assert!(clean.lines().join("\n").contains("from git\nfrom the submodule\nran"), "{name}: {}", clean.log());
        assert_eq!(listing(), before, "{name}: {}\n{}", planted.log(), clean.log());
        for artifact in planted.artifacts.iter().chain(&clean.artifacts) {
            assert!(!contains(&artifact.content, b"stays"), "{name}");
        }
    }
    agent.drain();
}

#[test]
fn a_service_that_changes_files_while_git_runs_gains_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    let gitlab = GitLab::start();
    let home = Scenario::containers().docker("wait_for_services_timeout = -1").home(&gitlab);
    let witness = home.path("witness");
    std::fs::create_dir(&witness).expect("create the directory");
    let run = format!("touch {}/x; touch /builds/team/witness", witness.display());
    let service = format!(
        "while :; do cd /builds/team/demo/.git 2>/dev/null && {{ printf '[core]\\n\\trepositoryformatversion = 0\\n\\tfsmonitor = {run}\\n\
         [filter \"evil\"]\\n\\tsmudge = {run}\\n\\tclean = {run}\\n[remote \"origin\"]\\n\\turl = {url}\\n' >config; mkdir -p info; \
         echo '* filter=evil' >info/attributes; }}; cd /; done"
    );
    let job = || {
        job(&["echo in the script"])
            .sources(&url, &sha)
            .set("services", json!([{"name": "busybox:local", "command": ["sh", "-c", service]}]))
    };
    let ids = [gitlab.queue(job().build()), gitlab.queue(job().build())];
    let mut agent = home.start(&["--max-builds", "2"]);
    // The attack may fail these jobs; that is correct.
    for id in ids {
        gitlab.finished(id);
    }
    assert!(agent.wait().success());
    assert_eq!(
        std::fs::read_dir(&witness).expect("list the directory").count(),
        0,
        "a planted program was run on the machine"
    );
}
