//! Attacks on the checkout of a later job, through files that an earlier job leaves in the build directory.

use super::*;

/// An earlier job writes a program into a submodule's configuration; the attacking job makes git fetch submodules.
#[test]
fn fetch_options_request_a_submodules_program() {
    for containers in [true, false] {
        Attack { containers, ..in_containers() }
            .submodule("lib", "$SERVER/team/library.git")
            .earlier(
                "git -C lib config remote.origin.uploadpack 'touch /tmp/mayfly-hostile-fetch; git-upload-pack' || :",
            )
            .variable("GIT_FETCH_EXTRA_FLAGS", "--recurse-submodules=yes")
            .run()
            .failed_with("GIT_FETCH_EXTRA_FLAGS: `--recurse-submodules=yes`")
            .made_no(Path::new("/tmp/mayfly-hostile-fetch"));
    }
}

/// An earlier job manipulates the repository so that git checks out other content than that of the commit.
#[test]
fn an_earlier_job_changes_what_is_checked_out() {
    let object = "o=$(git rev-parse HEAD:file.txt); n=$(echo evil | git hash-object -w --stdin)";
    let file = "f() { echo .git/objects/$(echo $1 | cut -c 1-2)/$(echo $1 | cut -c 3-); }";
    for line in [
        "git update-index --skip-worktree file.txt; echo evil >file.txt",
        "git update-index --assume-unchanged file.txt; echo evil >file.txt",
        // The file has the same size and, as far as a job can forge it, the same time stamp.
        "touch -r file.txt ../time; echo 'FROM git' >file.txt; touch -r ../time file.txt",
        &format!("{object}; git replace $o $n; git pack-refs --all; rm file.txt"),
        &format!("{object}; git replace $o $n; echo evil >file.txt; git add file.txt"),
        "git sparse-checkout set --no-cone /other && ! [ -e file.txt ]",
        &format!("{object}; {file}; rm -f $(f $o) file.txt; cp $(f $n) $(f $o)"),
        "echo '* text eol=crlf' >.git/info/attributes; rm file.txt; git checkout file.txt",
        "mv .git/objects ../objects; mkdir -p .git/objects/info; echo ../../objects >.git/objects/info/alternates",
        "git commit-graph write --reachable; chmod 000 .git",
    ] {
        let line = format!("mkdir -p .git/info; {line}");
        let outcome = on_the_machine().earlier(&line).script(&["cat file.txt; git status --short"]).run().succeeded();
        let lines = outcome.job.lines();
        assert!(lines.iter().any(|line| line == "from git"), "after `{line}`: {lines:#?}");
        assert!(!lines.iter().any(|line| line.contains(" M file.txt")), "after `{line}`: {lines:#?}");
    }
}

/// An earlier job leaves pipes and endless files in places that git and the agent read.
#[test]
fn an_earlier_job_leaves_files_that_block_readers() {
    let paths = [
        ".git/HEAD",
        ".git/config",
        ".git/index",
        ".git/packed-refs",
        ".git/shallow",
        ".git/refs/heads/x",
        ".git/objects/info/mayfly-format",
        ".git/objects/pack/pack-0.idx",
        ".git/mayfly-checkout",
        ".gitattributes",
        ".gitignore",
    ];
    let plant = |how: &str, path: &str| format!("mkdir -p .git/objects/pack; rm -f {path}; {how} {path}");
    let each = paths.iter().flat_map(|path| [plant("mkfifo", path), plant("truncate -s 4G", path)]);
    let all: Vec<String> = paths.iter().map(|path| plant("mkfifo", path)).collect();
    let attacks = each.map(|line| on_the_machine().earlier(&line)).chain([in_containers().earlier(&all.join("; "))]);
    for attack in attacks {
        let line = attack.earlier.join("; ");
        let outcome = attack.script(&["cat file.txt"]).run().succeeded();
        assert!(outcome.job.lines().iter().any(|line| line == "from git"), "{line}: {}", outcome.job.log());
    }
}

/// A protected job does not find files of an unprotected job.
#[test]
fn an_unprotected_job_prepares_a_protected_one() {
    for containers in [true, false] {
        Attack { containers, ..in_containers() }
            .earlier("touch planted")
            .variable("CI_COMMIT_REF_PROTECTED", "true")
            .variable("GIT_CLEAN_FLAGS", "none")
            .script(&["! [ -e planted ]"])
            .run()
            .succeeded();
    }
}

