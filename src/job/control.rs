//! What reaches a running job from outside: a cancel, the end on the server, the end of the agent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::coordinator::JobStatus;
use crate::journal::orders::Orders;

/// What a job is told, at any time and from any thread.
pub struct Control {
    orders: Mutex<Orders>,
    bell: EventFd,
    /// Ends the delivery of the outcome.
    abandon: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Control {
    /// Nothing was said yet. Errors: descriptors are used up.
    pub fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { orders: Mutex::default(), bell, abandon: Mutex::default() })
    }

    /// What the server says of the job.
    pub fn hear(&self, status: JobStatus) {
        self.change(|orders| match status {
            JobStatus::Ongoing => {}
            JobStatus::Canceling => orders.cancel = true,
            JobStatus::Over => orders.over = true,
        });
    }

    /// What an earlier agent had been told of the job; its step was stopped for that.
    pub fn recall(&self, earlier: &Orders) {
        self.change(|orders| {
            orders.cancel |= earlier.cancel;
            orders.over |= earlier.over;
            orders.evict = earlier.evict.clone().or(orders.evict.take());
            orders.interrupt = earlier.interrupt.clone().or(orders.interrupt.take());
        });
    }

    /// The machine is taken.
    pub fn evict(&self, why: &str) {
        self.change(|orders| {
            orders.evict.get_or_insert_with(|| why.to_owned());
        });
    }

    /// The agent goes.
    pub fn interrupt(&self, why: &str) {
        self.change(|orders| {
            orders.interrupt.get_or_insert_with(|| why.to_owned());
        });
    }

    /// Tells how the delivery of the outcome can be ended.
    pub fn attach(&self, abandon: Box<dyn Fn() + Send>) {
        *self.abandon.lock().unwrap_or_else(PoisonError::into_inner) = Some(abandon);
    }

    /// Leaves the delivery of the outcome to a later agent.
    pub fn abandon(&self) {
        self.change(|orders| orders.abandoned = true);
        if let Some(abandon) = &*self.abandon.lock().unwrap_or_else(PoisonError::into_inner) {
            abandon();
        }
    }

    /// What was said so far.
    pub fn orders(&self) -> Orders {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes readable with each order.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Makes the bell silent until the next order.
    pub fn heard(&self) {
        let _ = self.bell.read();
    }

    /// Waits; an order that ends the job ends the wait.
    pub fn rest(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.orders().stop() {
                return;
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.bell(), PollFlags::POLLIN)], timeout);
            self.heard();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = self.bell.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_order_that_ends_the_job() {
        let control = Control::new().expect("made");
        std::thread::scope(|scope| {
            let began = Instant::now();
            let waiting = scope.spawn(|| control.rest(Duration::from_secs(60)));
            control.hear(JobStatus::Ongoing);
            assert!(!waiting.is_finished());
            control.hear(JobStatus::Canceling);
            waiting.join().expect("waited");
            assert!(began.elapsed() < Duration::from_secs(30));
        });
    }

    #[test]
    fn a_later_agent_knows_why_a_step_was_stopped_and_forgets_that_the_first_one_went() {
        let first = Control::new().expect("made");
        first.hear(JobStatus::Canceling);
        first.interrupt("terminated");
        first.interrupt("again");
        first.abandon();
        let written = serde_json::to_string(&first.orders()).expect("written");
        let second = Control::new().expect("made");
        second.recall(&serde_json::from_str(&written).expect("read"));
        let expected = Orders { cancel: true, interrupt: Some("terminated".to_owned()), ..Orders::default() };
        assert_eq!(second.orders(), expected);
    }
}
