//! Questions to the user, and interrupts by the user.

use std::thread;

use super::{LocalRunner, RunEvent};
use crate::local::options::ManualPolicy;
use crate::local::results::RunStatus;
use crate::local::schedule::ScheduleState;

impl LocalRunner<'_> {
    /// Asks about manual jobs when no other job can run. Returns false if there is no question.
    pub(super) fn ask(&mut self) -> bool {
        if self.options.manual_policy != ManualPolicy::Ask || self.is_interrupted {
            return false;
        }
        if self.is_asking {
            return true;
        }
        let is_open =
            |(pipeline, job): &(usize, usize)| self.pipelines[*pipeline].schedule.state(*job) == ScheduleState::Manual;
        self.questions.retain(is_open);
        let Some(&(pipeline, job)) = self.questions.first() else { return false };
        let question = self.pipelines[pipeline].plan.jobs[job].manual_confirmation.clone();
        let question = question.map(|question| format!(" {question}")).unwrap_or_default();
        self.context.screen.say(&format!("Start the manual job `{}`?{question} [y/N]", self.name(pipeline, job)));
        self.is_asking = true;
        let sender = self.sender.clone();
        thread::spawn(move || {
            let mut line = String::new();
            // A closed standard input is a refusal, as an empty line is.
            let _ = std::io::stdin().read_line(&mut line);
            sender.send(RunEvent::Answer(line))
        });
        true
    }

    /// Starts the manual job that the user was asked about, if the user agrees.
    pub(super) fn process_answer(&mut self, line: &str) {
        self.is_asking = false;
        if self.questions.is_empty() {
            return;
        }
        let (pipeline, job) = self.questions.remove(0);
        if matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            self.pipelines[pipeline].schedule.start(job);
        }
    }

    /// Interrupts all jobs; the second interrupt exits immediately.
    pub(super) fn interrupt(&mut self) {
        if self.is_interrupted {
            self.context.screen.finish();
            // Running jobs end with this process; the guard process cleans up.
            std::process::exit(i32::from(RunStatus::Interrupted.exit_status()));
        }
        self.is_interrupted = true;
        let running = self.busy();
        if running > 0 && !self.context.screen.is_closed() {
            let jobs = if running == 1 { "job" } else { "jobs" };
            self.context.screen.say(&format!("stopping {running} {jobs}; interrupt again to exit immediately"));
        }
        self.cancel("interrupted");
    }

    /// Stops all running jobs and cancels all others.
    fn cancel(&mut self, why: &str) {
        for running in &mut self.pipelines {
            running.schedule.cancel();
            running.jobs.iter().filter_map(|job| job.control.as_ref()).for_each(|control| control.interrupt(why));
        }
    }
}
