//! The agent's own lines in a job's log. Each line is written exactly once, even if the agent dies and the next agent
//! resumes the job.
//!
//! Before a line is written, the size of the log is recorded in the journal. If the next agent finds the log larger,
//! the line was written; if the size is unchanged, it writes the line. The output of services (`CI_DEBUG_SERVICES`) can
//! arrive at any time, so the agent delays it during the comparison.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::context::Job;
use super::sources_plan;
use super::stages::{Stage, StagePosition, outcome_so_far};
use crate::executor::docker::engine::containers::LogStart;
use crate::executor::docker::prepared::PreparedContainer;
use crate::executor::docker::services::log::ServiceLogs;
use crate::failure::FailureReason;
use crate::journal::{JobJournal, Progress};
use crate::trace::colours::{GREEN, RESET};
use crate::trace::{ResultLine, SectionMarkers, Trace};
use crate::version::{REVISION, VERSION};

/// The log of a running job.
pub struct JobLog {
    trace: Trace,
    /// The number of bytes at the start of the log that a manager wrote.
    prefix: u64,
    services: Option<Arc<ServiceLogs>>,
}

impl JobLog {
    /// Opens the log. Fails if the state directory is not writable.
    pub fn open(job: &Job<'_>, spool: &Path) -> io::Result<Self> {
        let sections = match job.payload.features.trace_sections {
            true => SectionMarkers::Written,
            false => SectionMarkers::Omitted,
        };
        let trace = Trace::open(spool, &job.settings.filters, sections)?;
        Ok(Self { trace, prefix: job.log_prefix, services: None })
    }

    /// Whether the log has no line yet.
    pub fn is_empty(&self) -> bool {
        self.trace.size() <= self.prefix
    }

    /// The size of the log, in bytes.
    pub fn size(&self) -> u64 {
        self.trace.size()
    }

    /// Writes the first lines, and warnings about the job's settings.
    pub fn header(&self, job: &Job<'_>) {
        if !self.is_empty() {
            return;
        }
        let runner = &job.context.runner;
        let mut lines = vec![format!("Running with mayfly {VERSION} ({REVISION})")];
        lines.push(match runner.token.is_empty() {
            true => format!("  on {}", runner.name),
            false => format!("  on {} {}, system ID: {}", runner.name, runner.token.short(), job.context.system_id),
        });
        let flags = &job.settings.flags;
        let (changed, without_effect) = (flags.changed(), flags.without_effect(job.context.executor.job_host()));
        if !changed.is_empty() {
            lines.push(format!("  feature flags: {}", changed.join(", ")));
        }
        if !without_effect.is_empty() {
            lines.push(format!("  feature flags without effect here: {}", without_effect.join(", ")));
        }
        self.trace.header(&lines, &job.settings.warnings);
    }

    /// Records the start of a stage in the journal, unless an earlier agent did, then writes its heading and its first
    /// lines. Fails if the journal is not writable.
    pub fn begin_stage(
        &self,
        job: &Job<'_>,
        journal: &mut JobJournal,
        stage: &Stage,
        position: StagePosition,
    ) -> io::Result<()> {
        let outcome = outcome_so_far(&journal.progress);
        let section = stage.section(outcome);
        let lines = opening_lines(stage, job);
        let _paused = self.services.as_deref().map(ServiceLogs::pause);
        if !position.resumed {
            journal.progress.begin_stage(position.index, section.clone(), self.size());
            if matches!(stage, Stage::Step(..)) {
                journal.progress.scripts.get_or_insert_default();
            }
            journal.save()?;
        }
        if self.size() == journal.progress.log.size {
            let heading = stage.heading(job.context.runner.executor.as_str(), outcome);
            let before = journal.progress.stage.as_ref().and_then(|stage| stage.section_before.as_deref());
            let section = journal.progress.section().unwrap_or(&section);
            self.trace.begin_section(before, section, &heading, &lines);
        }
        Ok(())
    }

    /// Records a warning in the journal, together with the other progress, then writes it. Fails if the journal is not
    /// writable.
    pub fn warn(&self, journal: &mut JobJournal, text: String) -> io::Result<()> {
        let _paused = self.services.as_deref().map(ServiceLogs::pause);
        journal.progress.log.size = self.size();
        journal.progress.log.pending_warning = Some(text);
        journal.save()?;
        self.write_pending_warning(&mut journal.progress);
        Ok(())
    }

    /// Writes the recorded warning, unless an earlier agent did.
    pub fn write_pending_warning(&self, progress: &mut Progress) {
        if let Some(text) = progress.log.pending_warning.take()
            && self.size() == progress.log.size
        {
            self.trace.warning(&text);
        }
    }

    /// Writes the last line, which shows the result of the job, unless an earlier agent did.
    pub fn write_result(&self, progress: &Progress) {
        if self.size() != progress.log.size {
            return;
        }
        let line = match &progress.failure {
            None => ResultLine::Success("Job succeeded".to_owned()),
            Some(error) if error.reason == FailureReason::RunnerSystemFailure => {
                ResultLine::Failure(format!("Job failed (system failure): {error}"))
            }
            Some(error) => ResultLine::Failure(format!("Job failed: {error}")),
        };
        self.trace.write_result(progress.section(), &line);
    }

    /// Copies the output of the job's services into the log, if the job requests it.
    pub fn follow_services(
        &mut self,
        job: &Job<'_>,
        spool: &Path,
        container: Option<&PreparedContainer>,
        start: LogStart,
    ) {
        let Some(container) = container.filter(|container| !container.services.is_empty()) else { return };
        if !job.settings.debug_services {
            return;
        }
        match Trace::open(spool, &job.settings.filters, SectionMarkers::Omitted) {
            Ok(trace) => {
                let write = Box::new(move |line: &str| trace.service(line));
                self.services =
                    Some(Arc::new(ServiceLogs::start(&container.engine, &container.services, start, write)));
            }
            Err(error) => log::warn!("cannot show the output of services job={} error={error}", job.payload.id),
        }
    }

    /// Stops copying the output of services.
    pub fn leave_services(&mut self) {
        self.services = None;
    }
}

/// The first lines in the section of the stage.
fn opening_lines(stage: &Stage, job: &Job<'_>) -> Vec<String> {
    match stage {
        Stage::PrepareExecutor => job.context.executor.greeting().into_iter().collect(),
        Stage::PrepareScript => {
            let host = nix::unistd::gethostname().unwrap_or_default();
            vec![format!("Running on {}...", host.to_string_lossy())]
        }
        Stage::GetSources if sources_plan::is_skipped(job) => {
            ["Git repository setup", "Git checkout", "Git submodules setup"]
                .map(|skipped| format!("{GREEN}Skipping {skipped}{RESET}"))
                .to_vec()
        }
        _ => Vec::new(),
    }
}
