//! One job from start to end, as its author sees it.

use serde_json::json;

use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::scenario::Scenario;

/// Runs one job on an agent of its own.
fn run(job: JobBuilder) -> Job {
    Scenario::shell().job(job)
}

fn run_with(runner: &str, job: JobBuilder) -> Job {
    Scenario::shell().runner(runner).job(job)
}

#[test]
fn a_script_runs_and_its_log_and_result_reach_gitlab() {
    let job = run(job(&["echo \"hello from $CI_JOB_NAME\"", "echo to stderr >&2"]));
    assert_eq!((job.state.as_str(), job.exit_code), ("success", None));
    let lines = job.lines();
    for expected in ["$ echo \"hello from $CI_JOB_NAME\"", "hello from unit", "to stderr", "Job succeeded"] {
        assert!(lines.iter().any(|line| line == expected), "{expected} in {lines:#?}");
    }
    assert!(job.log().contains("section_start:") && job.log().contains(":step_script\r"));
    assert!(job.log().lines().any(|line| line.get(28..32) == Some("01E ") && line.ends_with("to stderr")));
}

#[test]
fn a_failed_script_reports_its_exit_code_and_after_script_runs() {
    let job = run(job(&["exit 42"]).after_script(&["echo \"it was $CI_JOB_STATUS\""]));
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(42)));
    assert_eq!(job.failure_reason.as_deref(), Some("script_failure"));
    let lines = job.lines();
    assert!(lines.contains(&"it was failed".to_owned()));
    assert!(lines.contains(&"ERROR: Job failed: exit status 42".to_owned()));
}

#[test]
fn a_failed_after_script_does_not_fail_the_job_by_default() {
    let ignored = run(job(&["true"]).after_script(&["exit 3"]));
    assert_eq!(ignored.state, "success");
    let counted = run(job(&["true"]).after_script(&["exit 3"]).variable("AFTER_SCRIPT_IGNORE_ERRORS", "false"));
    assert_eq!((counted.state.as_str(), counted.exit_code), ("failed", Some(3)));
}

#[test]
fn interpolates_inputs_in_the_job() {
    let inputs = json!([
        {"key": "env", "value": {"type": "string", "content": "staging", "sensitive": false}},
        {"key": "replicas", "value": {"type": "number", "content": 3}},
        {"key": "pass", "value": {"type": "string", "content": "s3cr3t-input", "sensitive": true}},
    ]);
    let line = "echo \"${{ job.inputs.env == 'production' && 'stable' || 'latest' }} x${{ job.inputs.replicas + 1 }}\"";
    let with =
        |line: &str| job(&[line]).after_script(&["echo after ${{ job.inputs.env }}"]).set("inputs", inputs.clone());
    let done = run(with(line));
    let lines = done.lines();
    assert!(done.state == "success" && lines.contains(&"latest x4".to_owned()), "{lines:#?}");
    assert!(lines.contains(&"after staging".to_owned()), "{lines:#?}");
    let sensitive = run(with("echo begun ${{ job.inputs.pass }}"));
    assert_eq!(sensitive.state, "failed");
    assert_eq!(sensitive.failure_reason.as_deref(), Some("runner_configuration_error"));
    assert!(sensitive.log().contains("`pass` is sensitive"), "{}", sensitive.log());
    assert!(!sensitive.log().contains("begun") && !sensitive.log().contains("s3cr3t-input"), "{}", sensitive.log());
    let off = run(with("echo 'as it was: ${{ job.inputs.env }}'")
        .after_script(&["true"])
        .variable("FF_ENABLE_JOB_INPUTS_INTERPOLATION", "false"));
    assert!(off.lines().contains(&"as it was: ${{ job.inputs.env }}".to_owned()), "{}", off.log());
    let none = run(job(&["echo 'as it was: ${{ nothing }}'"]));
    assert!(none.lines().contains(&"as it was: ${{ nothing }}".to_owned()), "{}", none.log());
}

#[test]
fn steps_run_in_order_until_the_first_failure() {
    let job = run(job(&["echo one", "export LOST=1"])
        .step("release", &["echo \"two $CI_JOB_NAME ${LOST:-gone}\"", "false"])
        .step("late", &["echo never"]));
    let lines = job.lines();
    assert!(lines.iter().any(|line| line.starts_with("two unit")), "{lines:#?}");
    assert!(!lines.contains(&"never".to_owned()));
    assert_eq!(job.state, "failed");
}

