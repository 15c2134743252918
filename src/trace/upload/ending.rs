//! The end of an upload: sends the rest of the log, then the final state, as long as GitLab accepts them.

use std::time::{Duration, Instant};

use super::{Delivery, PartResult, Upload};
use crate::coordinator::{JobState, JobStatus, UpdateOutcome};

/// GitLab fails a running job after an hour without a request, at its next check: until then sending a final state is
/// useful.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(65 * 60);
/// In one attempt, the uploader continues at another offset at most this number of times.
const MAX_RESYNCS: u32 = 3;

/// Why the final state must be sent again.
enum RetryReason {
    /// The server is still processing the log.
    AfterInterval,
    /// The server's log differs: send it again from the start.
    FromStart,
    /// The request failed.
    Failed,
}

impl Upload {
    /// Sends the rest of the log and the final state, as long as GitLab accepts them.
    pub(super) fn finish(&mut self, ending: &JobState) -> Delivery {
        self.interval = self.coordinator.first_interval();
        let began = Instant::now();
        let (mut failures, mut resets) = (0, 0);
        loop {
            if self.last_status == JobStatus::Finished {
                return Delivery::Gone;
            }
            match self.try_to_finish(ending) {
                Ok(delivery) => return delivery,
                Err(RetryReason::AfterInterval) => self.pause(self.interval),
                Err(RetryReason::FromStart) => {
                    resets += 1;
                    if resets >= self.options.final_report_attempts {
                        return Delivery::GivenUp;
                    }
                    self.offset = 0;
                    self.pause(self.interval);
                }
                Err(RetryReason::Failed) => {
                    failures += 1;
                    if failures >= self.options.final_report_attempts && began.elapsed() > DELIVERY_TIMEOUT {
                        return Delivery::GivenUp;
                    }
                    self.pause(self.final_state_retry.delay(failures - 1));
                }
            }
            if self.is_abandoned() {
                return Delivery::GivenUp;
            }
        }
    }

    /// Waits for `duration`, or until the upload is abandoned.
    fn pause(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.is_abandoned() {
                return;
            }
            self.wait(left, None);
        }
    }

    /// Makes one attempt to send the rest of the log and the final state.
    fn try_to_finish(&mut self, ending: &JobState) -> Result<Delivery, RetryReason> {
        let mut resyncs = 0;
        loop {
            let before = self.offset;
            match self.send_part() {
                PartResult::Accepted if self.is_abandoned() => return Ok(Delivery::GivenUp),
                PartResult::Accepted => {}
                PartResult::NothingToSend | PartResult::NotFound => break,
                PartResult::JobEnded => return Ok(Delivery::Gone),
                // The log on the server has another size: continue from that offset at once.
                PartResult::Failed if self.offset != before && resyncs < MAX_RESYNCS => resyncs += 1,
                PartResult::Failed => return Err(RetryReason::Failed),
            }
        }
        let reply = self.send_state(ending).ok_or(RetryReason::Failed)?;
        self.apply_reply(&reply);
        match reply.outcome {
            UpdateOutcome::Done => Ok(Delivery::Delivered),
            UpdateOutcome::Gone => Ok(Delivery::Gone),
            UpdateOutcome::Accepted => Err(RetryReason::AfterInterval),
            UpdateOutcome::TraceInvalid => Err(RetryReason::FromStart),
            UpdateOutcome::Failed => Err(RetryReason::Failed),
        }
    }
}
