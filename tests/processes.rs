//! The processes of a job: how they run and how they end.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::mayfly::{Home, is_running, kill_shims, nap, read, shims};
use crate::support::scenario::Scenario;
use crate::support::{send_signal, wait_until};

fn run(global: &str, job: JobBuilder) -> (Job, Home) {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config(global).runner("[runners.mayfly]\nkill_grace = \"1s\"").home(&gitlab);
    (home.run(&gitlab, job), home)
}

#[test]
fn no_process_survives_its_stage_even_if_detached() {
    let naps = [nap(), nap(), nap()];
    let script = [
        format!("{} &", naps[0]),
        format!("setsid sh -c 'trap \"\" TERM; {0}; {0}' &", naps[1]),
        format!("(setsid setsid nohup {} >/dev/null 2>&1 &) &", naps[2]),
        "sleep 0.2; echo done".to_owned(),
    ];
    let began = Instant::now();
    let (job, _) = run("", job(&script.each_ref().map(String::as_str)));
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(began.elapsed() < Duration::from_secs(30), "a background process must not hold the job");
    for marker in &naps {
        assert!(!is_running(marker), "{marker} lives on");
    }
    assert!(job.log().contains("that the script had left running"), "{}", job.log());
}

#[test]
fn a_process_that_copies_the_output_ends_after_its_last_line() {
    let copy = "exec > >(while read -r line; do echo \"copied $line\"; done) 2>&1";
    // These lines fit into a pipe, so the script ends long before the copies are written.
    let (job, _) = run("", job(&[copy, "seq -f 'line %g' 1 2000", "echo the-last-line"]));
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.lines().contains(&"copied the-last-line".to_owned()), "{:?}", job.lines().last());
    assert!(!job.has("had left running"), "the process ends by itself");
}

#[test]
fn a_script_that_ended_before_its_cancel_keeps_its_result() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo finished"]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_for_log(id, "begun");
    let [shim] = shims(id)[..] else { panic!("the job must have one shim") };
    send_signal(shim, Signal::SIGSTOP);
    std::fs::write(&go, "").expect("write a file");
    let status = || std::fs::read_to_string(format!("/proc/{shim}/status")).expect("the shim must exist");
    let has_pending = |signal: Signal| {
        let of_process = status().lines().find_map(|line| line.strip_prefix("ShdPnd:").map(str::to_owned));
        let bits = u64::from_str_radix(of_process.expect("a set of signals").trim(), 16).expect("a number");
        bits & 1 << (signal as i32 - 1) != 0
    };
    wait_until("the end of the script", || has_pending(Signal::SIGCHLD));
    gitlab.cancel(id);
    wait_until("the request to stop", || has_pending(Signal::SIGTERM));
    send_signal(shim, Signal::SIGCONT);
    let job = gitlab.finished(id);
    let lines = job.lines();
    assert!(lines.contains(&"finished".to_owned()), "{lines:#?}");
    assert_eq!(lines.last().map(String::as_str), Some("Job succeeded"));
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_script_runs_in_its_own_cgroup() {
    let own = read("/proc/self/cgroup".as_ref());
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let mounts = read("/proc/self/mounts".as_ref());
    let mounts = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let parent = mounts.filter_map(|line| line.split(' ').nth(1)).find_map(|point| {
        let parent = format!("{point}{own}");
        let probe = format!("{parent}/mayfly-test-{}", std::process::id());
        let made = std::fs::create_dir(&probe).is_ok();
        (made && std::fs::remove_dir(&probe).is_ok()).then_some(parent)
    });
    let (job, _) = run("", job(&["cat /proc/self/cgroup"]));
    assert_eq!(job.state, "success", "{}", job.log());
    // Without permission to create cgroups, the shim tracks a script's processes only by the process tree.
    let Some(parent) = parent else { return };
    let line = format!("0::{}/mayfly-{}-", own.trim_end_matches('/'), job.id);
    let lines = job.lines();
    let group = lines.iter().find(|other| other.starts_with(&line)).unwrap_or_else(|| panic!("{line} in {lines:#?}"));
    let name = group.rsplit('/').next().unwrap_or_default();
    assert!(!std::path::Path::new(&parent).join(name).exists(), "{name} is removed with the script");
}

