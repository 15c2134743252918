//! Git settings that scripts before the sources make, and large files in containers.

use std::process::Command;

use crate::sources::Scene;
use crate::support::docker::{docker, write_busybox};
use crate::support::job::{JobBuilder, job};

const ATTRIBUTES: (&str, &str) = (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");

#[test]
fn large_files_come_into_containers() {
    let scene = Scene::in_containers("", "");
    let (url, _) = scene.git.repository("team/demo", &[ATTRIBUTES]);
    let pointer = scene.git.large_file("team/demo", b"the large file itself\n");
    let sha = scene.git.commit("team/demo", &[("data.bin", &pointer)], "with a large file");
    for _ in 0..2 {
        let lines = scene.pass(job(&["cat data.bin"]).sources(&url, &sha));
        assert!(lines.contains(&"the large file itself".to_owned()), "{lines:#?}");
    }
}

/// An image with the machine's git.
fn image_with_git() -> String {
    let root = tempfile::tempdir().expect("a directory");
    write_busybox(root.path());
    let libraries = Command::new("ldd").arg("/usr/bin/git").output().expect("run ldd");
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.chain(["/usr/bin/git"]) {
        let place = root.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().expect("a parent")).expect("create the directory");
        std::fs::copy(path, place).expect("copy the file");
    }
    docker().image_of(root.path(), &["CMD [\"sh\"]", "ENV HOME=/tmp", "ENV PATH=/usr/bin:/bin"])
}

#[test]
fn a_script_before_the_sources_chooses_the_server_of_large_files() {
    let image = image_with_git();
    for scene in [Scene::new("user = \"nobody\"", ""), Scene::in_containers("", &format!("image = \"{image}\"\n"))] {
        let (url, _) = scene.git.repository("team/demo", &[ATTRIBUTES]);
        let pointer = scene.git.large_file("team/store", b"from the other store\n");
        let sha = scene.git.commit("team/demo", &[("data.bin", &pointer)], "with a large file");
        let set = |key: &str, value: &str| {
            format!("git config -f $RUNNER_TEMP_PROJECT_DIR/git-template/config {key} '{value}'")
        };
        let make = "mkdir -p $RUNNER_TEMP_PROJECT_DIR/git-template".to_owned();
        let store = set("lfs.url", &format!("{}/team/store.git/info/lfs", scene.git.url));
        let evil = set("core.fsmonitor", "touch /tmp/mayfly-evil");
        let run = |hook: &[String], script: &[&str]| {
            let hook: Vec<&str> = hook.iter().map(String::as_str).collect();
            scene.run(job(script).sources(&url, &sha).hook("pre_get_sources_script", &hook))
        };
        let found = run(&[make.clone(), store, evil], &["cat data.bin", "git config lfs.url && echo set"]);
        assert_eq!(found.state, "success", "{}", found.log());
        let lines = found.lines();
        for part in ["from the other store", "set"] {
            assert!(lines.contains(&part.to_owned()), "{part} in {lines:#?}");
        }
        assert!(found.has("WARNING: git setting `core.fsmonitor` is ignored: it names a program"), "{lines:#?}");
        assert!(!found.has("git config -z"), "{lines:#?}");
        let ends = ["exit 0".to_owned(), "echo not reached".to_owned()];
        let hook: Vec<String> = [make, set("http.extraHeader", "X-Test: of-script")].into_iter().chain(ends).collect();
        assert_eq!(run(&hook, &["true"]).state, "success");
        assert!(scene.git.marks().contains(&"of-script".to_owned()));
        // Settings of an earlier job have no effect.
        let plant = "mkdir -p $RUNNER_TEMP_PROJECT_DIR/git-template; \
                     git config -f $RUNNER_TEMP_PROJECT_DIR/git-template/config lfs.url http://127.0.0.1:1/";
        let asked = job(&[plant]).sources(&url, &sha).variable("GIT_LFS_SKIP_SMUDGE", "1");
        scene.pass(asked);
        let asked = job(&["git config lfs.url || echo unset"]).sources(&url, &sha).variable("GIT_LFS_SKIP_SMUDGE", "1");
        let lines = scene.pass(asked.hook("pre_get_sources_script", &["true"]));
        assert!(lines.contains(&"unset".to_owned()), "{lines:#?}");
    }
}

