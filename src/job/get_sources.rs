//! The stage `get_sources`: the scripts before git, git, and the scripts after git.

use super::context::Job;
use super::file_step::file_step;
use super::file_task::FileTask;
use super::flags;
use super::script::{AgentText, LineGroup};
use super::scripts::script_program;
use super::sources::setting_scripts::{self, ListedSettings};
use super::sources::{self, GitStrategy};
use super::sources_plan;
use super::stage_result::StageResult;
use super::steps::StepRunner;
use super::stop_policy::StopPolicy;
use crate::sys::BootTime;

/// The steps of the stage.
#[derive(Clone, Copy)]
enum Step {
    Before,
    Sources,
    After,
}

/// Runs one attempt. Steps that an earlier agent has completed do not run again.
pub fn run(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    if sources_plan::is_skipped(job) {
        return Ok(());
    }
    let plan = sources_plan::plan(job)?;
    let hooks = Hooks::new(job, plan.strategy);
    let deadline = job.deadlines.sources(&mut steps.journal.progress.sources_deadline, BootTime::now());
    let has_lines = |groups: &[LineGroup<'_>]| groups.iter().any(|group| !group.lines.is_empty());
    let has_script_before = has_lines(&hooks.before);
    let wanted = [(Step::Before, has_script_before), (Step::Sources, true), (Step::After, has_lines(&hooks.after))];
    let wanted = wanted.into_iter().filter_map(|(step, is_wanted)| is_wanted.then_some(step));
    for (index, step) in wanted.enumerate().skip(steps.journal.progress.steps_done()) {
        let progress = &steps.journal.progress;
        let program = match step {
            Step::Before => script_program(job, progress, &hooks.before, None, &list_settings(job)),
            Step::Sources => {
                let mut plan = plan.clone();
                if has_script_before {
                    add_settings(job, &mut plan);
                }
                file_step(job, FileTask::Sources(plan))?
            }
            Step::After => {
                script_program(job, progress, &hooks.after, Some(job.project_directory()), &AgentText::default())
            }
        };
        steps.run(program, &deadline, StopPolicy::CancelOrEviction)?;
        steps.settle_step(index + 1)?;
    }
    Ok(())
}

/// The text that the agent appends to the scripts before git: it lists their git settings for [`add_settings`].
fn list_settings(job: &Job<'_>) -> AgentText {
    let temporary = job.settings.dirs.as_seen_by_job(&job.settings.dirs.temporary).display().to_string();
    let after = setting_scripts::listing_commands(&temporary, listed_settings(job));
    AgentText { before: setting_scripts::removal_commands(&temporary), after }
}

/// Adds the git settings that the scripts before git made to the plan.
fn add_settings(job: &Job<'_>, plan: &mut sources::SourcesPlan) {
    let (dirs, user) = (&job.settings.dirs, job.context.executor.user());
    let user_list = match listed_settings(job) {
        ListedSettings::Repository => String::new(),
        ListedSettings::RepositoryAndUser => dirs.read_temporary(setting_scripts::USER_LIST, user),
    };
    plan.add_listed_settings(&dirs.read_temporary(setting_scripts::TEMPLATE_LIST, user), &user_list);
}

/// The settings that the scripts before git must list, because the agent's git does not read them by itself. It does
/// not read the user's settings if git runs outside the container, or if the settings are in a file of the job.
fn listed_settings(job: &Job<'_>) -> ListedSettings {
    match job.settings.dirs.is_in_container() || job.settings.flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS) {
        true => ListedSettings::RepositoryAndUser,
        false => ListedSettings::Repository,
    }
}

/// The scripts before and after git.
struct Hooks<'a> {
    before: [LineGroup<'a>; 2],
    after: [LineGroup<'a>; 2],
}

impl Hooks<'_> {
    fn new(job: &Job<'_>, strategy: GitStrategy) -> Self {
        let runner = &job.context.runner;
        let has_hooks = strategy != GitStrategy::Empty;
        let of_runner = |text: &Option<String>| -> Vec<String> { text.iter().filter(|_| has_hooks).cloned().collect() };
        let of_job = |name: &str| if has_hooks { job.payload.hook(name).to_vec() } else { Vec::new() };
        let before = [
            LineGroup { origin: "pre_clone_script", lines: of_runner(&runner.hooks.pre_get_sources) },
            LineGroup { origin: "pre_clone_script", lines: of_job("pre_get_sources_script") },
        ];
        let after = [
            LineGroup { origin: "post_clone_script", lines: of_job("post_get_sources_script") },
            LineGroup { origin: "post_clone_script", lines: of_runner(&runner.hooks.post_get_sources) },
        ];
        Self { before, after }
    }
}
