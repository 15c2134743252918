//! The results of other jobs that a job uses: artifacts and dotenv variables.

use std::collections::HashSet;

use super::{JobIndex, LocalRunner};
use crate::job::artifacts::local_archive;
use crate::local::dotenv;
use crate::pipeline::plan::Job;

impl LocalRunner<'_> {
    /// The variables of the dotenv reports of jobs.
    pub(super) fn dotenv(&self, jobs: &[(i64, String)]) -> Vec<(String, String)> {
        let reports = jobs.iter().map(|(id, _)| local_archive(&self.context.artifacts, &(*id).into(), "dotenv"));
        reports.filter_map(|path| dotenv::read(&path).ok()).flatten().collect()
    }

    /// The jobs whose artifacts a job downloads, in order, with the ids of their last attempts.
    pub(super) fn dependencies(&self, job: JobIndex) -> Vec<(i64, String)> {
        let running = &self.pipelines[job.pipeline];
        let planned = &running.plan.jobs[job.job];
        let wanted = wanted_artifacts(planned);
        let is_wanted = |other: &Job| match &wanted {
            Some(names) => names.contains(&*other.name),
            None => other.stage_index < planned.stage_index,
        };
        let ended = running.planned_jobs().filter(|(other, progress)| progress.has_ended() && is_wanted(other));
        let mut jobs: Vec<_> =
            ended.map(|(other, progress)| (other.stage_index, progress.id, other.name.to_string())).collect();
        jobs.sort_unstable_by_key(|(stage, id, _)| (*stage, *id));
        jobs.into_iter().map(|(_, id, name)| (id, name)).collect()
    }
}

/// The names of the jobs whose artifacts a job downloads (`dependencies`, `needs`); `None` for all jobs of earlier
/// stages.
fn wanted_artifacts(job: &Job) -> Option<HashSet<&str>> {
    let of_needs = job.needs.as_ref().map(|needs| {
        let with_artifacts = needs.iter().filter(|need| need.artifacts);
        with_artifacts.map(|need| &*need.job).collect::<HashSet<&str>>()
    });
    let Some(names) = &job.dependencies else { return of_needs };
    let is_allowed = |name: &&str| of_needs.as_ref().is_none_or(|needs| needs.contains(name));
    Some(names.iter().map(|name| &**name).filter(is_allowed).collect())
}