#[test]
fn settings_for_the_repository_count_for_its_submodules_except_its_server_of_large_files() {
    let image = image_with_git();
    for scene in [Scene::new("user = \"nobody\"", ""), Scene::in_containers("", &format!("image = \"{image}\"\n"))] {
        let (library, _) = scene.git.repository("team/library", &[ATTRIBUTES, ("lib.txt", "from the library\n")]);
        let pointer = scene.git.large_file("team/library", b"from the store of the library\n");
        scene.git.commit("team/library", &[("lib.bin", &pointer)], "with a large file");
        let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
        let sha = scene.git.add_submodule("team/demo", "lib", "http://moved.test/team/library.git");
        let library = library.replace("://", "://gitlab-ci-token:glcbt-x@");
        let set = |setting: &str| format!("git config -f $RUNNER_TEMP_PROJECT_DIR/git-template/config {setting}");
        let hook = [
            "mkdir -p $RUNNER_TEMP_PROJECT_DIR/git-template".to_owned(),
            set(&format!("url.{library}.insteadOf http://moved.test/team/library.git")),
            set("lfs.url http://127.0.0.1:1/"),
        ];
        let hook: Vec<&str> = hook.iter().map(String::as_str).collect();
        for strategy in ["fetch", "clone"] {
            let asked = job(&["cat lib/lib.txt lib/lib.bin"]).sources(&url, &sha).variable("GIT_STRATEGY", strategy);
            let asked = asked.variable("GIT_SUBMODULE_STRATEGY", "normal").hook("pre_get_sources_script", &hook);
            let lines = scene.pass(asked);
            for part in ["from the library", "from the store of the library"] {
                assert!(lines.contains(&part.to_owned()), "{part} in {lines:#?}");
            }
        }
    }
}

#[test]
fn settings_for_all_repositories_reach_git_beside_the_container() {
    let scene = Scene::in_containers("", &format!("image = \"{}\"\n", image_with_git()));
    let (library, _) = scene.git.repository("team/library", &[("lib.txt", "from the library\n")]);
    let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
    let sha = scene.git.add_submodule("team/demo", "lib", "http://moved.test/team/library.git");
    let with = |settings: &[String]| -> JobBuilder {
        let lines: Vec<String> = settings.iter().map(|setting| format!("git config --global {setting}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let asked = job(&["cat lib/lib.txt", "ls -a $RUNNER_TEMP_PROJECT_DIR"]).sources(&url, &sha);
        asked.variable("GIT_SUBMODULE_STRATEGY", "normal").hook("pre_get_sources_script", &lines)
    };
    let library = library.replace("://", "://gitlab-ci-token:glcbt-x@");
    let moved = format!("url.{library}.insteadOf http://moved.test/team/library.git");
    let settings = [
        moved,
        "http.extraHeader 'X-Test: global'".to_owned(),
        "core.sshCommand evil".to_owned(),
        "user.name Dev".to_owned(),
    ];
    let job = scene.run(with(&settings));
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.has("from the library") && scene.git.marks().contains(&"global".to_owned()), "{}", job.log());
    assert!(job.has("git setting `core.sshcommand` is ignored") && !job.has("user.name` is"), "{}", job.log());
    assert!(!job.has("mayfly.user.settings"), "{}", job.log());
    // The relay tries to use this proxy, which it cannot reach.
    let job = scene.run(with(&["http.proxy http://127.0.0.1:1".to_owned()]));
    assert_eq!(job.state, "failed", "{}", job.log());
    let through_url = with(&["http.https://h/.proxy http://127.0.0.1:1".to_owned(), settings[0].clone()]);
    let job = scene.run(through_url);
    assert!(job.state == "success" && job.has("set `http.proxy` instead"), "{}", job.log());
}

#[test]
fn without_tokens_settings_for_all_repositories_go_into_the_file_of_the_job() {
    let scene = Scene::new("user = \"nobody\"", "[runners.feature_flags]\nFF_GIT_URLS_WITHOUT_TOKENS = true");
    let (url, sha) = scene.git.repository("team/demo", &[("a", "b\n")]);
    let hook = ["git config --global http.extraHeader 'X-Test: of-file'", "git config --global core.sshCommand evil"];
    let script = ["git config http.extraHeader && echo set", "git config core.sshCommand || echo unset"];
    let job = scene.run(
        job(&script)
            .sources(&url, &sha)
            .masked("CI_JOB_TOKEN", "glcbt-of-this-job")
            .hook("pre_get_sources_script", &hook),
    );
    assert_eq!(job.state, "success", "{}", job.log());
    for part in ["set", "unset", "WARNING: git setting `core.sshcommand` is ignored: it names a program"] {
        assert!(job.has(part), "{part} in {}", job.log());
    }
    assert!(scene.git.marks().contains(&"of-file".to_owned()));
}
