//! What the agent itself says in a job's log: each thing once, at whatever point an agent dies and another goes on.
//!
//! The size of the log is written into the journal before something is said. A later agent finds the log larger, and
//! knows that it was said, or finds it as it was, and says it.

use std::io;

use super::engine::Engine;
use super::stages::Stage;
use crate::executor::docker::services::log::Followers;
use crate::failure::FailureReason;

impl Engine<'_> {
    /// The first lines of the log, and what is wrong with the job's settings.
    pub(super) fn greet(&self) {
        if self.trace.size() > 0 {
            return;
        }
        let runner = &self.context.runner;
        let mut lines =
            vec![format!("Running with mayfly {} ({})", env!("CARGO_PKG_VERSION"), env!("MAYFLY_REVISION"))];
        lines.push(match runner.token.is_empty() {
            true => format!("  on {}", runner.name),
            false => format!("  on {} {}, system ID: {}", runner.name, runner.token.short(), self.context.system_id),
        });
        let flags = &self.prepared.flags;
        let (changed, idle) = (flags.changed(), flags.idle(self.context.executor.containers().is_some()));
        if !changed.is_empty() {
            lines.push(format!("  feature flags: {}", changed.join(", ")));
        }
        if !idle.is_empty() {
            lines.push(format!("  feature flags without effect here: {}", idle.join(", ")));
        }
        self.trace.header(&lines, &self.prepared.warnings);
    }

    /// What is said at once below the heading.
    pub(super) fn opening(&self, stage: &Stage) -> Vec<String> {
        match stage {
            Stage::PrepareExecutor => self.context.executor.greeting().into_iter().collect(),
            Stage::PrepareScript => {
                let host = nix::unistd::gethostname().unwrap_or_default();
                vec![format!("Running on {}...", host.to_string_lossy())]
            }
            Stage::GetSources if self.has_no_sources() => {
                ["Git repository setup", "Git checkout", "Git submodules setup"]
                    .map(|what| format!("\x1b[32;1mSkipping {what}\x1b[0;m"))
                    .to_vec()
            }
            _ => Vec::new(),
        }
    }

    /// A warning, written down together with everything else that is settled by now. Errors: the journal cannot be
    /// written.
    pub(super) fn say(&mut self, text: String) -> io::Result<()> {
        let followers = self.followers.clone();
        let _quiet = followers.as_deref().map(Followers::quiet);
        self.record.progress.log_size = self.trace.size();
        self.record.progress.unsaid = Some(text);
        self.save()?;
        self.say_unsaid();
        Ok(())
    }

    /// The warning that the journal holds, unless it was said.
    pub(super) fn say_unsaid(&mut self) {
        let progress = &mut self.record.progress;
        if let Some(text) = progress.unsaid.take()
            && self.trace.size() == progress.log_size
        {
            self.trace.warning(&text);
        }
    }

    /// The last line of the log.
    pub(super) fn say_ending(&self) {
        let progress = &self.record.progress;
        if self.trace.size() != progress.log_size {
            return;
        }
        let section = progress.section.clone();
        let text = match &progress.failure {
            None => "Job succeeded".to_owned(),
            Some(error) if error.reason == FailureReason::RunnerSystemFailure => {
                format!("Job failed (system failure): {error}")
            }
            Some(error) => format!("Job failed: {error}"),
        };
        self.trace.conclude(section.as_deref(), progress.failure.is_none(), &text);
    }
}