#[test]
fn a_script_can_reopen_dev_stdout() {
    let (job, _) = run("user = \"nobody\"", job(&["echo again >/dev/stdout; echo wrong >/dev/stderr; id -un"]));
    let lines = job.lines();
    for line in ["again", "wrong", "nobody"] {
        assert!(lines.contains(&line.to_owned()), "{line} in {lines:#?}");
    }
}

#[test]
fn a_job_with_a_user_of_its_own_cannot_reach_the_agent() {
    let script = [
        "shim=$(ps -o ppid= -p $PPID | tr -d ' ' || true)",
        "for file in /proc/$PPID/environ /proc/$PPID/mem /proc/$PPID/fd/0 \"$CONFIG\" \"$STATE\"; do \
         if cat \"$file\" >/dev/null 2>&1 || ls \"$file/x\" >/dev/null 2>&1; then echo \"reached $file\"; fi; done",
        "if kill -9 $PPID 2>/dev/null; then echo killed; fi",
        "grep -l tokenOfTheRunner /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null || echo nowhere",
        "echo end",
    ];
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("user = \"nobody\"").home(&gitlab);
    let config = home.config().display().to_string();
    let state = home.path("state").display().to_string();
    let id = gitlab.queue(job(&script).variable("CONFIG", &config).variable("STATE", &state).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    agent.wait();
    let lines = job.lines();
    assert!(lines.contains(&"end".to_owned()), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("reached") || line == "killed"), "{lines:#?}");
    assert!(lines.contains(&"nowhere".to_owned()), "{lines:#?}");
}

#[test]
fn a_job_that_kills_its_shim_fails_alone() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("concurrent = 2").home(&gitlab);
    let left = nap();
    let killer = gitlab.queue(job(&[&format!("{left} & echo begun; sleep 600")]).build());
    let go = home.path("go");
    let other = gitlab.queue(job(&[&until_there(go.display())]).build());
    let mut agent = home.start(&["--max-builds", "2"]);
    gitlab.wait_for_log(killer, "begun");
    assert!(kill_shims(killer) > 0);
    let killed = gitlab.finished(killer);
    assert_eq!(killed.failure_reason.as_deref(), Some("runner_system_failure"));
    std::fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(other).state, "success");
    assert!(agent.wait().success());
    assert!(!is_running(&left));
}

#[test]
fn reports_a_script_that_was_killed_by_a_signal() {
    let (job, _) = run("", job(&["kill -9 $$"]));
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(-1)));
    assert!(job.lines().contains(&"ERROR: Job failed: signal: killed".to_owned()), "{:#?}", job.lines());
}

#[test]
fn an_unfinished_line_appears_while_the_script_waits() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let gate = home.path("gate");
    let script = format!("printf 'waiting: '; {}; echo done", until_there(gate.display()));
    let id = gitlab.queue(job(&[&script]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_until("the unfinished line", |server| server.job(id).lines().iter().any(|line| line == "waiting: "));
    std::fs::write(&gate, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    agent.wait();
}

#[test]
fn a_fork_bomb_ends_with_its_job() {
    let leaf = nap();
    let script = format!("f() {{ [ $1 -gt 5 ] && {{ {leaf}; return; }}; f $(($1+1)) & f $(($1+1)) & wait; }}; f 0");
    let (job, _) = run("", job(&[&script]).timeout(3));
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"));
    assert!(!is_running(&leaf));
}

#[test]
fn a_large_log_arrives_whole() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().runner("output_limit = 100000").home(&gitlab);
    let id = gitlab.queue(job(&["seq 1 300000"]).masked("SECRET", "123456").build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(agent.wait().success());
    let numbers: Vec<String> =
        job.lines().into_iter().filter(|line| line.bytes().all(|b| b.is_ascii_digit()) && !line.is_empty()).collect();
    assert_eq!(numbers.len(), 300_000 - 1, "all but the masked one");
    assert!(job.log().contains("[MASKED]"));
    assert_eq!(read(&home.path("state/slot-0/trace")), "");
    gitlab.assert_strict();
}
