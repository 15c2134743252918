//! The stage `get_sources`: the scripts before git, git, and the scripts after git.

use super::context::Job;
use super::file_step::file_step;
use super::file_task;
use super::flags;
use super::script::{AgentText, LineGroup};
use super::scripts::script_task;
use super::sources::setting_scripts::{self, ListedSettings};
use super::sources::{self, GitStrategy};
use super::stage_result::StageResult;
use super::steps::StepRunner;
use super::stop_policy::StopPolicy;
use crate::failure::JobError;
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
    if is_skipped(job) {
        return Ok(());
    }
    let plan = plan(job)?;
    let hooks = Hooks::of(job, plan.strategy);
    let limit = job.deadlines.sources(&mut steps.journal.progress.sources_deadline, BootTime::now());
    let has_lines = |groups: &[LineGroup<'_>]| groups.iter().any(|group| !group.lines.is_empty());
    let has_script_before = has_lines(&hooks.before);
    let wanted = [(Step::Before, has_script_before), (Step::Sources, true), (Step::After, has_lines(&hooks.after))];
    let wanted = wanted.into_iter().filter_map(|(step, is_wanted)| is_wanted.then_some(step));
    for (index, step) in wanted.enumerate().skip(steps.journal.progress.steps_done()) {
        let progress = &steps.journal.progress;
        let task = match step {
            Step::Before => script_task(job, progress, &hooks.before, None, &list_settings(job)),
            Step::Sources => {
                let mut plan = plan.clone();
                if has_script_before {
                    add_settings(job, &mut plan);
                }
                file_step(job, &file_task::FileTask::Sources(plan))?
            }
            Step::After => {
                script_task(job, progress, &hooks.after, Some(job.project_directory()), &AgentText::default())
            }
        };
        steps.run(task, &limit, StopPolicy::CancelOrEviction)?;
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

/// The settings that the scripts before git must list, because the agent's git does not read them by itself. It does not
/// read the user's settings if git runs outside the container, or if the settings are in a file of the job.
fn listed_settings(job: &Job<'_>) -> ListedSettings {
    let is_in_container = job.settings.dirs.container_builds.is_some();
    match is_in_container || job.settings.flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS) {
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
    fn of(job: &Job<'_>, strategy: GitStrategy) -> Self {
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

/// True if the job fetches nothing, removes nothing and has no scripts before or after git.
pub fn is_skipped(job: &Job<'_>) -> bool {
    let strategy = sources::strategy(&job.payload, &job.settings.variables);
    let runner = &job.context.runner;
    let has_hooks = !job.payload.hooks.iter().all(|hook| hook.script.is_empty())
        || runner.hooks.pre_get_sources.is_some()
        || runner.hooks.post_get_sources.is_some();
    !has_hooks
        && !job.settings.flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS)
        && strategy.is_ok_and(|strategy| strategy == GitStrategy::None)
}

/// The plan for git. Errors: the job requests something that is not possible.
pub fn plan(job: &Job<'_>) -> Result<sources::SourcesPlan, JobError> {
    let (settings, context) = (&job.settings, job.context);
    let sources_settings = sources::SourcesSettings {
        project: settings.dirs.project.clone(),
        temporary: settings.dirs.temporary.clone(),
        temporary_in_container: settings
            .dirs
            .container_builds
            .as_ref()
            .map(|_| settings.dirs.as_seen_by_job(&settings.dirs.temporary)),
        server: context.runner.url.clone(),
        clone_url: context.runner.clone_url.clone(),
        ca_certificates: settings.ca_certificates.clone(),
        correlation_id: match settings.flags.is_on(flags::FF_USE_GITALY_CORRELATION_ID) {
            true => job.request_id.clone(),
            false => String::new(),
        },
        environment: context.executor.environment(),
        without_tokens: settings.flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS),
        record_key: (!has_services(job)).then(|| sources::record_key(context.runner.key().reveal())),
        reuse: !is_shared_with_unprotected(job),
    };
    sources::plan(&job.payload, &settings.variables, sources_settings)
}

/// Whether services of the job could change files of the checkout while git works on it.
fn has_services(job: &Job<'_>) -> bool {
    let configured = &job.context.runner.docker.services;
    job.context.executor.uses_containers() && !(job.payload.services.is_empty() && configured.is_empty())
}

/// Whether a protected job uses a custom directory that unprotected jobs can choose as well.
fn is_shared_with_unprotected(job: &Job<'_>) -> bool {
    let is_chosen = job.settings.variables.value("GIT_CLONE_PATH").is_some_and(|path| !path.is_empty());
    is_chosen && job.context.executor.shares_builds(job.context) && job.payload.is_protected()
}
