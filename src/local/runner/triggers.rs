//! Trigger jobs: start child pipelines and pipelines of mapped projects, and end with them.

use std::sync::Arc;

use super::pipelines::{PlannedPipeline, RunningPipeline};
use super::{JobIndex, LocalRunner};
use crate::job::artifacts::local_archive;
use crate::local::downstream;
use crate::local::mapped::MappedCheckout;
use crate::local::options::ManualPolicy;
use crate::local::schedule::{Conclusion, PipelineStatus, ScheduleState};
use crate::pipeline::plan::{Trigger, TriggerStrategy};
use crate::pipeline::syntax::Node;

/// The largest nesting depth of child pipelines, as on GitLab.
const MAX_LEVELS: usize = 2;
/// The largest number of pipelines in a chain of triggers. Without it, projects could trigger each other forever.
const MAX_ANCESTORS: usize = 10;

impl<'a> LocalRunner<'a> {
    /// Marks trigger jobs as waiting for a person if their pipelines do. Returns whether one changed.
    pub(super) fn mark_blocked_triggers(&mut self) -> bool {
        let mut changed = false;
        for child in 0..self.pipelines.len() {
            let Some(trigger) = self.pipelines[child].parent.filter(|_| !self.pipelines[child].is_reported) else {
                continue;
            };
            self.pipelines[child].is_reported = true;
            let schedule = &mut self.pipelines[trigger.pipeline].schedule;
            if schedule.state(trigger.job) == ScheduleState::Running {
                schedule.mark_as_manual(trigger.job);
                changed = true;
            }
        }
        changed
    }

    /// Plans and adds the pipeline of a trigger job. Without a strategy, the job ends at once.
    pub(super) fn run_trigger(&mut self, job: JobIndex, trigger: &Trigger) {
        let planned = match trigger {
            Trigger::Child { .. } => self.plan_child(job).map(Some),
            Trigger::Project { project, node, .. } => self.plan_project(job, project, node),
        };
        let checked = planned.and_then(|planned| {
            planned.iter().try_for_each(|planned| downstream::check(&planned.plan, self.options, &self.context))?;
            Ok(planned)
        });
        match checked {
            Ok(Some(planned)) => {
                let name = self.name(job);
                let warnings = planned.plan.warnings.iter().map(|warning| format!("{name}: {warning}"));
                warnings.for_each(|warning| self.context.screen.show_message(&warning));
                self.add_pipeline(planned);
                if trigger.strategy() == TriggerStrategy::None {
                    self.settle(job, Conclusion::Success);
                }
            }
            Ok(None) => self.settle(job, Conclusion::Success),
            Err(why) => self.fail(job, why),
        }
    }