#[test]
fn variables_are_expanded_files_are_written_and_secrets_masked() {
    let script = [
        "echo \"$GREETING\"",
        "cat \"$KEY_FILE\"",
        "echo \"secret: $PASSWORD\"",
        "printf 'hunter'; sleep 0.2; printf '22-secret\\n'",
        "echo glpat-abcDEF123",
        "ls -ld \"$KEY_FILE\" | cut -c1-10",
        "echo \"mayfly:${AGENT_ONLY:-clean}\"",
    ];
    let job = run(job(&script)
        .variable("GREETING", "hi $CI_JOB_NAME and $UNDEFINED.")
        .file("KEY_FILE", "line one\nline two\n")
        .masked("PASSWORD", "hunter22-secret"));
    let lines = job.lines();
    for expected in
        ["hi unit and .", "line two", "secret: [MASKED]", "[MASKED]", "glpat-[MASKED]", "-rw-------", "mayfly:clean"]
    {
        assert!(lines.iter().any(|line| line == expected), "{expected} in {lines:#?}");
    }
    assert!(!job.log().contains("hunter22"));
}

#[test]
fn gitlab_env_passes_variables_from_step_to_step() {
    let job = run(job(&["echo 'COLOUR=blue sky' >>\"$GITLAB_ENV\""]).after_script(&["echo \"<$COLOUR>\""]));
    assert!(job.lines().contains(&"<blue sky>".to_owned()));
}

#[test]
fn no_secret_is_left_on_the_machine() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    for script in ["true", "sleep 600"] {
        let id = gitlab.queue(
            job(&[script, "true"])
                .file("DEPLOY_KEY", "private")
                .timeout(if script == "true" { 600 } else { 2 })
                .build(),
        );
        home.start(&["--once"]).wait();
        gitlab.finished(id);
        let found = std::process::Command::new("grep")
            .args(["-rl", "private"])
            .arg(home.path("builds"))
            .output()
            .expect("run the program");
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
    assert!(!home.path("state/slot-0").exists(), "the journal of a finished job is gone");
}

#[test]
fn a_job_is_stopped_at_its_timeout() {
    let job = run_with(
        "[runners.mayfly]\nkill_grace = \"1s\"",
        job(&["trap '' TERM", "sleep 600 & wait; sleep 600"]).timeout(2),
    );
    assert_eq!((job.state.as_str(), job.failure_reason.as_deref()), ("failed", Some("job_execution_timeout")));
    assert!(job.lines().contains(&"ERROR: Job failed: execution took longer than 2s".to_owned()), "{:#?}", job.lines());
}

#[test]
fn a_script_timeout_leaves_time_for_after_script() {
    let job = run(job(&["sleep 600"])
        .variable("RUNNER_SCRIPT_TIMEOUT", "1s")
        .after_script(&["echo \"after: $CI_JOB_STATUS\""]));
    assert!(job.lines().contains(&"after: timedout".to_owned()), "{:#?}", job.lines());
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"));
}

#[test]
fn a_graceful_cancel_stops_the_script_and_runs_after_script() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["echo begun", "sleep 600"]).after_script(&["echo \"after: $CI_JOB_STATUS\""]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_for_log(id, "begun");
    gitlab.cancel(id);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "canceled");
    assert!(job.lines().contains(&"after: canceled".to_owned()), "{:#?}", job.lines());
    agent.wait();
    gitlab.assert_strict();
}

