//! A machine that cannot run jobs takes no jobs.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::disk::Small;
use crate::metrics::{try_get, wait_for};
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::job;
use crate::support::mayfly::{Home, read, wait_for_exit};
use crate::support::ports::free_address;
use crate::support::scenario::Scenario;
use crate::support::{unique_number, wait_or_explain, write_program};

#[test]
fn a_machine_whose_disk_is_full_takes_no_job_until_there_is_room() {
    let gitlab = GitLab::start();
    let address = free_address();
    let home = Scenario::shell()
        .config(&format!("listen_address = \"{address}\""))
        .mayfly("min_free_space = 2000000")
        .home(&gitlab);
    let small = Small::mount(home.path("state"));
    let filler = small.path().join("filler");
    fs::write(&filler, vec![0; 3 << 20]).expect("write a file");
    let id = gitlab.queue(job(&["echo ran"]).build());
    let mut agent = home.start(&["--once"]);
    let (status, body) = wait_for(&agent, &address, "/healthz", "unfit");
    assert_eq!(status, 503);
    assert!(body.contains("reason=disk_space") && body.contains("min_free_space"), "{body}");
    wait_for(&agent, &address, "/metrics", "mayfly_runner_unfit{runner_name=\"test\",reason=\"disk_space\"} 1");
    assert_eq!((gitlab.count("POST jobs/request"), gitlab.job(id).state.as_str()), (0, "pending"));
    let check = home.call(&["check", "--config", &home.config().display().to_string()]);
    let report = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(!check.status.success() && report.contains("bytes free"), "{report}");
    fs::remove_file(filler).expect("remove the file");
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
    assert_eq!(agent.log().matches("polling paused").count(), 1, "{}", agent.log());
    assert!(agent.log().contains("polling resumed"), "{}", agent.log());
    gitlab.assert_strict();
}