    /// Plans the pipeline of another project; `None` if the user maps no usable checkout of the project. The warnings
    /// of the plan name a project without a mapping.
    fn plan_project(
        &mut self,
        job: JobIndex,
        project: &str,
        trigger: &Node,
    ) -> Result<Option<PlannedPipeline<'a>>, String> {
        let plan = &self.pipelines[job.pipeline].plan;
        let expand = |text: &str| plan.expand(&plan.jobs[job.job], text);
        let project = expand(project);
        let branch = trigger.get("branch").and_then(Node::printed).map(|branch| expand(&branch));
        match self.mapped.checkout(&project, branch.as_deref()) {
            None => Ok(None),
            Some(Ok(mapped)) => self.plan_mapped(job, mapped, branch).map(Some),
            Some(Err(why)) => {
                let message = format!("the pipeline of {project} was not started: {why}");
                self.progress_mut(job).message = Some(message);
                Ok(None)
            }
        }
    }

    /// Plans the child pipeline of a trigger job.
    fn plan_child(&mut self, job: JobIndex) -> Result<PlannedPipeline<'a>, String> {
        let id = self.take_id().cast_unsigned();
        let running = &self.pipelines[job.pipeline];
        if running.level == MAX_LEVELS {
            return Err(format!("child pipelines can be nested at most {MAX_LEVELS} levels deep, as on GitLab"));
        }
        self.register_artifacts(running);
        let dotenv = self.dotenv(&self.dependencies(job));
        let planned = &running.plan.jobs[job.job];
        let (plan, request) = downstream::plan_child(&running.plan, planned, &running.request, id, dotenv)?;
        let (project, sources) = (Arc::clone(&running.project), running.sources);
        Ok(PlannedPipeline { plan, request, project, sources, parent: Some(job), level: running.level + 1 })
    }

    /// Registers the artifacts of a pipeline's jobs, which its child pipelines can include
    /// (`trigger:include:artifact`).
    fn register_artifacts(&self, running: &RunningPipeline<'_>) {
        for (planned, progress) in running.planned_jobs().filter(|(_, progress)| progress.id > 0) {
            let archive = local_archive(&self.context.artifacts, &progress.id.into(), "archive");
            if archive.exists() {
                running.sources.set_artifact(&planned.name, archive);
            }
        }
    }

    /// Plans the pipeline of a mapped checkout.
    fn plan_mapped(
        &mut self,
        job: JobIndex,
        mapped: &'a MappedCheckout,
        branch: Option<String>,
    ) -> Result<PlannedPipeline<'a>, String> {
        let id = self.take_id().cast_unsigned();
        let parent_of = |pipeline: &usize| self.pipelines[*pipeline].parent.map(|trigger| trigger.pipeline);
        let ancestors = std::iter::successors(Some(job.pipeline), parent_of);
        if ancestors.count() > MAX_ANCESTORS {
            return Err(format!(
                "this trigger job would start a chain of more than {MAX_ANCESTORS} pipelines; look for pipelines that \
                 trigger each other"
            ));
        }
        let running = &self.pipelines[job.pipeline];
        let dotenv = self.dotenv(&self.dependencies(job));
        let planned = &running.plan.jobs[job.job];
        let (plan, request) =
            downstream::plan_mapped(&running.plan, planned, &running.request, id, dotenv, mapped, branch)?;
        let (project, sources) = (Arc::clone(&mapped.project), &mapped.sources);
        Ok(PlannedPipeline { plan, request, project, sources, parent: Some(job), level: 0 })
    }

    /// Finishes trigger jobs whose pipelines have finished. Returns whether there was one.
    pub(super) fn finish_triggers(&mut self) -> bool {
        let mut has_finished = false;
        for child in 0..self.pipelines.len() {
            let Some(trigger) = self.pipelines[child].parent.filter(|_| self.has_new_result(child)) else { continue };
            self.pipelines[child].is_reported = true;
            has_finished = true;
            if self.pipelines[trigger.pipeline].schedule.state(trigger.job) == ScheduleState::Running {
                let (conclusion, why) = self.conclusion_of_trigger(trigger, child);
                if why.is_some() {
                    self.progress_mut(trigger).message = why.map(str::to_owned);
                }
                self.settle(trigger, conclusion);
            }
        }
        has_finished
    }

    /// Whether a downstream pipeline has a final result that its trigger job does not have yet.
    fn has_new_result(&self, child: usize) -> bool {
        let running = &self.pipelines[child];
        if running.is_reported || !running.schedule.is_over() || running.jobs.iter().any(|job| job.control.is_some()) {
            return false;
        }
        match running.schedule.status() {
            _ if self.is_interrupted => true,
            // The pipeline continues when the manual job starts that blocks it.
            PipelineStatus::Blocked => false,
            // A manual job that the user will be asked about can still start.
            PipelineStatus::Skipped => {
                let is_of_child = |job: &JobIndex| job.pipeline == child;
                self.options.manual_policy != ManualPolicy::Ask || !self.questions.iter().any(is_of_child)
            }
            _ => true,
        }
    }

    /// The result of a trigger job that waits for its downstream pipeline, and the reason for a failure.
    fn conclusion_of_trigger(&self, trigger: JobIndex, child: usize) -> (Conclusion, Option<&'static str>) {
        let planned = &self.pipelines[trigger.pipeline].plan.jobs[trigger.job];
        let strategy = planned.trigger.as_ref().map(Trigger::strategy);
        match self.pipelines[child].schedule.status() {
            PipelineStatus::Success => (Conclusion::Success, None),
            _ if self.is_interrupted => (Conclusion::Canceled, Some("its downstream pipeline was canceled")),
            PipelineStatus::Skipped if strategy == Some(TriggerStrategy::Mirror) => {
                (Conclusion::Skipped, Some("its downstream pipeline ran no job"))
            }
            PipelineStatus::Skipped => (Conclusion::Failed, Some("its downstream pipeline ran no job")),
            _ => (Conclusion::Failed, Some("its downstream pipeline failed")),
        }
    }
}
