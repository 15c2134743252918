//! Selects the jobs of a pipeline that the user names.

use std::collections::{HashMap, HashSet};

use super::args::{ExecArgs, NeedsPolicy};
use crate::local::options::{ManualPolicy, matches_pattern};
use crate::pipeline::plan::{Job, Plan, When};

/// The selection of jobs.
pub struct Selection {
    /// Indices of the jobs to run; all jobs of the pipeline if the user names none.
    pub jobs: HashSet<usize>,
    /// Jobs that the user names exactly. They run regardless of their `when`.
    pub named: HashSet<String>,
}

/// Selects the jobs to run. Fails for an unknown name, for a job that rules exclude, and for a manual job that was not
/// requested.
pub fn select(plan: &Plan, options: &ExecArgs, manual_policy: ManualPolicy) -> Result<Selection, String> {
    for wanted in options.manual.iter().filter(|wanted| !is_of_child(plan, wanted)) {
        find(plan, wanted)?;
    }
    let needs = options.needs_policy();
    if options.jobs.is_empty() && options.stage.is_empty() {
        if needs == NeedsPolicy::OnlyNeeded {
            return Err("--only-needs needs a job: name the jobs whose needs should run".to_owned());
        }
        return Ok(Selection { jobs: (0..plan.jobs.len()).collect(), named: HashSet::new() });
    }
    let own = selected_by_name(plan, options)?;
    let is_exact = |job: &&Job| options.jobs.iter().any(|wanted| **wanted == *job.name || **wanted == *job.group);
    let named: Vec<&Job> = own.iter().map(|job| &plan.jobs[*job]).filter(is_exact).collect();
    if manual_policy == ManualPolicy::OnlyNamed {
        let is_requested = |job: &Job| options.manual.iter().any(|wanted| matches_pattern(wanted, &job.name));
        if let Some(job) = named.iter().find(|job| job.when == When::Manual && !is_requested(job)) {
            return Err(format!("`{0}` is a manual job; to run it, add --manual '{0}'", job.name));
        }
    }
    let named = named.into_iter().map(|job| job.name.to_string()).collect();
    let jobs = match needs {
        NeedsPolicy::OnlyNamed => own,
        NeedsPolicy::WithNeeded => &own | &needed_jobs(plan, &own),
        NeedsPolicy::OnlyNeeded => &needed_jobs(plan, &own) - &own,
    };
    Ok(Selection { jobs, named })
}

/// The jobs that the arguments and `--stage` name.
fn selected_by_name(plan: &Plan, options: &ExecArgs) -> Result<HashSet<usize>, String> {
    let mut selected = HashSet::new();
    for wanted in &options.jobs {
        selected.extend(find(plan, wanted)?);
    }
    for stage in &options.stage {
        if !plan.stages.iter().any(|known| **known == **stage) {
            let known: Vec<&str> = plan.stages.iter().map(|stage| &**stage).collect();
            return Err(format!("unknown stage `{stage}`; the stages are: {}", known.join(", ")));
        }
        selected.extend((0..plan.jobs.len()).filter(|job| *plan.jobs[*job].stage == **stage));
    }
    Ok(selected)
}

/// Whether a name refers to a job of a child pipeline (`trigger job/job`). A child pipeline is planned when its trigger
/// job starts.
fn is_of_child(plan: &Plan, wanted: &str) -> bool {
    let is_trigger = |name: &str| plan.jobs.iter().any(|job| job.trigger.is_some() && matches_pattern(name, &job.name));
    wanted.match_indices('/').any(|(at, _)| is_trigger(&wanted[..at]))
}

/// The indices of the jobs with this name or pattern. Fails if there are none, with the reason.
fn find(plan: &Plan, wanted: &str) -> Result<Vec<usize>, String> {
    let is_meant = |job: &Job| *job.group == *wanted || matches_pattern(wanted, &job.name);
    let found: Vec<usize> = (0..plan.jobs.len()).filter(|job| is_meant(&plan.jobs[*job])).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if let Some(absent) = plan.absent.iter().find(|absent| *absent.name == *wanted) {
        let (file, line) = plan.file_and_line(absent.at);
        return Err(format!("job `{wanted}` ({file}:{line}) is not in this pipeline: {}", absent.why));
    }
    if let Some(why) = &plan.not_created {
        return Err(format!("no pipeline is created: {why}"));
    }
    let names: Vec<&str> = plan.jobs.iter().take(20).map(|job| &*job.name).collect();
    let more = if plan.jobs.len() > names.len() { ", …" } else { "" };
    Err(format!("unknown job `{wanted}`; the jobs are: {}{more}", names.join(", ")))
}

/// The jobs that must run before the jobs `own`, directly or through others: their `needs`, else the jobs whose
/// artifacts they download, else the jobs of all earlier stages.
fn needed_jobs(plan: &Plan, own: &HashSet<usize>) -> HashSet<usize> {
    let index: HashMap<&str, usize> = plan.jobs.iter().enumerate().map(|(at, job)| (&*job.name, at)).collect();
    let mut found = HashSet::new();
    let mut waiting: Vec<usize> = own.iter().copied().collect();
    while let Some(at) = waiting.pop() {
        let job = &plan.jobs[at];
        let next: Vec<usize> = match (&job.needs, &job.dependencies) {
            (Some(needs), _) => needs.iter().filter_map(|need| index.get(&*need.job).copied()).collect(),
            (None, Some(names)) => names.iter().filter_map(|name| index.get(&**name).copied()).collect(),
            (None, None) => {
                let is_before = |other: &usize| plan.jobs[*other].stage_index < job.stage_index;
                (0..plan.jobs.len()).filter(is_before).collect()
            }
        };
        waiting.extend(next.into_iter().filter(|at| found.insert(*at)));
    }
    found
}

/// Reduces a plan to the selected jobs.
pub fn reduce(mut plan: Plan, jobs: &HashSet<usize>) -> Plan {
    let mut indices = 0..;
    plan.jobs.retain(|_| indices.next().is_some_and(|index| jobs.contains(&index)));
    plan
}
