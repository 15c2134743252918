//! Requests to a running job from outside: a cancel, the end on the server, the shutdown of the agent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::coordinator::JobStatus;
use crate::journal::stop_requests::StopRequests;
use crate::sync;

/// Stop requests to a job, from any thread.
pub struct JobControl {
    stop_requests: Mutex<StopRequests>,
    wake_fd: EventFd,
    /// The function that ends the delivery of the final state.
    abandon: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl JobControl {
    /// Fails if no file descriptor is left.
    pub fn new() -> io::Result<Self> {
        let wake_fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { stop_requests: Mutex::default(), wake_fd, abandon: Mutex::default() })
    }

    /// Sets the job's status on the server.
    pub fn set_status(&self, status: JobStatus) {
        self.change(|stop_requests| match status {
            JobStatus::Ongoing => {}
            JobStatus::Canceling => stop_requests.cancel = true,
            JobStatus::Finished => stop_requests.finished = true,
        });
    }

    /// Restores the stop requests that an earlier agent recorded; the job's step was stopped because of them.
    pub fn restore(&self, earlier: &StopRequests) {
        self.change(|stop_requests| {
            stop_requests.cancel |= earlier.cancel;
            stop_requests.finished |= earlier.finished;
            stop_requests.evict = earlier.evict.clone().or(stop_requests.evict.take());
            stop_requests.interrupt = earlier.interrupt.clone().or(stop_requests.interrupt.take());
        });
    }

    /// Requests the end of the job because the instance is interrupted.
    pub fn evict(&self, why: &str) {
        self.change(|stop_requests| {
            stop_requests.evict.get_or_insert_with(|| why.to_owned());
        });
    }

    /// Requests the end of the job because the agent shuts down.
    pub fn interrupt(&self, why: &str) {
        self.change(|stop_requests| {
            stop_requests.interrupt.get_or_insert_with(|| why.to_owned());
        });
    }

    /// Sets the function that ends the delivery of the final state.
    pub fn on_abandon(&self, abandon: Box<dyn Fn() + Send>) {
        *sync::lock(&self.abandon) = Some(abandon);
    }

    /// Leaves the delivery of the final state to the next agent.
    pub fn abandon(&self) {
        self.change(|stop_requests| stop_requests.abandoned = true);
        if let Some(abandon) = &*sync::lock(&self.abandon) {
            abandon();
        }
    }

    /// The requests so far.
    pub fn stop_requests(&self) -> StopRequests {
        sync::lock(&self.stop_requests).clone()
    }

    /// A descriptor that becomes readable with each request.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }

    /// Resets the descriptor until the next request.
    pub fn clear_wake(&self) {
        let _ = self.wake_fd.read();
    }

    /// Waits; a request that ends the job ends the wait.
    pub fn wait(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.stop_requests().stops_script() {
                return;
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.wake_fd(), PollFlags::POLLIN)], timeout);
            self.clear_wake();
        }
    }

    fn change(&self, change: impl FnOnce(&mut StopRequests)) {
        change(&mut sync::lock(&self.stop_requests));
        let _ = self.wake_fd.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_ends_the_job_ends_the_wait() {
        let control = JobControl::new().expect("made");
        std::thread::scope(|scope| {
            let began = Instant::now();
            let waiting = scope.spawn(|| control.wait(Duration::from_secs(60)));
            control.set_status(JobStatus::Ongoing);
            assert!(!waiting.is_finished());
            control.set_status(JobStatus::Canceling);
            waiting.join().expect("waited");
            assert!(began.elapsed() < Duration::from_secs(30));
        });
    }

    #[test]
    fn the_next_agent_restores_requests_except_the_agents_own_shutdown() {
        let first = JobControl::new().expect("made");
        first.set_status(JobStatus::Canceling);
        first.interrupt("terminated");
        first.interrupt("again");
        first.abandon();
        let written = serde_json::to_string(&first.stop_requests()).expect("written");
        let second = JobControl::new().expect("made");
        second.restore(&serde_json::from_str(&written).expect("read"));
        let expected =
            StopRequests { cancel: true, interrupt: Some("terminated".to_owned()), ..StopRequests::default() };
        assert_eq!(second.stop_requests(), expected);
    }
}
