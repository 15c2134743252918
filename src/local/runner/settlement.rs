//! The end of a job: retries it, or records its result and what follows from it.

use super::{JobIndex, LocalRunner};
use crate::failure::FailureReason;
use crate::local::attempt::AttemptResult;
use crate::local::conclusion::{final_status, max_retries};
use crate::local::schedule::{Conclusion, ScheduleState};
use crate::pipeline::plan::AllowFailure;

impl LocalRunner<'_> {
    /// Retries a job whose attempt has ended, or records its final result.
    pub(super) fn finish_attempt(&mut self, job: JobIndex, result: AttemptResult) {
        let running = &mut self.pipelines[job.pipeline];
        let planned = &running.plan.jobs[job.job];
        let progress = &mut running.jobs[job.job];
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
                if !is_stopped && progress.attempts <= max_retries(planned, reason, code) {
                    return self.start(job);
                }
                if planned.allow_failure.forgives(code) { Conclusion::Warning } else { Conclusion::Failed }
            }
        };
        self.settle(job, conclusion);
    }

    /// Records the final result of a job.
    pub(super) fn settle(&mut self, job: JobIndex, conclusion: Conclusion) {
        let running = &mut self.pipelines[job.pipeline];
        let planned = &running.plan.jobs[job.job];
        let conclusion = match conclusion {
            Conclusion::Failed if planned.allow_failure == AllowFailure::Yes => Conclusion::Warning,
            conclusion => conclusion,
        };
        running.schedule.end(job.job, conclusion);
        let progress = &mut running.jobs[job.job];
        let duration = progress.began.map(|began| began.elapsed()).unwrap_or_default();
        let note = match conclusion {
            Conclusion::Success => String::new(),
            _ => progress.message.clone().unwrap_or_default(),
        };
        progress.duration = Some(duration);
        self.context.screen.end_job(progress.key, final_status(ScheduleState::Done(conclusion)), duration, &note);
        // A trigger job also succeeds if its pipeline was not started; the message says why.
        if conclusion == Conclusion::Success
            && let Some(message) = progress.message.take()
        {
            self.context.screen.show_message(&message);
        }
        self.unpack_artifacts(job);
        let running = &mut self.pipelines[job.pipeline];
        if conclusion == Conclusion::Failed && running.plan.cancel_on_job_failure {
            running.cancel("another job failed (workflow:auto_cancel:on_job_failure)");
        }
    }

    /// Unpacks the artifacts of a job into the user's directory (`--artifacts`).
    fn unpack_artifacts(&self, job: JobIndex) {
        let Some(directory) = &self.options.artifacts else { return };
        let id = self.progress(job).id;
        if let Err(why) = crate::local::artifacts::unpack(&self.context.artifacts, id, directory) {
            let name = self.name(job);
            self.context.screen.show_message(&format!(
                "warning: cannot unpack the artifacts of {name} into {}: {why}",
                directory.display()
            ));
        }
    }

    /// Fails a job that could not start.
    pub(super) fn fail(&mut self, job: JobIndex, why: String) {
        let progress = self.progress_mut(job);
        progress.control = None;
        progress.message = Some(why);
        self.settle(job, Conclusion::Failed);
    }
}
