//! Jobs in containers, with a real engine.

mod resumed;

use serde_json::json;

use crate::support::docker::{docker, is_podman_run};
use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::{is_running, nap};
use crate::support::scenario::Scenario;
use crate::support::write_program;

/// Runs one job in a container, on an agent of its own, and asserts that nothing of the job is left.
fn run(job: JobBuilder) -> Job {
    run_with("", "", job)
}

fn run_with(runner: &str, keys: &str, job: JobBuilder) -> Job {
    let gitlab = GitLab::start();
    let home = Scenario::containers().runner(runner).docker(keys).home(&gitlab);
    let id = gitlab.queue(job.build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    gitlab.assert_strict();
    assert_nothing_left(id, &agent.log());
    job
}

/// Asserts that no container, network or volume of the job exists.
fn assert_nothing_left(id: i64, log: &str) {
    let label = format!("label=com.gitlab.gitlab-runner.job.id={id}");
    let left = docker().run(&["ps", "-aq", "--filter", &label])
        + &docker().run(&["network", "ls", "-q", "--filter", &label])
        + &docker().run(&["volume", "ls", "-q", "--filter", &label, "--filter", "label=io.mayfly.temporary"]);
    assert_eq!(left, "", "{log}");
}

#[test]
fn a_script_runs_in_a_container_of_its_image() {
    let image = docker().image(&["ENV FROM_IMAGE=yes", "WORKDIR /tmp"]);
    let mut script = job(&[
        "echo \"$FROM_IMAGE $CI_JOB_IMAGE $CI_PROJECT_DIR $PWD $CI_DISPOSABLE_ENVIRONMENT\"",
        "cat /proc/1/comm; cat",
        "echo stdout; echo stderr >&2; echo again",
        "cat \"$KEY\"; echo; ls -l \"$KEY\" | cut -c 1-10",
        "echo 'HANDED=on' >>\"$GITLAB_ENV\"; touch /left-behind",
        "exit 7",
    ])
    .file("KEY", "content of a file")
    .after_script(&["echo \"after $CI_JOB_STATUS $HANDED\"; ls /left-behind"]);
    script = script.set("image", json!({"name": image, "entrypoint": null}));
    let job = run(script);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(7)), "{}", job.log());
    let lines = job.lines();
    let all = lines.join("\n");
    for part in [
        format!("yes {image} /builds/team/demo /builds/team/demo true").as_str(),
        "stdout\n",
        "stderr\n",
        "content of a file\n",
        "-rw-------",
        "after failed on\n",
        "/left-behind",
        "ERROR: Job failed: exit code 7",
    ] {
        assert!(all.contains(part), "{part} in {all}");
    }
}

#[test]
fn sources_caches_and_artifacts_need_no_tools_in_the_image() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n"), ("dir/run.sh", "echo ran\n")]);
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let with_cache = |script: &[&str]| {
        job(script).sources(&url, &sha).set(
            "cache",
            json!([{"key": "k", "paths": ["$CI_PROJECT_DIR/kept"], "policy": "pull-push", "when": "on_success"}]),
        )
    };
    let script = [
        "cat file.txt; sh dir/run.sh; which git || echo none",
        "ls -ln file.txt | cut -c 1-10; ls -ldn dir | cut -c 1-10; ls -n file.txt | awk '{print $3}'",
        "mkdir -p kept out; echo cached >kept/x; echo made >out/y; ls -a $RUNNER_TEMP_PROJECT_DIR",
    ];
    let artifact = json!([{"name": "out", "paths": ["$CI_PROJECT_DIR/out", "/builds/team/demo/none"],
        "when": "on_success", "artifact_format": "zip", "artifact_type": "archive"}]);
    let first = gitlab.queue(with_cache(&script).set("artifacts", artifact).build());
    let second = gitlab.queue(with_cache(&["cat kept/x; ls out 2>&1 || echo clean"]).build());
    let agent = home.start(&[]);
    let done = gitlab.finished(first);
    assert_eq!(done.state, "success", "{}\n{}", done.log(), agent.log());
    let all = done.lines().join("\n");
    for part in [
        "from git\nran\nnone\n",
        "-rw-rw-rw-\ndrwxrwxrwx\n0\n",
        "Created fresh repository.",
        "mayfly.gitconfig",
        "/builds/team/demo/out: found 2 matching artifact files and directories",
        "relative to the working directory (/builds/team/demo)",
    ] {
        assert!(all.contains(part), "{part} in {all}");
    }
    assert_eq!(done.artifacts.len(), 1, "{all}");
    assert!(!all.contains(&home.path("").display().to_string()), "a path of the machine: {all}");
    let done = gitlab.finished(second);
    assert!(done.lines().join("\n").contains("cached\nls: out: No such file or directory\nclean"), "{}", done.log());
}

