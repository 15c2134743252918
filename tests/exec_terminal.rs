//! `mayfly exec` on a terminal: progress, shells in failed jobs, interrupts, completions.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{checkout, command, exec, in_checkout, is_running, started};
use crate::support::docker::docker;
use crate::support::mayfly::Home;
use crate::support::wait_until;

/// Runs `mayfly exec` on a pseudo-terminal and types `input`.
fn on_terminal(home: &Home, arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> (Output, String) {
    let plain = command(home, arguments);
    let words = [plain.get_program()].into_iter().chain(plain.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut script = Command::new("script");
    script.args(["-qefc", &line.join(" "), "/dev/null"]);
    script.current_dir(home.path("checkout")).env_clear();
    script.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    script.env("SHELL", "/bin/sh").env("TERM", "xterm").env("PS1", "> ").envs(environment.iter().copied());
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script (util-linux)");
    child.stdin.as_mut().expect("a pipe").write_all(input.as_bytes()).expect("write to the terminal");
    let output = child.wait_with_output().expect("wait for the end of the process");
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    (output, text)
}

#[test]
fn a_terminal_shows_names_colours_and_the_running_jobs() {
    let home = checkout("one: {script: [echo first, sleep 0.3]}\ntwo: {script: [exit 4]}\n");
    let (output, text) = on_terminal(&home, &[], "", &[]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("one\x1b[0m \x1b[2m|\x1b[0m first\n"), "{text:?}");
    let mut after = text.split("one (test) ").skip(1);
    assert!(after.any(|rest| rest.starts_with(|c: char| c.is_ascii_digit())), "the time of the running job: {text:?}");
    assert!(text.contains("\x1b[31mfailed\x1b[0m"), "{text:?}");
    assert!(text.contains("failed command: exit 4"), "{text:?}");
    for (arguments, environment) in
        [(&["--no-color"][..], ("A", "1")), (&[], ("NO_COLOR", "1")), (&[], ("TERM", "dumb"))]
    {
        let (_, text) = on_terminal(&home, arguments, "", &[environment]);
        assert!(!text.contains('\x1b') && text.contains("== one (test)"), "{text:?}");
    }
}

#[test]
fn a_manual_job_is_offered_on_a_terminal() {
    let file = "deploy: {script: echo deployed, when: manual, manual_confirmation: 'To production?'}\n";
    let home = checkout(file);
    let (output, text) = on_terminal(&home, &[], "y\n", &[]);
    assert!(output.status.success() && text.contains("To production?"), "{text}");
    assert!(text.contains("\ndeployed\n") || text.contains(" deployed\n"), "{text}");
    let (output, text) = on_terminal(&home, &[], "n\n", &[]);
    assert!(output.status.success() && text.contains("manual") && !text.contains(" deployed\n"), "{text}");
}

#[test]
fn a_failed_job_can_be_inspected_in_a_shell_and_its_tree_kept() {
    let home = checkout("bad: {variables: {WORD: seen}, script: [echo made >made, exit 3]}\n");
    let input = "echo \"[$(cat made) $WORD $CI_JOB_NAME]\"\nexit\n";
    let (output, text) = on_terminal(&home, &["--shell-on-failure"], input, &[]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("[made seen bad]"), "{text}");
    let (output, text) = exec(&home, &["--shell-on-failure"]);
    assert!(output.status.code() == Some(2) && text.contains("terminal"), "{text}");
    let (output, text) = exec(&home, &["--keep"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let kept = text
        .lines()
        .find_map(|line| line.strip_prefix("the work tree of bad is kept in "))
        .expect("the line must name a directory");
    assert_eq!(fs::read_to_string(format!("{kept}/made")).expect("read the file"), "made\n");
    // The next job does not reuse that tree.
    let (_, text) = exec(&home, &[]);
    assert!(
        text.contains("exit status 3") && fs::exists(format!("{kept}/made")).expect("read the directory"),
        "{text}"
    );
}

#[test]
fn a_failed_job_of_a_container_can_be_inspected_in_a_container() {
    let docker = docker();
    let host = docker.host();
    let home = checkout("bad: {image: 'busybox:local', variables: {WORD: seen}, script: [echo made >made, exit 3]}\n");
    let input = "echo \"[$(cat made) $WORD $(test -e /bin/busybox && echo inside)]\"\nexit\n";
    let (output, text) = on_terminal(&home, &["--shell-on-failure"], input, &[("DOCKER_HOST", &host)]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("[made seen inside]"), "{text}");
}

#[test]
fn timestamps_stand_before_each_line() {
    let home = checkout("a: {script: [echo line]}\n");
    let (_, text) = exec(&home, &["--timestamps"]);
    let line = text.lines().find(|line| line.ends_with("Z line")).unwrap_or_else(|| panic!("{text}"));
    let time = line.strip_suffix("Z line").expect("a time");
    let numbers: Vec<&str> = time.split([':', '.']).collect();
    assert!(numbers.len() == 4 && numbers.iter().all(|number| number.parse::<u32>().is_ok()), "{time}");
}

#[test]
fn a_second_interrupt_ends_the_run_at_once() {
    let home = Home::empty();
    let sign = home.path("sign").display().to_string();
    // The job ignores SIGTERM, so its grace period passes first.
    let script =
        format!("trap '' TERM INT HUP; sleep 1000 & echo $! >{sign}.new; mv {sign}.new {sign}; while :; do wait; done");
    let home = in_checkout(home, &format!("a: {{script: [\"{script}\"]}}\n"));
    let mut child = started(&home, &[], &[]);
    let process = fs::read_to_string(home.path("sign")).expect("a number");
    let pid = Pid::from_raw(child.id().cast_signed());
    // The first interrupt stops the job with its grace period; the second one ends the run immediately.
    wait_until("the run ends", || {
        let _ = kill(pid, Signal::SIGINT);
        child.try_wait().expect("read the state of the process").is_some()
    });
    let status = child.wait().expect("the run must end");
    assert_eq!((status.code(), status.signal()), (Some(130), None));
    wait_until("the job's processes end", || !is_running(&process));
    wait_until("the run's directory is removed", || {
        let projects = fs::read_dir(home.path("cache/mayfly/exec")).expect("list the directory").flatten();
        projects.into_iter().all(|project| fs::read_dir(project.path().join("runs")).into_iter().flatten().count() == 0)
    });
}

#[test]
fn zsh_and_fish_complete_the_names_of_jobs() {
    let home = checkout("build: {script: x}\n'build: [a, b]': {script: x}\ntest: {script: x}\n.hidden: {script: x}\n");
    let (output, text) = exec(&home, &["--complete-jobs"]);
    assert!(output.status.success());
    assert_eq!(text, "build\nbuild: [a, b]\ntest\n");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/packages/completions");
    let mayfly = env!("CARGO_BIN_EXE_mayfly");
    let complete = |shell: &str, script: String| {
        let mut command = Command::new(shell);
        command.args(["-c", &script]).current_dir(home.path("checkout"));
        let output =
            command.env("XDG_CACHE_HOME", home.path("cache")).env("HOME", home.path("")).output().expect(shell);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let fish = format!("function mayfly; {mayfly} $argv; end; source {root}/jobs.fish; complete -C 'mayfly exec bu'");
    assert_eq!(complete("fish", fish), "build\nbuild: [a, b]\n");
    let zsh = format!(
        "mayfly() {{ {mayfly} \"$@\" }}; compadd() {{ print -l -- ${{(P)2}} }}; source {root}/jobs.zsh; _mayfly_jobs"
    );
    assert_eq!(complete("zsh", zsh), "build\nbuild: [a, b]\ntest\n");
}