/// Keys of git's configuration that name a program or redirect a repository to another place. `@P` is the attacker's
/// program, `@H` a directory of hooks, `@I` a configuration file.
const GIT_KEYS: [(&str, &str); 39] = [
    ("core.fsmonitor", "sh @P"),
    ("core.sshCommand", "sh @P"),
    ("core.gitProxy", "sh @P"),
    ("core.askPass", "sh @P"),
    ("core.editor", "sh @P"),
    ("core.pager", "sh @P"),
    ("core.alternateRefsCommand", "sh @P"),
    ("credential.helper", "!sh @P"),
    ("filter.x.smudge", "sh @P"),
    ("filter.x.process", "sh @P"),
    ("filter.x.required", "true"),
    ("filter.lfs.smudge", "sh @P"),
    ("filter.lfs.process", "sh @P"),
    ("diff.x.command", "sh @P"),
    ("diff.x.textconv", "sh @P"),
    ("diff.external", "sh @P"),
    ("merge.x.driver", "sh @P"),
    ("uploadpack.packObjectsHook", "sh @P"),
    ("remote.origin.uploadpack", "sh @P"),
    ("remote.origin.vcs", "ext"),
    ("remote.origin.proxy", "http://127.0.0.1:1"),
    ("protocol.allow", "always"),
    ("url.ext::sh @P .insteadOf", "http"),
    ("submodule.lib.update", "!sh @P"),
    ("submodule.lib.url", "ext::sh @P"),
    ("submodule.recurse", "true"),
    ("lfs.standalonetransferagent", "x"),
    ("lfs.customtransfer.x.path", "sh"),
    ("lfs.customtransfer.x.args", "@P"),
    ("gpg.program", "sh @P"),
    ("fetch.fsck.skipList", "/etc/shadow"),
    ("core.hooksPath", "@H"),
    ("init.templateDir", "@H"),
    ("core.attributesFile", "@P"),
    ("core.excludesFile", "/etc/shadow"),
    ("core.worktree", "/etc"),
    ("include.path", "@I.2"),
    ("includeIf.gitdir:/.path", "@I.2"),
    ("extensions.worktreeConfig", "true"),
];

/// An earlier job writes all of [`GIT_KEYS`] to each file that git reads.
#[test]
fn an_earlier_job_leaves_programs_in_gits_configuration() {
    let hooks = "for n in post-checkout pre-push post-merge reference-transaction pre-auto-gc fsmonitor-watchman; \
                 do cp $p $h/$n; cp $p .git/hooks/$n; done; chmod +x $h/* .git/hooks/*";
    let prepare = format!(
        "b=$(cd ../..; pwd); p=$b/left.sh; h=$b/left-hooks; i=$b/left-config; mkdir -p $h .git/hooks .git/info; \
         {}; {}; sed -i \"s|@P|$p|g;s|@H|$h|g;s|@I|$i|g\" $i; cp $i $i.2; {hooks}",
        writes("$p", &probe()),
        writes("$i", &configuration(&GIT_KEYS)),
    );
    // Git reads each of these places, or takes it for the repository.
    for leave in [
        "cat $i >>.git/config",
        "cp $i .git/config.worktree; printf '[extensions]\\n\\tworktreeConfig = true\\n' >>.git/config",
        "printf '[include]\\n\\tpath = %s\\n' $i >.git/config",
        "mkdir -p .git/modules/lib .git/worktrees/x; cp $i .git/modules/lib/config; cp $i .git/worktrees/x/config.worktree",
        "cat $i >>.git/config; mv .git ../moved; echo gitdir: ../moved >.git",
        "cat $i >>.git/config; mv .git ../moved; ln -s ../moved .git",
        "cat $i >>.git/config; cp -r .git ../moved; echo ../../moved >.git/commondir",
        "echo '* filter=x diff=x merge=x' >.git/info/attributes; cat $i >>.git/config; git pack-refs --all",
        "rm -rf .git/refs .git/objects; ln -s /etc .git/refs; ln -s /etc .git/objects",
        "cp $i .gitmodules; cp $i .lfsconfig; cp $i .git/index",
    ] {
        for containers in [true, false] {
            let outcome = Attack { containers, ..in_containers() }
                .file(".gitattributes", "*.txt filter=x diff=x merge=x working-tree-encoding=UTF-16\nfile.txt working-tree-encoding=UTF-8\n")
                .submodule("lib", "$SERVER/team/library.git")
                .earlier(&format!("{prepare}; {{ {leave}; }} || :"))
                .script(&["cat file.txt lib/lib.txt"])
                .run()
                .ran_nothing()
                .succeeded();
            let lines = outcome.job.lines();
            for expected in ["from git", "from the library"] {
                assert!(lines.iter().any(|line| line == expected), "after `{leave}`: {lines:#?}");
            }
        }
    }
}

/// A git configuration with these keys.
fn configuration(keys: &[(&str, &str)]) -> String {
    let line = |(key, value): &(&str, &str)| {
        let (section, name) = key.rsplit_once('.').expect("a key");
        let (section, part) = section.split_once('.').unwrap_or((section, ""));
        let part = if part.is_empty() { String::new() } else { format!(" \"{part}\"") };
        format!("[{section}{part}]\n\t{name} = \"{value}\"\n")
    };
    keys.iter().map(line).collect()
}

/// Git uses the name of a submodule as a path.
#[test]
fn a_submodule_is_named_like_a_path_that_leads_out() {
    for name in ["../../escaped", "..", "lib/../../../escaped", "/tmp/mayfly-hostile-escaped"] {
        for containers in [true, false] {
            let address = format!("x\"\n[submodule \"{name}\"]\n\tpath = lib\n\turl = \"$SERVER/team/library.git");
            Attack { containers, ..in_containers() }
                .submodule("lib", &address)
                .run()
                .ran_nothing()
                .made_no(Path::new("/tmp/mayfly-hostile-escaped"));
        }
    }
}