#[test]
fn twenty_jobs_stay_pending_while_the_state_directory_is_full() {
    let gitlab = GitLab::start();
    let address = free_address();
    let keys = format!("concurrent = 4\nlog_level = \"debug\"\nlisten_address = \"{address}\"");
    let home = Scenario::shell().config(&keys).home(&gitlab);
    let small = Small::mount(home.path("state"));
    let mut agent = home.start(&["--max-builds", "20"]);
    agent.wait_for_log("mayfly is up");
    let filler = small.fill();
    wait_for(&agent, &address, "/healthz", "reason=disk_space");
    let polls = gitlab.count("POST jobs/request");
    let ids: Vec<i64> = (0..20).map(|_| gitlab.queue(job(&["echo ran"]).build())).collect();
    let checks = agent.log().matches("still unfit").count();
    agent.wait_until("two more checks", || agent.log().matches("still unfit").count() >= checks + 2);
    assert!(ids.iter().all(|id| gitlab.job(*id).state == "pending"), "{}", agent.log());
    assert_eq!(gitlab.count("POST jobs/request"), polls, "{}", agent.log());
    fs::remove_file(filler).expect("remove the file");
    assert!(ids.iter().all(|id| gitlab.finished(*id).state == "success"), "{}", agent.log());
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_lack_of_space_or_inodes_in_each_directory_makes_the_machine_unfit() {
    for directory in ["state", "builds", "cache"] {
        for lacks_inodes in [false, true] {
            let gitlab = GitLab::start();
            let address = free_address();
            let scenario = Scenario::shell().config(&format!("listen_address = \"{address}\""));
            let home = scenario.runner("builds_dir = \"$HOME/builds\"\ncache_dir = \"$HOME/cache\"").home(&gitlab);
            let small = Small::mount_with(home.path(directory), "size=4m,nr_inodes=500");
            let mut agent = home.start(&["--once"]);
            agent.wait_for_log("mayfly is up");
            let filler = if lacks_inodes { small.use_all_inodes() } else { small.fill() };
            let reason = if lacks_inodes { "reason=inodes" } else { "reason=disk_space" };
            let (status, body) = wait_for(&agent, &address, "/healthz", reason);
            let place = home.path(directory).display().to_string();
            assert!(status == 503 && body.contains(&place), "{directory}: {body}");
            let id = gitlab.queue(job(&["echo ran"]).build());
            if lacks_inodes { fs::remove_dir_all(filler) } else { fs::remove_file(filler) }.expect("remove the file");
            assert_eq!(gitlab.finished(id).state, "success", "{directory}: {}", agent.log());
            assert!(agent.wait().success());
            gitlab.assert_strict();
        }
    }
}

#[test]
fn a_job_that_meets_a_full_disk_says_so_in_its_log_and_the_runner_pauses() {
    for lacks_inodes in [false, true] {
        let gitlab = GitLab::start();
        // As if the disk filled up after the check before the poll.
        let home = Scenario::shell().mayfly("min_free_space = 0\nmin_free_inodes = 0").home(&gitlab);
        let small = Small::mount_with(home.path("state"), "size=4m,nr_inodes=500");
        let agent = home.start(&[]);
        agent.wait_for_log("mayfly is up");
        if lacks_inodes {
            small.use_all_inodes()
        } else {
            small.fill()
        };
        let ids: Vec<i64> = (0..20).map(|_| gitlab.queue(job(&["echo ran"]).build())).collect();
        agent.wait_for_log("polling paused runner=test reason=system_failures");
        let (ended, waiting): (Vec<Job>, Vec<Job>) =
            ids.iter().map(|id| gitlab.job(*id)).partition(|job| job.state == "failed");
        assert_eq!((ended.len(), waiting.len()), (3, 17), "{}", agent.log());
        for job in &ended {
            assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{}", job.log());
            assert!(job.has("ERROR: Job failed (system failure)"), "{:?}\n{}", job.log(), agent.log());
            assert!(job.has("No space left on device"), "{:?}\n{}", job.log(), agent.log());
        }
    }
}

#[test]
fn a_docker_runner_takes_no_job_while_the_engine_is_unreachable() {
    let gitlab = GitLab::start();
    let socket = tempfile::tempdir().expect("a directory");
    let host = format!("unix://{}", socket.path().join("docker.sock").display());
    let home = Scenario::containers().engine(&host).home(&gitlab);
    let ids: Vec<i64> = (0..3).map(|_| gitlab.queue(job(&["true"]).build())).collect();
    let agent = home.start(&[]);
    agent.wait_for_log("polling paused runner=test reason=container_engine");
    let remedy = "docker.sock; install or start it (systemctl start docker), or set `host` below [runners.docker] or DOCKER_HOST to the address of another one\n";
    assert!(agent.log().contains(remedy), "{}", agent.log());
    // The next check connects to an engine that closes the connection.
    let broken = UnixListener::bind(socket.path().join("docker.sock")).expect("bind the address");
    broken.set_nonblocking(true).expect("set the mode of the socket");
    agent.wait_until("the next check", || broken.accept().is_ok());
    drop(broken);
    agent.kill();
    // A socket without a listener is the same as no socket.
    let next = home.start(&[]);
    next.wait_for_log("polling paused runner=test reason=container_engine");
    assert!(ids.iter().all(|id| gitlab.job(*id).state == "pending"));
    assert_eq!(gitlab.count("POST jobs/request"), 0);
}

#[test]
fn a_silent_engine_is_reported_by_the_agent_and_by_check() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    // Accepts connections and never answers.
    let _engine = UnixListener::bind(home.path("engine")).expect("bind the address");
    let host = format!("unix://{}", home.path("engine").display());
    Scenario::containers().engine(&host).write(&home, &gitlab.url);
    let id = gitlab.queue(job(&["true"]).build());
    let agent = home.start(&[]);
    let check = home.call(&["check", "--config", &home.config().display().to_string()]);
    let report = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(!check.status.success() && report.contains("engine does not answer (_ping)"), "{report}");
    agent.wait_for_log("polling paused runner=test reason=container_engine");
    assert_eq!((gitlab.count("POST jobs/request"), gitlab.job(id).state.as_str()), (0, "pending"));
}

#[test]
fn a_runner_takes_no_job_until_git_runs() {
    for (script, cause) in [
        (None, "no working `git` in the PATH of the agent"),
        (Some("echo broken >&2; exit 3"), "exit status: 3: broken"),
        (Some("exec /bin/sleep 600"), "did not end within 10 s"),
    ] {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let programs = home.path("programs");
        fs::create_dir(&programs).expect("create the directory");
        let git = programs.join("git");
        if let Some(script) = script {
            write_program(&git, &format!("#!/bin/sh\n{script}\n"));
        }
        let path = [("PATH", programs.to_str().expect("the path must be UTF-8"))];
        let id = gitlab.queue(job(&["echo ran"]).build());
        let mut agent = home.start_with(&["--once"], &path);
        agent.wait_for_log("polling paused runner=test reason=git");
        assert!(agent.log().contains(cause), "{}", agent.log());
        assert_eq!((gitlab.count("POST jobs/request"), gitlab.job(id).state.as_str()), (0, "pending"));
        let mut check = home.command(&["check", "--config", &home.config().display().to_string()]);
        let check = check.envs(path).output().expect("run mayfly");
        let report = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(!check.status.success() && report.contains(cause), "{report}");
        let _ = fs::remove_file(&git);
        std::os::unix::fs::symlink("/usr/bin/git", git).expect("link git");
        assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
        assert!(agent.wait().success());
        gitlab.assert_strict();
    }
}

