//! Trigger jobs: start child pipelines and pipelines of mapped projects, and end with them.

use std::sync::Arc;

use super::LocalRunner;
use super::pipelines::PlannedPipeline;
use crate::job::artifacts::local_archive;
use crate::local::children;
use crate::local::mapped::MappedCheckout;
use crate::local::options::ManualPolicy;
use crate::local::schedule::{Conclusion, PipelineStatus, ScheduleState};
use crate::pipeline::plan::{Trigger, TriggerStrategy};
use crate::pipeline::syntax::Node;

/// The nesting depth of child pipelines, as on GitLab.
const MAX_LEVELS: usize = 2;
/// The number of pipelines above one that a job starts, so that projects cannot trigger each other forever.
const MAX_ANCESTORS: usize = 10;

impl<'a> LocalRunner<'a> {
    /// Marks trigger jobs as waiting for a person if their pipelines do. Returns whether one changed.
    pub(super) fn mark_blocked_triggers(&mut self) -> bool {
        let mut changed = false;
        for child in 0..self.pipelines.len() {
            let (Some((pipeline, job)), false) = (self.pipelines[child].parent, self.pipelines[child].is_reported)
            else {
                continue;
            };
            self.pipelines[child].is_reported = true;
            if self.pipelines[pipeline].schedule.state(job) == ScheduleState::Running {
                self.pipelines[pipeline].schedule.mark_as_manual(job);
                changed = true;
            }
        }
        changed
    }

    /// Plans and adds the pipeline of a trigger job. Without a strategy, the job ends at once.
    pub(super) fn run_trigger(&mut self, pipeline: usize, job: usize, trigger: &Trigger) {
        let planned = match trigger {
            Trigger::Child { .. } => self.plan_child(pipeline, job).map(Some),
            Trigger::Project { project, node, .. } => self.plan_project(pipeline, job, project, node),
        };
        let checked = planned.and_then(|planned| {
            planned.iter().try_for_each(|planned| children::check(&planned.plan, self.options, &self.context))?;
            Ok(planned)
        });
        match checked {
            Ok(Some(planned)) => {
                let name = self.name(pipeline, job);
                let warnings = planned.plan.warnings.iter().map(|warning| format!("{name}: {warning}"));
                warnings.for_each(|warning| self.context.screen.say(&warning));
                self.add_pipeline(planned);
                if trigger.strategy() == TriggerStrategy::None {
                    self.settle(pipeline, job, Conclusion::Success);
                }
            }
            Ok(None) => self.settle(pipeline, job, Conclusion::Success),
            Err(why) => self.fail(pipeline, job, why),
        }
    }

    /// Plans the pipeline of another project; `None` if the user maps no usable checkout of the project. The warnings
    /// of the plan name a project without a mapping.
    fn plan_project(
        &mut self,
        pipeline: usize,
        job: usize,
        project: &str,
        trigger: &Node,
    ) -> Result<Option<PlannedPipeline<'a>>, String> {
        let running = &self.pipelines[pipeline];
        let expand = |text: &str| running.plan.expand(&running.plan.jobs[job], text);
        let project = expand(project);
        let branch = trigger.get("branch").and_then(Node::printed).map(|branch| expand(&branch));
        match self.mapped.checkout(&project, branch.as_deref()) {
            None => Ok(None),
            Some(Ok(mapped)) => self.plan_mapped(pipeline, job, mapped, branch).map(Some),
            Some(Err(why)) => {
                let message = format!("the pipeline of {project} was not started: {why}");
                self.pipelines[pipeline].jobs[job].message = Some(message);
                Ok(None)
            }
        }
    }

    /// Plans the child pipeline of a trigger job.
    fn plan_child(&mut self, pipeline: usize, job: usize) -> Result<PlannedPipeline<'a>, String> {
        let id = self.pipeline_id();
        let running = &self.pipelines[pipeline];
        if running.level == MAX_LEVELS {
            return Err(format!("child pipelines can be nested at most {MAX_LEVELS} levels deep, as on GitLab"));
        }
        for (planned, progress) in running.plan.jobs.iter().zip(&running.jobs).filter(|(_, progress)| progress.id > 0) {
            let archive = local_archive(&self.context.artifacts, &progress.id.into(), "archive");
            if archive.exists() {
                running.sources.set_artifact(&planned.name, archive);
            }
        }
        let dotenv = self.dotenv(&self.dependencies(pipeline, job));
        let (plan, request) = children::plan(&running.plan, &running.plan.jobs[job], &running.request, id, dotenv)?;
        let (project, sources) = (Arc::clone(&running.project), running.sources);
        Ok(PlannedPipeline { plan, request, project, sources, parent: Some((pipeline, job)), level: running.level + 1 })
    }

    /// Plans the pipeline of a mapped checkout.
    fn plan_mapped(
        &mut self,
        pipeline: usize,
        job: usize,
        mapped: &'a MappedCheckout,
        branch: Option<String>,
    ) -> Result<PlannedPipeline<'a>, String> {
        let id = self.pipeline_id();
        let ancestors = std::iter::successors(Some(pipeline), |at| self.pipelines[*at].parent.map(|(above, _)| above));
        if ancestors.count() > MAX_ANCESTORS {
            return Err(format!(
                "this trigger job would start a chain of more than {MAX_ANCESTORS} pipelines; look for pipelines that \
                 trigger each other"
            ));
        }
        let running = &self.pipelines[pipeline];
        let dotenv = self.dotenv(&self.dependencies(pipeline, job));
        let planned = &running.plan.jobs[job];
        let (plan, request) =
            children::plan_mapped(&running.plan, planned, &running.request, id, dotenv, (mapped, branch))?;
        let (project, sources) = (Arc::clone(&mapped.project), &mapped.sources);
        Ok(PlannedPipeline { plan, request, project, sources, parent: Some((pipeline, job)), level: 0 })
    }

    fn pipeline_id(&mut self) -> u64 {
        self.next_id += 1;
        (self.next_id - 1).cast_unsigned()
    }

    /// Finishes trigger jobs whose pipelines have finished. Returns whether there was one.
    pub(super) fn finish_triggers(&mut self) -> bool {
        let mut has_finished = false;
        for child in 0..self.pipelines.len() {
            let Some((pipeline, job)) = self.pipelines[child].parent.filter(|_| self.has_new_result(child)) else {
                continue;
            };
            self.pipelines[child].is_reported = true;
            has_finished = true;
            if self.pipelines[pipeline].schedule.state(job) == ScheduleState::Running {
                let (conclusion, why) = self.conclusion_of_trigger(pipeline, job, child);
                if why.is_some() {
                    self.pipelines[pipeline].jobs[job].message = why.map(str::to_owned);
                }
                self.settle(pipeline, job, conclusion);
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
                let is_of_child = |(pipeline, _): &(usize, usize)| *pipeline == child;
                self.options.manual_policy != ManualPolicy::Ask || !self.questions.iter().any(is_of_child)
            }
            _ => true,
        }
    }

    /// The result of a trigger job that waits for its downstream pipeline, and the reason for a failure.
    fn conclusion_of_trigger(&self, pipeline: usize, job: usize, child: usize) -> (Conclusion, Option<&'static str>) {
        let strategy = self.pipelines[pipeline].plan.jobs[job].trigger.as_ref().map(Trigger::strategy);
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