#[test]
fn a_job_that_has_ended_on_the_server_is_stopped_at_once() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let marker = home.path("after");
    let after = format!("touch {}", marker.display());
    let id = gitlab.queue(job(&["echo begun", "sleep 600"]).after_script(&[&after]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_for_log(id, "begun");
    gitlab.set_job_state(id, "failed");
    assert!(agent.wait().success());
    assert!(!marker.exists(), "after_script must not run");
    gitlab.assert_strict();
}

#[test]
fn a_runner_adds_its_own_scripts_and_variables() {
    let runner =
        "environment = [\"FROM_RUNNER=yes\"]\npre_build_script = \"echo before\"\npost_build_script = \"echo behind\"";
    let job = run_with(runner, job(&["echo \"script $FROM_RUNNER\""]));
    let lines = job.lines();
    let at = |text: &str| lines.iter().position(|line| line == text).unwrap_or_else(|| panic!("{text} in {lines:#?}"));
    assert!(at("before") < at("script yes") && at("script yes") < at("behind"));
}

#[test]
fn debug_trace_shows_the_shell_and_can_be_refused() {
    let shown = run(job(&["true"]).variable("CI_DEBUG_TRACE", "true"));
    assert!(shown.log().contains("+ true"), "{}", shown.log());
    let refused = run_with("debug_trace_disabled = true", job(&["true"]).variable("CI_DEBUG_TRACE", "true"));
    assert!(!refused.log().contains("+ true"));
    assert!(refused.log().contains("WARNING: CI_DEBUG_TRACE"));
}

#[test]
fn a_log_over_its_limit_is_cut_and_still_shows_the_result() {
    let job = run_with("output_limit = 8", job(&["head -c 100000 /dev/zero | tr '\\0' x; echo"]));
    assert!(job.log().contains("Job's log exceeded limit of 8192 bytes."));
    assert_eq!(job.lines().last().map(String::as_str), Some("Job succeeded"));
    assert!(job.trace.len() < 10_000);
}

#[test]
fn hostile_payloads_fail_their_job_and_not_the_agent() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("concurrent = 4").home(&gitlab);
    let many: Vec<_> = (0..10_000).map(|n| json!({"key": format!("V{n}"), "value": "x"})).collect();
    let big = "x".repeat(1 << 20);
    let jobs = [
        ("failed", gitlab.queue_text(|id| format!("{{\"id\": {id}, \"token\": \"glcbt-job-{id}\", \"steps\": 5}}"))),
        (
            "failed",
            gitlab.queue_text(|id| format!("{{\"id\": {id}, \"token\": \"glcbt-job-{id}\", \"steps\": [{{\"na")),
        ),
        (
            "success",
            gitlab.queue(job(&["echo ok"]).set("variables", json!(many)).variable("GIT_STRATEGY", "none").build()),
        ),
        ("failed", gitlab.queue(job(&["/bin/true"]).variable("BIG", &big).build())),
        ("success", gitlab.queue(job(&["echo \"${#BIG}\""]).variable("BIG", &big).build())),
        ("success", gitlab.queue(job(&[]).build())),
        ("failed", gitlab.queue(job(&["echo"]).variable("GIT_STRATEGY", "a\nb").build())),
        ("failed", gitlab.queue(job(&["echo"]).variable("GIT_CLONE_PATH", "/etc").build())),
        ("failed", gitlab.queue(job(&["echo"]).set("run", json!("[{\"name\": \"x\"}]")).build())),
        ("success", gitlab.queue(job(&["echo"]).variable("../../x", "y").variable("a\nb", "c").build())),
    ];
    let mut agent = home.start(&["--max-builds", "10"]);
    for (state, id) in jobs {
        let job = gitlab.finished(id);
        assert_eq!(job.state, state, "job {id}: {}", job.log());
    }
    assert!(agent.wait().success(), "{}", agent.log());
    gitlab.assert_strict();
}

#[test]
fn the_end_of_a_job_is_one_line_of_facts() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let artifact = serde_json::json!({"name": "a", "paths": ["a.txt"], "artifact_type": "archive",
        "artifact_format": "zip", "when": "always"});
    let script = job(&["echo some >a.txt", "exit 3"]).variable("CI_PROJECT_PATH", "team/demo project");
    let id = gitlab.queue(script.set("artifacts", serde_json::json!([artifact])).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(agent.wait().success());
    let log = agent.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("job ended")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    let fact = |key: &str| {
        let value = lines[0].split(' ').find_map(|word| word.strip_prefix(&format!("{key}=")));
        value.unwrap_or_else(|| panic!("no {key} in {}", lines[0])).to_owned()
    };
    assert_eq!(
        (fact("job"), fact("project"), fact("runner")),
        (id.to_string(), "team/demo_project".into(), "test".into())
    );
    assert_eq!(
        (fact("state"), fact("reason"), fact("exit_code")),
        ("failed".into(), "script_failure".into(), "3".into())
    );
    assert!(fact("duration").ends_with('s') && fact("delivery") == "delivered", "{}", lines[0]);
    let stages = fact("stages");
    let names: Vec<&str> = stages.split(',').map(|stage| stage.split(':').next().unwrap_or_default()).collect();
    let expected = [
        "prepare_executor",
        "prepare_script",
        "get_sources",
        "step_script",
        "upload_artifacts",
        "cleanup_file_variables",
    ];
    assert_eq!(names, expected);
    assert_eq!(fact("log_bytes"), job.trace.len().to_string());
    assert_eq!(fact("artifact_bytes"), job.artifacts[0].content.len().to_string());
}
