//! Questions to the user, and interrupts by the user.

use std::thread;

use super::{JobIndex, LocalRunner, RunEvent};
use crate::local::options::ManualPolicy;
use crate::local::results::RunStatus;
use crate::local::schedule::ScheduleState;

impl LocalRunner<'_> {
    /// Asks the user about the next manual job. Returns false if there is no question.
    pub(super) fn ask_about_manual_job(&mut self) -> bool {
        if self.options.manual_policy != ManualPolicy::Ask || self.is_interrupted {
            return false;
        }
        if self.is_asking {
            return true;
        }
        let is_open = |job: &JobIndex| self.pipelines[job.pipeline].schedule.state(job.job) == ScheduleState::Manual;
        self.questions.retain(is_open);
        let Some(&job) = self.questions.first() else { return false };
        let confirmation = &self.pipelines[job.pipeline].plan.jobs[job.job].manual_confirmation;
        let question = confirmation.as_ref().map(|text| format!(" {text}")).unwrap_or_default();
        self.context.screen.show_message(&format!("Start the manual job `{}`?{question} [y/N]", self.name(job)));
        self.is_asking = true;
        let sender = self.sender.clone();
        thread::spawn(move || {
            let mut line = String::new();
            // If standard input is closed, the line stays empty, which is a refusal.
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
        let job = self.questions.remove(0);
        if matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            self.pipelines[job.pipeline].schedule.start_manual_job(job.job);
        }
    }

    /// Processes an interrupt: the first one stops all jobs, the second one exits immediately.
    pub(super) fn interrupt(&mut self) {
        if self.is_interrupted {
            self.context.screen.clear_status_lines();
            // Running jobs end with this process; the guard process cleans up.
            std::process::exit(i32::from(RunStatus::Interrupted.exit_status()));
        }
        self.is_interrupted = true;
        let running = self.running_attempts();
        if running > 0 && !self.context.screen.is_closed() {
            let jobs = if running == 1 { "job" } else { "jobs" };
            self.context
                .screen
                .show_message(&format!("stopping {running} {jobs}; interrupt again to exit immediately"));
        }
        self.pipelines.iter_mut().for_each(|running| running.cancel("interrupted"));
    }
}