#[test]
fn a_runner_is_set_up_when_the_user_of_its_jobs_appears() {
    let gitlab = GitLab::start();
    let address = free_address();
    let user = format!("late{}", unique_number());
    let keys = format!("listen_address = \"{address}\"\nuser = \"{user}\"");
    let mut home = Scenario::shell().config(&keys).home(&gitlab);
    let program = home.own_program();
    let id = gitlab.queue(job(&["id -un"]).build());
    // The user database of the agent only; /etc/passwd of the machine stays as it is.
    let passwd = home.path("passwd");
    fs::copy("/etc/passwd", &passwd).expect("copy the file");
    let config = home.config().display().to_string();
    let log = home.path("log");
    let line = format!("mount --bind {} /etc/passwd && exec \"$@\" 2>{}", passwd.display(), log.display());
    let mut agent = std::process::Command::new("unshare");
    agent.args(["-m", "sh", "-c", &line, "sh"]).arg(program).args(["run", "--config", &config, "--once"]);
    let mut agent = agent.current_dir(home.path("")).spawn().expect("start unshare");
    wait_or_explain(|| read(&log).contains("polling paused runner=test reason=user"), || read(&log));
    wait_or_explain(|| try_get(&address, "/healthz").is_some_and(|(status, _)| status == 503), || read(&log));
    assert_eq!((gitlab.count("POST jobs/request"), gitlab.job(id).state.as_str()), (0, "pending"));
    let with_user = format!("{}{user}:x:65534:65534::/:/bin/sh\n", read(&passwd));
    fs::write(&passwd, with_user).expect("write the file");
    let done = gitlab.finished(id);
    assert!(done.state == "success" && done.has(&user), "{}\n{}", done.log(), read(&log));
    assert!(wait_for_exit(&mut agent, &log).success());
    assert_eq!(read(&log).matches("polling paused").count(), 1, "{}", read(&log));
    gitlab.assert_strict();
}

#[test]
fn a_read_only_directory_makes_the_machine_unfit() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().runner("builds_dir = \"$HOME/builds\"").home(&gitlab);
    let small = Small::mount(home.path("builds"));
    let remount = |mode: &str| {
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-o", &format!("remount,{mode}")]).arg(small.path()).status();
        assert!(status.expect("run mount").success());
    };
    remount("ro");
    let id = gitlab.queue(job(&["echo ran"]).build());
    let mut agent = home.start(&["--once"]);
    agent.wait_for_log("polling paused runner=test reason=read_only");
    assert_eq!(gitlab.count("POST jobs/request"), 0);
    remount("rw");
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(agent.wait().success());
}

#[test]
fn an_agent_starts_and_waits_on_a_state_directory_without_inodes() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let small = Small::mount_with(home.path("state"), "size=4m,nr_inodes=500");
    let filler = small.use_all_inodes();
    let id = gitlab.queue(job(&["echo ran"]).build());
    let mut agent = home.start(&["--once"]);
    agent.wait_for_log("polling paused runner=test reason=inodes");
    let mut second = home.start(&[]);
    assert!(!second.wait().success() && second.log().contains("another mayfly runs"), "{}", second.log());
    fs::remove_dir_all(filler).expect("remove the directory");
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(agent.wait().success());
}

#[test]
fn a_runner_pauses_after_repeated_system_failures() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    fs::write(home.path("file"), "").expect("write a file");
    Scenario::shell()
        .runner(&format!("builds_dir = \"{}\"", home.path("file/builds").display()))
        .write(&home, &gitlab.url);
    let ids: Vec<i64> = (0..5).map(|_| gitlab.queue(job(&["true"]).build())).collect();
    let agent = home.start(&[]);
    agent.wait_for_log("polling paused runner=test reason=system_failures");
    let ended = ids.iter().filter(|id| gitlab.job(**id).state == "failed").count();
    assert_eq!(ended, 3, "{}", agent.log());
    assert!(agent.log().contains("3 jobs in a row failed with runner_system_failure"), "{}", agent.log());
}