#[test]
fn fleet_executors_are_read_as_docker() {
    for (executor, tables) in [
        (
            "docker-autoscaler",
            "[runners.autoscaler]\nplugin = \"aws\"\ncapacity_per_instance = 1\nmax_use_count = 1\nmax_instances = 4",
        ),
        (
            "docker+machine",
            "[runners.machine]\nIdleCount = 1\nIdleTime = 600\nMaxBuilds = 1\nMachineDriver = \"amazonec2\"\n\
          MachineName = \"ci-%s\"\nMachineOptions = [\"amazonec2-region=eu-west-1\"]",
        ),
    ] {
        let gitlab = GitLab::start();
        let keys = format!("memory = \"64m\"\n{tables}");
        let home = Scenario::containers().executor(executor).docker(&keys).home(&gitlab);
        let ids = [0; 2].map(|_| gitlab.queue(job(&["cat /proc/1/comm; cat /etc/passwd | grep builder"]).build()));
        let mut agent = home.start(&[]);
        let done = gitlab.finished(ids[0]);
        assert_eq!(done.state, "success", "{}", done.log());
        assert!(done.has(&format!("Preparing the \"{executor}\" executor")), "{}", done.log());
        assert!(done.has("builder:x:1234"), "in its image: {}", done.log());
        // The configuration allows one job per instance.
        assert!(agent.wait().success(), "{}", agent.log());
        assert_eq!(gitlab.job_state(ids[1]), "pending");
        assert_nothing_left(ids[0], &agent.log());
    }
}

#[test]
fn the_images_user_can_write_to_the_jobs_directories() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    let image = docker().image(&["USER builder"]);
    let script = [
        "id -u; echo more >>file.txt; mkdir new; cat \"$KEY\"; echo; echo V=1 >>\"$GITLAB_ENV\"; echo hidden >/dev/stdout",
        "grep -c url \"$RUNNER_TEMP_PROJECT_DIR/mayfly.gitconfig\"",
    ];
    for (flag, owner) in [("false", "0 -rw-rw-rw-"), ("true", "1234 -rw-r--r--")] {
        let show = "ls -ln file.txt | awk '{print \"owner\", $3, $1}'";
        let job = job(&[script[0], script[1], show])
            .after_script(&["echo \"V is $V\""])
            .file("KEY", "content")
            .sources(&url, &sha)
            .variable("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR", flag)
            .set("image", json!({"name": image}));
        let done = run(job);
        assert_eq!(done.state, "success", "{}", done.log());
        let all = done.lines().join("\n");
        for part in ["1234\ncontent\nhidden\n", "V is 1", &format!("owner {owner}")] {
            assert!(all.contains(part), "{part} in {all}");
        }
    }
}

