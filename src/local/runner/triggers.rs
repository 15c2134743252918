//! Trigger jobs: start child pipelines and pipelines of mapped projects, and end with them.

use std::sync::Arc;

use super::{ANCESTORS_MOST, LEVELS, LocalRunner, Planned};
use crate::job::artifacts::local_archive;
use crate::local::children;
use crate::local::mapped::MappedCheckout;
use crate::local::schedule::{self, Conclusion, ScheduleState};
use crate::pipeline::plan::{Trigger, TriggerStrategy};
use crate::pipeline::syntax::Node;

impl<'a> LocalRunner<'a> {
    /// Marks trigger jobs as waiting for a person if their pipelines do. Returns whether one changed.
    pub(super) fn hold_triggers(&mut self) -> bool {
        let mut changed = false;
        for child in 0..self.pipelines.len() {
            let (Some((pipeline, job)), false) = (self.pipelines[child].parent, self.pipelines[child].is_reported)
            else {
                continue;
            };
            self.pipelines[child].is_reported = true;
            if self.pipelines[pipeline].schedule.state(job) == ScheduleState::Running {
                self.pipelines[pipeline].schedule.hold(job);
                changed = true;
            }
        }
        changed
    }

    pub(super) fn trigger(&mut self, pipeline: usize, job: usize, trigger: &Trigger) {
        let strategy = trigger.strategy();
        let planned = match trigger {
            Trigger::Child { .. } => self.child(pipeline, job),
            Trigger::Project { project, node, .. } => {
                let running = &self.pipelines[pipeline];
                let expand = |text: &str| running.plan.expand(&running.plan.jobs[job], text);
                let (project, branch) = (expand(project), node.get("branch").and_then(Node::printed));
                let branch = branch.map(|branch| expand(&branch));
                match self.mapped.checkout(&project, branch.as_deref()) {
                    // The warnings of the plan name it.
                    None => return self.settle(pipeline, job, Conclusion::Success),
                    Some(Ok(mapped)) => self.of_project(pipeline, job, mapped, branch),
                    Some(Err(why)) => {
                        let message = format!("the pipeline of {project} was not started: {why}");
                        self.pipelines[pipeline].jobs[job].message = Some(message);
                        return self.settle(pipeline, job, Conclusion::Success);
                    }
                }
            }
        };
        let checked = planned.and_then(|planned| {
            children::check(&planned.plan, self.options, &self.context)?;
            Ok(planned)
        });
        match checked {
            Ok(planned) => {
                let name = self.name(pipeline, job);
                let warnings = planned.plan.warnings.iter().map(|warning| format!("{name}: {warning}"));
                warnings.for_each(|warning| self.context.screen.say(&warning));
                self.add(planned);
            }
            Err(why) => return self.fail(pipeline, job, why),
        }
        if strategy == TriggerStrategy::None {
            self.settle(pipeline, job, Conclusion::Success);
        }
    }

    /// Plans the child pipeline of a trigger job.
    fn child(&mut self, pipeline: usize, job: usize) -> Result<Planned<'a>, String> {
        let id = self.pipeline_id();
        let running = &self.pipelines[pipeline];
        if running.level == LEVELS {
            return Err(format!("child pipelines can be nested at most {LEVELS} levels deep, as on GitLab"));
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
        Ok(Planned { plan, request, project, sources, parent: Some((pipeline, job)), level: running.level + 1 })
    }

    /// Plans the pipeline of another project.
    fn of_project(
        &mut self,
        pipeline: usize,
        job: usize,
        mapped: &'a MappedCheckout,
        branch: Option<String>,
    ) -> Result<Planned<'a>, String> {
        let id = self.pipeline_id();
        let ancestors = std::iter::successors(Some(pipeline), |at| self.pipelines[*at].parent.map(|(above, _)| above));
        if ancestors.count() > ANCESTORS_MOST {
            return Err(format!(
                "this trigger job would start a chain of more than {ANCESTORS_MOST} pipelines; look for pipelines that trigger each other"
            ));
        }
        let running = &self.pipelines[pipeline];
        let dotenv = self.dotenv(&self.dependencies(pipeline, job));
        let planned = &running.plan.jobs[job];
        let (plan, request) =
            children::plan_mapped(&running.plan, planned, &running.request, id, dotenv, (mapped, branch))?;
        let (project, sources) = (Arc::clone(&mapped.project), &mapped.sources);
        Ok(Planned { plan, request, project, sources, parent: Some((pipeline, job)), level: 0 })
    }

    fn pipeline_id(&mut self) -> u64 {
        self.next_id += 1;
        (self.next_id - 1).cast_unsigned()
    }

    /// Finishes trigger jobs whose pipelines have finished. Returns whether there was one.
    pub(super) fn end_children(&mut self) -> bool {
        let mut ended = false;
        for child in 0..self.pipelines.len() {
            let running = &self.pipelines[child];
            let is_over = running.schedule.is_over() && !running.jobs.iter().any(|job| job.control.is_some());
            let (Some((pipeline, job)), false, true) = (running.parent, running.is_reported, is_over) else { continue };
            let status = running.schedule.status();
            // A pipeline that a manual job blocks continues when that job starts.
            if status == schedule::PipelineStatus::Blocked && !self.is_interrupted {
                continue;
            }
            // A manual job that the user will be asked about can still start.
            let is_skipped = status == schedule::PipelineStatus::Skipped && !self.is_interrupted;
            if is_skipped && self.options.ask && self.questions.iter().any(|(asked, _)| *asked == child) {
                continue;
            }
            self.pipelines[child].is_reported = true;
            ended = true;
            if self.pipelines[pipeline].schedule.state(job) == ScheduleState::Running {
                let strategy = self.pipelines[pipeline].plan.jobs[job].trigger.as_ref().map(Trigger::strategy);
                let (conclusion, why) = match status {
                    schedule::PipelineStatus::Success => (Conclusion::Success, None),
                    _ if self.is_interrupted => (Conclusion::Canceled, Some("its downstream pipeline was canceled")),
                    schedule::PipelineStatus::Skipped if strategy == Some(TriggerStrategy::Mirror) => {
                        (Conclusion::Skipped, Some("its downstream pipeline ran no job"))
                    }
                    schedule::PipelineStatus::Skipped => {
                        (Conclusion::Failed, Some("its downstream pipeline ran no job"))
                    }
                    _ => (Conclusion::Failed, Some("its downstream pipeline failed")),
                };
                if why.is_some() {
                    self.pipelines[pipeline].jobs[job].message = why.map(str::to_owned);
                }
                self.settle(pipeline, job, conclusion);
            }
        }
        ended
    }
}
