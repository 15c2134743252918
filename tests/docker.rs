//! Jobs in containers, with a real engine.

use std::time::Duration;

use serde_json::json;

use crate::support::docker::{Docker, docker, is_podman_run};
use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::mayfly::{is_running, kill_shims, nap};
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
fn a_process_that_ignores_term_is_killed_at_the_timeout() {
    let nap = nap();
    let stubborn = format!("trap '' TERM; echo stays; {nap}; {nap}; {nap}");
    let job = run_with("[runners.mayfly]\nkill_grace = \"1s\"", "", job(&[&stubborn]).timeout(8));
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
fn a_runner_without_an_engine_takes_no_job_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let odd = directory.path().join("odd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&odd).expect("bind the address");
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9\r\n\r\n");
        }
    });
    let missing = directory.path().join("none.sock");
    for (socket, part) in [(&missing, "install or start it"), (&odd, "should be a container engine")] {
        let gitlab = GitLab::start();
        let home = Scenario::containers().engine(&format!("unix://{}", socket.display())).home(&gitlab);
        let id = gitlab.queue(job(&["echo never"]).build());
        let agent = home.start(&[]);
        agent.wait_for_log("polling paused runner=test reason=container_engine");
        assert!(agent.log().contains(part), "{part} in {}", agent.log());
        assert_eq!(gitlab.job(id).state, "pending");
        gitlab.assert_strict();
    }
}

#[test]
fn an_agent_starts_without_its_engine() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine("unix:///nonexistent/engine.sock").home(&gitlab);
    let mut agent = home.start(&[]);
    agent.wait_for_log("polling paused runner=test reason=container_engine");
    agent.wait_for_log("of jobs yet; retrying");
    agent.drain();
    assert!(!agent.log().contains("not all containers of jobs are removed"), "{}", agent.log());
    assert_eq!(agent.log().matches("of jobs yet; retrying").count(), 1, "{}", agent.log());
    gitlab.assert_strict();
}

#[test]
fn an_engine_that_hangs_does_not_extend_the_job_timeout() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("hung.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind the address");
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        // This engine answers pings and nothing else.
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap_or(0);
            if request[..length].windows(6).any(|part| part == b"/_ping") {
                let head = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK";
                let _ = stream.write_all(head.as_bytes());
            } else {
                kept.push(stream);
            }
        }
    });
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&format!("unix://{}", socket.display())).home(&gitlab);
    let id = gitlab.queue(job(&["echo never"]).timeout(3).build());
    let _agent = home.start(&[]);
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("job_execution_timeout"), "{}", done.log());
}

#[test]
fn the_next_agent_resumes_a_job_whose_container_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let count = "for i in 1 2 3 4 5 6; do echo \"tick $i\"; sleep 0.5; done";
    let id = gitlab.queue(job(&[count]).after_script(&["echo after; sleep 1; echo end"]).build());
    for moment in ["tick 1", "tick 4", "after"] {
        let agent = home.start(&[]);
        gitlab.wait_for_log(id, moment);
        agent.kill();
    }
    let mut last = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    let lines = job.lines();
    for line in ["tick 1", "tick 2", "tick 3", "tick 4", "tick 5", "tick 6", "after", "end", "Job succeeded"] {
        assert_eq!(lines.iter().filter(|other| *other == line).count(), 1, "{line} in {lines:#?}");
    }
    last.drain();
    assert_nothing_left(id, &last.log());
}

#[test]
fn the_next_agent_resumes_a_job_whose_container_is_being_created() {
    for millis in [0, 60, 150, 300, 500] {
        let gitlab = GitLab::start();
        let home = Scenario::containers().home(&gitlab);
        let id = gitlab.queue(job(&["echo only once"]).build());
        let agent = home.start(&[]);
        gitlab.wait_for_log(id, "Preparing the \"docker\" executor");
        // The requests to the engine at which the agent dies are random; the assertions hold for every one.
        std::thread::sleep(Duration::from_millis(millis));
        agent.kill();
        let mut next = home.start(&[]);
        next.wait_for_log("mayfly is up");
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "after {millis} ms: {}", job.log());
        for line in ["only once", "Using Docker executor with image busybox:local ...", "Job succeeded"] {
            let times = job.lines().iter().filter(|other| *other == line).count();
            assert_eq!(times, 1, "{line} after {millis} ms: {}", job.log());
        }
        next.drain();
        assert_nothing_left(id, &next.log());
    }
}

#[test]
fn the_timeout_of_a_job_in_a_container_applies_while_no_agent_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).after_script(&[&nap]).timeout(10).build());
    let agent = home.start(&[]);
    gitlab.wait_until("the script", |_| is_running(&nap));
    agent.kill();
    assert!(is_running(&nap), "the engine runs the script");
    gitlab.wait_until("the end of the script", |_| !is_running(&nap));
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"), "{}", job.log());
    next.drain();
    gitlab.assert_strict();
    assert_nothing_left(id, &next.log());
}

#[test]
fn a_job_whose_shim_died_is_reported_and_its_container_removed() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    assert!(kill_shims(id) > 0);
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"));
    assert!(job.lines().contains(&"begun".to_owned()), "the log up to there");
    next.drain();
    assert!(!is_running(&nap));
    assert_nothing_left(id, &next.log());
}

