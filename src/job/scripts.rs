//! The stages that run the job's scripts: its steps and after_script.

use super::context::Job;
use super::flags;
use super::script::{self, AgentText, CommandTrace, LineGroup, MultiLineCommands, ScriptSettings, StatusCheck};
use super::stage_result::StageResult;
use super::steps::StepRunner;
use super::stop_policy::StopPolicy;
use crate::journal::Progress;
use crate::shim::spec::{OutputStreams, StepProgram};
use crate::sys::BootTime;

/// One step of the payload, between the scripts that the runner puts around each.
pub fn run_step(steps: &mut StepRunner<'_>, index: usize) -> StageResult {
    let job = steps.job;
    let step = &job.payload.steps[index];
    let runner = &job.context.runner;
    let own = |text: &Option<String>| -> Vec<String> { text.iter().cloned().collect() };
    let lines = match step.name == "release" {
        true => step.script.iter().map(|line| job.settings.variables.expand(line)).collect(),
        false => step.script.clone(),
    };
    let groups = [
        LineGroup { origin: "pre_build_script", lines: own(&runner.hooks.pre_build) },
        LineGroup { origin: "script_step", lines },
        LineGroup { origin: "post_build_script", lines: own(&runner.hooks.post_build) },
    ];
    let program =
        script_program(job, &steps.journal.progress, &groups, Some(job.project_directory()), &AgentText::default());
    let scripts = steps.journal.progress.scripts.get_or_insert_default();
    let deadline = job.deadlines.scripts(&mut scripts.deadline, BootTime::now());
    steps.run(program, &deadline, StopPolicy::CancelOrEviction)
}

/// Runs after_script in a new shell, regardless of the result of the scripts.
pub fn run_after_script(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    let lines = job.payload.step("after_script").map(|step| step.script.clone()).unwrap_or_default();
    let groups = [LineGroup { origin: "after_script_step", lines }];
    let text = AgentText { before: script::print_line("Running after script..."), after: String::new() };
    let program = script_program(job, &steps.journal.progress, &groups, Some(job.project_directory()), &text);
    let deadline = job.deadlines.after_script(BootTime::now());
    steps.run(program, &deadline, StopPolicy::EvictionOnly)
}

/// A script of the job as its executor runs it. `directory` is where its lines run.
pub fn script_program(
    job: &Job<'_>,
    progress: &Progress,
    groups: &[LineGroup<'_>],
    directory: Option<String>,
    own: &AgentText,
) -> StepProgram {
    let settings = &job.settings;
    let script_settings = ScriptSettings {
        exports: settings.variables.exports(),
        files: settings.variables.files(),
        temporary: settings.dirs.as_seen_by_job(&settings.dirs.temporary).display().to_string(),
        directory,
        trace: if settings.debug { CommandTrace::On } else { CommandTrace::Off },
        status_check: match settings.flags.is_on(flags::FF_ENABLE_BASH_EXIT_CODE_CHECK) {
            true => StatusCheck::AfterEachLine,
            false => StatusCheck::ByShell,
        },
        multi_line: match settings.flags.is_on(flags::FF_SCRIPT_SECTIONS) && job.payload.features.trace_sections {
            true => MultiLineCommands::Section,
            false => MultiLineCommands::FirstLine,
        },
    };
    // With timestamps, each line shows its stream. Without timestamps, or if the shell's trace is in the output, the
    // exact order of the two streams matters more than their separation.
    let streams = match settings.filters.timestamps && !settings.debug {
        true => OutputStreams::Separate,
        false => OutputStreams::Merged,
    };
    let text = script::text(&script_settings, groups, own);
    job.context.executor.script(job, progress, text, streams)
}