#[test]
fn a_cancel_ends_every_process_and_after_script_gets_a_container_of_its_own() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let (nap, detached) = (nap(), nap());
    let lines = [
        "touch /left-behind",
        &format!("(trap 'echo asked to end; exit 0' TERM; echo waits; {nap} & wait) & setsid {detached} & wait"),
    ];
    let id = gitlab
        .queue(job(&lines).after_script(&["echo \"after $CI_JOB_STATUS\"; ls /left-behind || echo fresh"]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_for_log(id, "waits");
    assert!(is_running(&nap) && is_running(&detached));
    gitlab.cancel(id);
    let job = gitlab.finished(id);
    assert!(!is_running(&nap) && !is_running(&detached), "{}", job.log());
    let all = job.lines().join("\n");
    for part in ["asked to end", "after canceled\n", "fresh"] {
        assert!(all.contains(part), "{part} in {all}");
    }
    assert!(agent.wait().success());
    assert_nothing_left(id, &agent.log());
}

#[test]
fn a_script_that_is_cancelled_before_its_start_does_not_run() {
    let root = tempfile::tempdir().expect("a directory");
    crate::support::docker::write_busybox(root.path());
    let entry = "#!/bin/sh\ntrap 'echo asked to end; asked=yes' TERM\necho entered\n\
                 while [ -z \"$asked\" ]; do sleep 0.1; done\nexec \"$@\"\n";
    write_program(&root.path().join("entry"), entry);
    let image = docker().image_of(root.path(), &["ENTRYPOINT [\"/entry\"]"]);
    let gitlab = GitLab::start();
    let home = Scenario::containers().runner("[runners.mayfly]\nkill_grace = \"5s\"").home(&gitlab);
    let id = gitlab.queue(job(&["echo in the script"]).set("image", json!({"name": image})).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_for_log(id, "entered");
    gitlab.cancel(id);
    let job = gitlab.finished(id);
    assert!(job.has("asked to end") && !job.has("in the script"), "{}", job.log());
    assert!(agent.wait().success());
    assert_nothing_left(id, &agent.log());
}

#[test]
fn a_process_that_ignores_term_is_killed_at_the_timeout() {
    let nap = nap();
    let stubborn = format!("trap '' TERM; echo stays; {nap}; {nap}; {nap}");
    let job = run_with("[runners.mayfly]\nkill_grace = \"1s\"", "", job(&[&stubborn]).timeout(20));
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"), "{}", job.log());
    assert!(job.log().contains("stays") && !is_running(&nap));
}

#[test]
fn an_out_of_memory_kill_is_reported() {
    let job = run_with("", "memory = \"16m\"\nmemory_swap = \"16m\"", job(&["echo begins; tail /dev/zero"]));
    assert_eq!((job.failure_reason.as_deref(), job.exit_code), (Some("script_failure"), Some(137)), "{}", job.log());
    let last = job.lines().last().cloned().unwrap_or_default();
    // Podman does not always say that the kernel killed the process.
    assert!(is_podman_run() || last.contains("memory of 16 MiB was used up") && last.contains("`memory`"), "{last}");
}

#[test]
fn entrypoints_run_before_the_script_and_must_run_it() {
    let root = tempfile::tempdir().expect("a directory");
    crate::support::docker::write_busybox(root.path());
    let entry = root.path().join("entry");
    write_program(&entry, "#!/bin/sh\necho \"entered for $CI_JOB_NAME\"; echo aside >&2\nexec \"$@\"\n");
    let image = docker().image_of(root.path(), &["ENTRYPOINT [\"/entry\"]"]);
    let of = |entrypoint: serde_json::Value| json!({"name": image, "entrypoint": entrypoint});
    let done = run(job(&["echo in the script"]).set("image", of(json!(null))));
    let all = done.lines().join("\n");
    assert!(done.state == "success" && all.contains("entered for unit\n"), "{all}");
    assert!(all.find("entered for unit") < all.find("$ echo in the script"), "{all}");
    let done = run(job(&["echo in the script"]).set("image", of(json!([""]))));
    assert!(done.state == "success" && !done.log().contains("entered"), "{}", done.log());
    for (entrypoint, part) in [
        (json!(["/bin/true"]), "exit code 0: the container ended before the script began"),
        (json!(["/bin/sh", "-c", "exit 9"]), "exit code 9: the container ended before"),
        (json!(["/no/such/program"]), "has no shell `sh`, or its entrypoint is missing"),
    ] {
        let done = run(job(&["echo never"]).set("image", of(entrypoint)));
        assert_eq!(done.failure_reason.as_deref(), Some("script_failure"), "{}", done.log());
        assert!(done.log().contains(part), "{part} in {}", done.log());
    }
}

#[test]
fn an_image_without_a_shell_is_reported() {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::copy("/bin/busybox", root.path().join("busybox")).expect("copy busybox");
    let image = docker().image_of(root.path(), &["CMD [\"/busybox\"]"]);
    let done = run(job(&["echo never"]).set("image", json!({"name": image})));
    assert_eq!(done.failure_reason.as_deref(), Some("script_failure"), "{}", done.log());
    assert!(done.log().contains("use an image with a shell"), "{}", done.log());
}

#[test]
fn a_project_reuses_its_volumes_but_not_from_protected_to_unprotected_jobs() {
    let gitlab = GitLab::start();
    let host = tempfile::tempdir().expect("a directory");
    let keys = format!("volumes = [\"/cache\", \"{}:/host:ro\"]", host.path().display());
    let home = Scenario::containers().docker(&keys).home(&gitlab);
    std::fs::write(host.path().join("file"), "of the machine\n").expect("write a file");
    let protected = |lines: &[&str]| job(lines).variable("CI_COMMIT_REF_PROTECTED", "true");
    let jobs = [
        job(&["echo one >/cache/x; cat /host/file; touch /host/y || echo read-only"]),
        job(&["cat /cache/x"]),
        protected(&["cat /cache/x || echo nothing; echo secret >/cache/s"]),
        job(&["cat /cache/s || echo nothing"]),
    ];
    let ids = jobs.map(|job| gitlab.queue(job.build()));
    let mut agent = home.start(&["--max-builds", "4"]);
    let logs = ids.map(|id| gitlab.finished(id).lines().join("\n"));
    for (log, part) in logs.iter().zip(["of the machine\n", "\none", "\nnothing", "\nnothing"]) {
        assert!(log.contains(part), "{part} in {log}");
    }
    assert!(logs[0].contains("read-only") && agent.wait().success());
    let volumes =
        docker().run(&["volume", "ls", "-q", "--filter", "label=com.gitlab.gitlab-runner.destination=/cache"]);
    for volume in volumes.lines() {
        let _ = docker().command(&["volume", "rm", volume]).output();
    }
}

#[test]
fn twenty_jobs_leave_nothing() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().docker("volumes = [\"/scratch\"]\ndisable_cache = true").home(&gitlab);
    let ids: Vec<i64> = (0..20)
        .map(|number| {
            let job = job(&["echo x >/scratch/x; echo y >y; echo \"in ${CI_BUILD_NETWORK_NAME-none}\""]);
            gitlab.queue(job.variable("FF_NETWORK_PER_BUILD", &(number % 2 == 0).to_string()).build())
        })
        .collect();
    let mut agent = home.start(&["--max-builds", "20"]);
    for id in &ids {
        let job = gitlab.finished(*id);
        assert_eq!(job.state, "success", "{}", job.log());
    }
    assert!(agent.wait().success());
    ids.iter().for_each(|id| assert_nothing_left(*id, &agent.log()));
    let of_runner =
        std::fs::read_dir(home.path("builds")).expect("list the directory").flatten().next().expect("a runner");
    assert_eq!(std::fs::read_dir(of_runner.path()).expect("a directory").count(), 0);
    // The agent itself keeps these.
    let state =
        std::fs::read_dir(home.path("state")).expect("list the directory").flatten().map(|entry| entry.file_name());
    let kept = ["lock", "settings.toml", "images.json"];
    let left: Vec<_> = state.filter(|name| !kept.iter().any(|kept| name == kept)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_script_with_much_output_loses_no_line_and_keeps_the_order_of_its_streams() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo \"out $i\"; echo \"err $i\" >&2; i=$((i+1)); done";
    let job = run(job(&[script]).variable("FF_TIMESTAMPS", "false"));
    assert_eq!(job.state, "success");
    let lines: Vec<String> =
        job.lines().into_iter().filter(|line| line.starts_with("out ") || line.starts_with("err ")).collect();
    let expected: Vec<String> = (0..3000).flat_map(|i| [format!("out {i}"), format!("err {i}")]).collect();
    assert!(lines == expected, "{} lines", lines.len());
}
