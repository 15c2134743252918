//! What reaches a running job from outside: a cancel, the end on the server, the end of the agent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::coordinator::JobStatus;
use crate::journal::stop_requests::StopRequests;

/// What a job is told, at any time and from any thread.
pub struct JobControl {
    stop_requests: Mutex<StopRequests>,
    wake_fd: EventFd,
    /// Ends the delivery of the outcome.
    abandon: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl JobControl {
    /// Nothing was said yet. Errors: descriptors are used up.
    pub fn new() -> io::Result<Self> {
        let wake_fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { stop_requests: Mutex::default(), wake_fd, abandon: Mutex::default() })
    }

    /// What the server says of the job.
    pub fn set_status(&self, status: JobStatus) {
        self.change(|stop_requests| match status {
            JobStatus::Ongoing => {}
            JobStatus::Canceling => stop_requests.cancel = true,
            JobStatus::Finished => stop_requests.finished = true,
        });
    }

    /// What an earlier agent had been told of the job; its step was stopped for that.
    pub fn restore(&self, earlier: &StopRequests) {
        self.change(|stop_requests| {
            stop_requests.cancel |= earlier.cancel;
            stop_requests.finished |= earlier.finished;
            stop_requests.evict = earlier.evict.clone().or(stop_requests.evict.take());
            stop_requests.interrupt = earlier.interrupt.clone().or(stop_requests.interrupt.take());
        });
    }

    /// The machine is taken.
    pub fn evict(&self, why: &str) {
        self.change(|stop_requests| {
            stop_requests.evict.get_or_insert_with(|| why.to_owned());
        });
    }

    /// The agent goes.
    pub fn interrupt(&self, why: &str) {
        self.change(|stop_requests| {
            stop_requests.interrupt.get_or_insert_with(|| why.to_owned());
        });
    }

    /// Tells how the delivery of the outcome can be ended.
    pub fn on_abandon(&self, abandon: Box<dyn Fn() + Send>) {
        *self.abandon.lock().unwrap_or_else(PoisonError::into_inner) = Some(abandon);
    }

    /// Leaves the delivery of the outcome to a later agent.
    pub fn abandon(&self) {
        self.change(|stop_requests| stop_requests.abandoned = true);
        if let Some(abandon) = &*self.abandon.lock().unwrap_or_else(PoisonError::into_inner) {
            abandon();
        }
    }

    /// What was said so far.
    pub fn stop_requests(&self) -> StopRequests {
        self.stop_requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes readable with each order.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }

    /// Makes the bell silent until the next order.
    pub fn clear_wake(&self) {
        let _ = self.wake_fd.read();
    }

    /// Waits; an order that ends the job ends the wait.
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
        change(&mut self.stop_requests.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = self.wake_fd.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_order_that_ends_the_job() {
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
    fn a_later_agent_knows_why_a_step_was_stopped_and_forgets_that_the_first_one_went() {
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
