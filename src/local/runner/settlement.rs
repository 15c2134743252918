//! The end of a job: retries it, or records its result and what follows from it.

use super::LocalRunner;
use crate::failure::FailureReason;
use crate::local::attempt::AttemptResult;
use crate::local::conclusion::{retries, status_of};
use crate::local::schedule::{Conclusion, ScheduleState};
use crate::pipeline::plan::AllowFailure;

impl LocalRunner<'_> {
    /// Retries a job whose attempt has ended, or records its final result.
    pub(super) fn finish_attempt(&mut self, pipeline: usize, job: usize, result: AttemptResult) {
        let running = &mut self.pipelines[pipeline];
        let planned = &running.plan.jobs[job];
        let progress = &mut running.jobs[job];
        progress.control = None;
        let failure = result.failure;
        let is_stopped = self.is_interrupted || running.schedule.is_canceled();
        progress.message.clone_from(&result.extracted.message);
        progress.result = Some(result);
        let conclusion = match failure {
            None => Conclusion::Success,
            Some((FailureReason::RunnerInterrupted | FailureReason::JobCanceled, _)) if is_stopped => {
                Conclusion::Canceled
            }
            Some((reason, code)) => {
                if !is_stopped && progress.attempts <= retries(planned, reason, code) {
                    return self.start(pipeline, job);
                }
                if planned.allow_failure.forgives(code) { Conclusion::Warning } else { Conclusion::Failed }
            }
        };
        self.settle(pipeline, job, conclusion);
    }

    /// Records the final result of a job.
    pub(super) fn settle(&mut self, pipeline: usize, job: usize, conclusion: Conclusion) {
        let running = &mut self.pipelines[pipeline];
        let planned = &running.plan.jobs[job];
        let conclusion = match conclusion {
            Conclusion::Failed if planned.allow_failure == AllowFailure::Yes => Conclusion::Warning,
            conclusion => conclusion,
        };
        running.schedule.end(job, conclusion);
        let progress = &mut running.jobs[job];
        let duration = progress.began.map(|began| began.elapsed()).unwrap_or_default();
        let note = match conclusion {
            Conclusion::Success => String::new(),
            _ => progress.message.clone().unwrap_or_default(),
        };
        progress.duration = Some(duration);
        self.context.screen.end(progress.key, status_of(ScheduleState::Done(conclusion)), duration, &note);
        if conclusion == Conclusion::Success
            && let Some(message) = progress.message.take()
        {
            self.context.screen.say(&message);
        }
        self.unpack_artifacts(pipeline, job);
        if conclusion == Conclusion::Failed && self.pipelines[pipeline].plan.cancel_on_job_failure {
            let running = &mut self.pipelines[pipeline];
            running.schedule.cancel();
            let controls = running.jobs.iter().filter_map(|job| job.control.as_ref());
            controls.for_each(|control| control.interrupt("another job failed (workflow:auto_cancel:on_job_failure)"));
        }
    }

    /// Unpacks the artifacts of a job into the user's directory.
    fn unpack_artifacts(&self, pipeline: usize, job: usize) {
        let Some(directory) = &self.options.artifacts else { return };
        let id = self.pipelines[pipeline].jobs[job].id;
        if let Err(why) = crate::local::artifacts::unpack(&self.context.artifacts, id, directory) {
            let name = self.name(pipeline, job);
            self.context
                .screen
                .say(&format!("warning: cannot unpack the artifacts of {name} into {}: {why}", directory.display()));
        }
    }

    /// Fails a job that could not start.
    pub(super) fn fail(&mut self, pipeline: usize, job: usize, why: String) {
        let progress = &mut self.pipelines[pipeline].jobs[job];
        progress.control = None;
        progress.message = Some(why);
        self.settle(pipeline, job, Conclusion::Failed);
    }
}
