//! Submodules: their large files, branches and options, and their files from one job to the next.

use std::path::{Path, PathBuf};

use crate::sources::Scene;
use crate::support::job::job;

/// Jobs on the machine, whose user is not root, and in containers.
fn scenes() -> [Scene; 2] {
    [Scene::new("user = \"nobody\"", ""), Scene::in_containers("", "")]
}

#[test]
fn large_files_of_submodules_come_with_them() {
    for scene in scenes() {
        let attributes = (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
        let (library, _) = scene.git.repository("team/library", &[attributes]);
        let pointer = scene.git.large_file("team/library", b"the large file itself\n");
        scene.git.commit("team/library", &[("data.bin", &pointer)], "with a large file");
        let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
        let sha = scene.git.add_submodule("team/demo", "libs/lib", &library);
        let asked = || job(&["cat libs/lib/data.bin"]).sources(&url, &sha).variable("GIT_SUBMODULE_STRATEGY", "normal");
        for _ in 0..2 {
            let lines = scene.pass(asked());
            assert!(lines.contains(&"the large file itself".to_owned()), "{lines:#?}");
        }
        let lines = scene.pass(asked().variable("GIT_LFS_SKIP_SMUDGE", "true"));
        assert!(lines.iter().any(|line| line.starts_with("oid sha256:")), "{lines:#?}");
    }
}

#[test]
fn a_branch_of_a_submodule_is_fetched_in_a_shallow_clone() {
    for scene in scenes() {
        let (library, _) = scene.git.repository("team/library", &[("lib.txt", "one\n")]);
        scene.git.commit("team/library", &[("lib.txt", "of develop\n")], "for develop");
        scene.git.branch("team/library", "develop");
        scene.git.commit("team/library", &[("lib.txt", "of main\n")], "for main");
        let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
        let sha = scene.git.add_submodule_of("team/demo", "team/library", "lib", &library, "\tbranch = develop\n");
        let asked = || {
            let asked = job(&["cat lib/lib.txt"]).sources(&url, &sha).variable("GIT_SUBMODULE_STRATEGY", "normal");
            asked.variable("GIT_SUBMODULE_UPDATE_FLAGS", "--remote").variable("GIT_SUBMODULE_DEPTH", "1")
        };
        for _ in 0..2 {
            let lines = scene.pass(asked());
            assert!(lines.contains(&"of develop".to_owned()), "{lines:#?}");
        }
    }
}

#[test]
fn files_of_submodules_stay_and_what_they_hold_is_what_the_commit_says() {
    for scene in scenes() {
        let (inner, _) = scene.git.repository("team/inner", &[("inner.txt", "from the inner one\n")]);
        let (library, _) =
            scene.git.repository("team/library", &[("lib.txt", "from the library\n"), ("same.txt", "same\n")]);
        scene.git.add_submodule_of("team/library", "team/inner", "in", &inner, "");
        let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
        let sha = scene.git.add_submodule("team/demo", "lib", &library);
        let asked = |lines: &[&str]| {
            let asked = job(lines).sources(&url, &sha).variable("GIT_CLEAN_FLAGS", "-ffdx -e *.o");
            asked.variable("GIT_SUBMODULE_STRATEGY", "recursive")
        };
        let inode = "stat -c '%n %i %Y' lib/same.txt lib/in/inner.txt";
        let first = scene.pass(asked(&[inode, "echo built | tee lib/x.o >lib/in/y.o; touch lib/junk lib/in/junk"]));
        let mark = "/tmp/mayfly-planted-in-a-submodule";
        let run = format!("touch {mark}; echo planted >$CI_PROJECT_DIR/ran");
        let plants = [
            "echo evil >lib/lib.txt; rm lib/in/inner.txt; mkdir lib/in/inner.txt; touch lib/in/inner.txt/x".to_owned(),
            "rm -rf lib/in/.git lib/.git; for d in lib lib/in; do mkdir -p $d/.git/hooks $d/.git/objects $d/.git/refs; \
             echo 'ref: refs/heads/main' >$d/.git/HEAD; done"
                .to_owned(),
            format!(
                "for d in lib/.git lib/in/.git .git/modules/lib; do rm -rf $d; mkdir -p $d/objects $d/refs $d/hooks; \
                 echo 'ref: refs/heads/main' >$d/HEAD; echo '* filter=evil' >lib/.gitattributes; \
                 mkdir -p $d/hooks; printf '[core]\\n\\tfsmonitor = \"{run}\"\\n[filter \"evil\"]\\n\\tsmudge = \"{run}; cat\"\\n' >$d/config; done"
            ),
            "rm -rf lib/in/.git; mkdir lib/in/.git; mkfifo lib/in/.git/HEAD; rm -f lib/.git; mkfifo lib/.git".to_owned(),
        ];
        for plant in &plants {
            scene.pass(asked(&[plant]));
            let script = ["cat lib/lib.txt lib/in/inner.txt", "ls lib lib/in", "cat lib/x.o lib/in/y.o", inode, "ls"];
            let lines = scene.pass(asked(&script));
            for part in ["from the library", "from the inner one", "built"] {
                assert!(lines.contains(&part.to_owned()), "{part} after {plant}: {lines:#?}");
            }
            for part in ["junk", "evil", "ran"] {
                assert!(!lines.contains(&part.to_owned()), "{part} after {plant}: {lines:#?}");
            }
            assert!(!Path::new(mark).exists(), "{plant}");
            let of_same = |lines: &[String]| lines.iter().find(|line| line.starts_with("lib/same.txt")).cloned();
            assert_eq!(of_same(&lines), of_same(&first), "an unchanged file is written again: {lines:#?}");
        }
        let lines = scene.pass(job(&["ls -A lib | wc -l"]).sources(&url, &sha));
        assert!(lines.contains(&"0".to_owned()), "a job without submodules sees none: {lines:#?}");
        let lines = scene.pass(asked(&["cat lib/x.o lib/in/y.o"]));
        assert_eq!(lines.iter().filter(|line| *line == "built").count(), 2, "{lines:#?}");
    }
}

#[test]
fn submodules_are_cleaned_after_a_job_on_request() {
    for scene in scenes() {
        let (inner, _) = scene.git.repository("team/inner", &[("inner.txt", "from the inner one\n")]);
        let (library, _) = scene.git.repository("team/library", &[("lib.txt", "from the library\n")]);
        scene.git.add_submodule_of("team/library", "team/inner", "in", &inner, "");
        let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
        let sha = scene.git.add_submodule("team/demo", "libs/lib", &library);
        let mark = "/tmp/mayfly-planted-before-the-clean-up";
        let run = format!("touch {mark}");
        let plant = format!(
            "for d in .git/modules/lib .git/modules/lib/modules/lib; do \
             printf '[core]\\n\\tfsmonitor = \"{run}\"\\n\\thooksPath = hooks\\n' >>$d/config; \
             printf '#!/bin/sh\\n{run}\\n' >$d/hooks/post-checkout; chmod +x $d/hooks/post-checkout; done"
        );
        let leave = "for d in libs/lib libs/lib/in; do echo junk >$d/junk; echo built >$d/kept.o; done; \
                     echo evil >libs/lib/lib.txt; rm libs/lib/in/inner.txt; ln -s /etc/passwd libs/lib/link";
        let all = [".gitmodules", "in/inner.txt", "in/kept.o", "kept.o", "lib.txt"];
        // A work tree without a usable repository is emptied.
        for (plant, left) in [
            ("true", &all[..]),
            (plant.as_str(), &all[..]),
            ("rm -rf .git/modules/lib/objects", &[][..]),
            ("rm -rf .git/modules; ln -s /etc .git/modules", &[][..]),
        ] {
            let asked = job(&[plant, leave]).sources(&url, &sha).variable("GIT_SUBMODULE_STRATEGY", "recursive");
            scene.pass(asked.variable("FF_ENABLE_JOB_CLEANUP", "true").variable("GIT_CLEAN_FLAGS", "-ffdx -e *.o"));
            let work_tree = find(&scene.home.path("builds"), "lib").expect("the submodule");
            let mut found = files_below(&work_tree);
            found.sort();
            assert_eq!(found, left, "after {plant}");
            assert!(!Path::new(mark).exists(), "{plant}");
            if !left.is_empty() {
                let text = std::fs::read_to_string(work_tree.join("lib.txt")).expect("a file");
                assert_eq!(text, "from the library\n", "after {plant}");
            }
        }
    }
}

#[test]
fn the_clean_up_keeps_a_file_that_gitmodules_names_as_a_submodule() {
    for scene in scenes() {
        let modules = "[submodule \"x\"]\n\tpath = a\n\turl = ../x.git\n";
        let (url, sha) = scene.git.repository("team/demo", &[(".gitmodules", modules), ("a", "tracked\n")]);
        scene.pass(job(&["echo junk >b"]).sources(&url, &sha).variable("FF_ENABLE_JOB_CLEANUP", "true"));
        let work_tree = find(&scene.home.path("builds"), "demo").expect("the project directory");
        let mut found = files_below(&work_tree);
        found.retain(|path| !path.starts_with(".git/"));
        found.sort();
        assert_eq!(found, [".gitmodules", "a"]);
    }
}

/// A directory of this name below another one, not in `.git`.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    let directories: Vec<PathBuf> = entries.filter(|path| path.is_dir() && !path.ends_with(".git")).collect();
    let found = directories.iter().find(|path| path.ends_with(name)).cloned();
    found.or_else(|| directories.iter().find_map(|path| find(path, name)))
}