#[test]
fn a_machine_that_stays_unfit_shuts_down_if_configured() {
    let gitlab = GitLab::start();
    let keys = "min_free_space = 9000000000000000\nunfit = \"leave\"\nunfit_timeout = \"1s\"\nleave = \"command\"\n\
                leave_command = \"echo $MAYFLY_LEAVE_REASON >$HOME/reason\"";
    let home = Scenario::shell().mayfly(keys).home(&gitlab);
    let reason = home.path("reason");
    let mut agent = home.start(&[]);
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(fs::read_to_string(reason).expect("the reason of the shutdown"), "unfit\n");
    assert_eq!(gitlab.count("POST jobs/request"), 0);
}

#[test]
fn a_machine_that_never_becomes_ready_shuts_down_if_configured() {
    let gitlab = GitLab::start();
    // The readiness command fails several times within `unfit_timeout`.
    let keys = "ready_command = \"false\"\nready_timeout = \"1s\"\nunfit = \"leave\"\nunfit_timeout = \"5s\"\n\
                leave = \"command\"\nleave_command = \"echo $MAYFLY_LEAVE_REASON >$HOME/reason\"";
    let home = Scenario::shell().mayfly(keys).home(&gitlab);
    let reason = home.path("reason");
    let mut agent = home.start(&[]);
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(fs::read_to_string(reason).expect("the reason of the shutdown"), "unfit\n");
    assert_eq!(gitlab.count("POST jobs/request"), 0);
}

#[test]
fn polling_starts_only_when_the_machine_is_ready() {
    let gitlab = GitLab::start();
    let address = free_address();
    let home = Scenario::shell()
        .config(&format!("listen_address = \"{address}\""))
        .mayfly("ready_command = \"echo >>$HOME/tries; test -e $HOME/own\"\nready_timeout = \"1s\"")
        .runner("[runners.autoscaler]\ninstance_ready_command = \"test -e $HOME/of-runner\"")
        .home(&gitlab);
    let [own, of_runner, tries] = ["own", "of-runner", "tries"].map(|name| home.path(name));
    let id = gitlab.queue(job(&["echo ran"]).build());
    let mut agent = home.start(&["--once"]);
    let (status, body) = wait_for(&agent, &address, "/healthz", "reason=not_ready");
    assert_eq!(status, 503, "{body}");
    fs::write(own, "").expect("write a file");
    wait_for(&agent, &address, "/healthz", "of-runner");
    assert_eq!(gitlab.count("POST jobs/request"), 0);
    fs::write(of_runner, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
    assert!(fs::read_to_string(tries).expect("read the file").lines().count() >= 2);
    gitlab.assert_strict();
}

#[test]
fn a_machine_without_runners_powers_off_after_the_configured_time() {
    let home = Home::empty();
    let reason = home.path("reason");
    let text = format!(
        "[mayfly]\nstate_dir = \"{}\"\ngive_up_after = \"1s\"\npoweroff_command = \"echo $MAYFLY_LEAVE_REASON >{}\"\n",
        home.path("state").display(),
        reason.display()
    );
    fs::write(home.config(), text).expect("write a file");
    let mut agent = home.start(&[]);
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(fs::read_to_string(reason).expect("the reason of the shutdown"), "no_runner\n");
}

#[test]
fn a_machine_whose_agent_keeps_failing_powers_off_after_the_configured_time() {
    let home = Home::empty();
    let (arguments, runtime) = (home.path("systemctl-arguments"), home.path("runtime"));
    fs::create_dir(&runtime).expect("create the directory");
    fs::write(home.config(), "runners = 1\n").expect("write a file");
    let program = home.path("systemctl");
    fs::write(&program, format!("#!/bin/sh\necho \"$@\" >{}\n", arguments.display())).expect("write a file");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set the permissions");
    let socket = home.path("notify").display().to_string();
    let path = format!("{}:/usr/bin:/bin", home.path("").display());
    let variables = [
        ("NOTIFY_SOCKET", socket.as_str()),
        ("RUNTIME_DIRECTORY", runtime.to_str().expect("the path must be UTF-8")),
        ("GIVE_UP_AFTER", "2s"),
        ("PATH", &path),
    ];
    for _ in 0..4 {
        assert_eq!(home.start_with(&[], &variables).wait().code(), Some(1));
        if arguments.exists() {
            break;
        }
    }
    assert_eq!(fs::read_to_string(arguments).expect("the arguments of systemctl"), "poweroff\n");
}
