//! The summary of a job for one line of the agent's log.

use std::fmt;
use std::time::Duration;

use super::context::Job;
use crate::journal::Progress;
use crate::sys::BootTime;

/// The summary of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    project: String,
    duration: Duration,
    /// The stages that ran, with their durations.
    stages: Vec<(String, Duration)>,
    log_bytes: u64,
    artifact_bytes: u64,
}

impl Summary {
    /// The summary of a job that ended at `now` (nanoseconds of `CLOCK_BOOTTIME`), with a log of this size.
    pub fn new(job: &Job<'_>, progress: &Progress, log_bytes: u64, now: BootTime) -> Self {
        let path = job.settings.variables.value("CI_PROJECT_PATH").filter(|path| !path.is_empty());
        Self {
            project: as_value(&path.unwrap_or_else(|| job.payload.job_info.project_id.to_string())),
            duration: now.since(job.began),
            stages: durations(&progress.stage_starts, now),
            log_bytes,
            artifact_bytes: progress.artifact_bytes,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "project={} duration={:.1}s stages=", self.project, self.duration.as_secs_f64())?;
        for (index, (stage, duration)) in self.stages.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{stage}:{:.1}s", duration.as_secs_f64())?;
        }
        write!(f, " log_bytes={} artifact_bytes={}", self.log_bytes, self.artifact_bytes)
    }
}

/// The duration of each stage: from its start to the start of the next one.
fn durations(starts: &[(String, BootTime)], now: BootTime) -> Vec<(String, Duration)> {
    let ends = starts.iter().skip(1).map(|(_, start)| *start).chain([now]);
    starts.iter().zip(ends).map(|((stage, start), end)| (stage.clone(), end.since(*start))).collect()
}

/// Formats text from the job as the value of a fact, so that it cannot imitate another fact.
fn as_value(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '+');
    text.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_job() {
        let at = |milliseconds| BootTime::default() + Duration::from_millis(milliseconds);
        let starts = [("prepare_executor".to_owned(), at(1000)), ("step_script".to_owned(), at(1250))];
        let summary = Summary {
            project: as_value("team/demo x=1\n"),
            duration: Duration::from_millis(61_040),
            stages: durations(&starts, at(62_000)),
            log_bytes: 12,
            artifact_bytes: 0,
        };
        assert_eq!(
            summary.to_string(),
            "project=team/demo_x_1_ duration=61.0s stages=prepare_executor:0.2s,step_script:60.8s log_bytes=12 \
             artifact_bytes=0"
        );
        assert!(durations(&[], at(5)).is_empty());
    }
}