#[test]
fn a_job_whose_journal_cannot_be_written_is_removed_and_the_agent_continues() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().docker("volumes = [\"/scratch\"]\ndisable_cache = true").home(&gitlab);
    let nap = nap();
    let lines = ["echo begun", &format!("{}; ({nap} &) ; echo never heard", until_there("go"))];
    let id = gitlab.queue(job(&lines).variable("FF_NETWORK_PER_BUILD", "true").after_script(&[&nap]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    // The journal cannot be written, so the job cannot be resumed.
    std::fs::remove_file(home.path("state/slot-0/job.json")).expect("remove the file or directory");
    let container = docker().containers(&format!("com.gitlab.gitlab-runner.job.id={id}")).swap_remove(0);
    docker().run(&["exec", "--detach", &container, "touch", "/builds/team/demo/go"]);
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", agent.log());
    let last = done.lines().last().cloned().unwrap_or_default();
    assert!(last.contains("cannot use its state directory"), "{}\n{}", done.log(), agent.log());
    let next = gitlab.queue(job(&["echo well"]).build());
    assert_eq!(gitlab.finished(next).state, "success");
    let label = format!("com.gitlab.gitlab-runner.job.id={id}");
    gitlab.wait_until("the removal of the job's container", |_| docker().containers(&label).is_empty());
    agent.drain();
    assert_nothing_left(id, &agent.log());
    assert!(!is_running(&nap));
}

#[test]
fn removes_orphaned_containers_and_no_foreign_ones() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).variable("FF_NETWORK_PER_BUILD", "true").build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    let foreign = docker().run(&[
        "run",
        "-d",
        "--label",
        "com.gitlab.gitlab-runner.managed=true",
        "busybox:local",
        "sleep",
        "600",
    ]);
    agent.kill();
    kill_shims(id);
    std::fs::remove_dir_all(home.path("state/slot-0")).expect("remove the file or directory");
    let mut next = home.start(&[]);
    next.wait_for_log("mayfly is up");
    next.drain();
    assert_nothing_left(id, &next.log());
    assert!(!is_running(&nap));
    assert_eq!(docker().inspect(&foreign)["State"]["Running"], true);
    docker().run(&["rm", "-f", &foreign]);
}

#[test]
fn an_engine_restart_fails_only_its_running_jobs() {
    let engine = Docker::start();
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&engine.host()).home(&gitlab);
    let id = gitlab.queue(job(&["echo begun", "sleep 600"]).build());
    let next = gitlab.queue(job(&["echo well"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    engine.restart();
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{}", job.log());
    assert!(job.log().to_lowercase().contains("run the job again"), "{}", job.log());
    assert_eq!(gitlab.finished(next).state, "success");
    agent.drain();
    assert_eq!(engine.run(&["ps", "-aq"]), "");
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
    for directory in [&witness, &outside] {
        std::fs::create_dir(directory).expect("create the directory");
        std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("open a file");
    }
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
    let names = |path: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).expect("a directory").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names(&witness), Vec::<String>::new(), "something was run");
    assert_eq!(names(&outside), ["precious"], "something was written");
    assert_eq!(std::fs::read_to_string(outside.join("precious")).expect("read the file"), "stays");
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

#[test]
fn no_part_of_a_repository_can_redirect_the_agent_outside() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    git.repository("team/sub", &[("x", "from the submodule\n")]);
    let (url, _) = git.repository("team/demo", &[("file.txt", "from git\n"), ("dir/run.sh", "echo ran\n")]);
    let add = ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add"];
    let of_sub = [root.path().join("team/sub.git").display().to_string(), "sub".to_owned()];
    let work = root.path().join("team/demo.work");
    crate::support::git::git(&work, &[&add[..], &of_sub.each_ref().map(String::as_str)].concat());
    let modules = work.join(".gitmodules");
    let text = std::fs::read_to_string(&modules).expect("read the file").replace(&of_sub[0], "../sub.git");
    std::fs::write(modules, text).expect("write a file");
    let sha = git.commit("team/demo", &[], "with a submodule");
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    // Besides the builds directory, file tasks may write only to the caches, here those of another project.
    let outside = home.path("cache/other");
    let witness = outside.join("witness");
    std::fs::create_dir_all(outside.join("empty")).expect("create the directory");
    std::fs::write(outside.join("precious"), "stays").expect("write a file");
    std::fs::create_dir(outside.join("repo")).expect("create the directory");
    let run = format!("touch {}", witness.display());
    let repository = outside.join("repo");
    crate::support::git::git(&repository, &["init", "-q", "--bare", "."]);
    for (key, value) in [("core.fsmonitor", &run), ("filter.evil.smudge", &run), ("core.sshCommand", &run)] {
        crate::support::git::git(&repository, &["config", key, value]);
    }
    for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
        let path = repository.join("hooks").join(hook);
        write_program(&path, &format!("#!/bin/sh\n{run}\n"));
    }
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
    assert_eq!(std::fs::read_dir(&witness).expect("list the directory").count(), 0, "something was run on the machine");
}