/// Everything below a directory except directories, as relative paths.
fn files_below(directory: &Path) -> Vec<String> {
    let output =
        std::process::Command::new("find").arg(directory).args(["!", "-type", "d", "-printf", "%P\n"]).output();
    String::from_utf8_lossy(&output.expect("run find").stdout).lines().map(str::to_owned).collect()
}

#[test]
fn options_for_cleaning_count_in_submodules() {
    let scene = Scene::new("", "");
    let (library, _) = scene.git.repository("team/library", &[(".gitignore", "*.ignored\n")]);
    let (url, _) = scene.git.repository("team/demo", &[("a", "b")]);
    let sha = scene.git.add_submodule("team/demo", "lib", &library);
    for (flags, expected) in
        [("-ffdx", ""), ("-ffd", "x.ignored"), ("-ffdx -e y", "y"), ("none", "x.ignored y z"), ("-ffdX", "y z")]
    {
        let asked = |lines: &[&str]| {
            let asked = job(lines).sources(&url, &sha).variable("GIT_SUBMODULE_STRATEGY", "normal");
            asked.variable("GIT_CLEAN_FLAGS", flags)
        };
        scene.pass(asked(&["touch lib/x.ignored lib/y lib/z"]));
        let lines = scene.pass(asked(&["cd lib; echo \"left: $(echo *)\""]));
        let expected = if expected.is_empty() { "*" } else { expected };
        assert!(lines.contains(&format!("left: {expected}")), "{flags}: {lines:#?}");
    }
}
