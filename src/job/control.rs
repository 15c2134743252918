//! Requests to stop a running job: the job was cancelled or has ended on the server, the cloud interrupts the instance,
//! or the agent shuts down.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::coordinator::JobStatus;
use crate::journal::stop_requests::{StopRequest, StopRequests};
use crate::sync;
use crate::sys;

/// Stop requests to a job, from any thread.
pub struct JobControl {
    stop_requests: Mutex<StopRequests>,
    wake_fd: EventFd,
    delivery: Mutex<DeliveryState>,
}

/// The delivery of the job's final state.
enum DeliveryState {
    /// The delivery has not begun.
    Pending,
    /// The delivery can begin. The function ends it.
    Open(Box<dyn Fn() + Send>),
    /// The agent does not wait for the delivery. A later agent delivers the result.
    Abandoned,
}

impl JobControl {
    /// Fails if the process has no free file descriptor.
    pub fn new() -> io::Result<Self> {
        let wake_fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { stop_requests: Mutex::default(), wake_fd, delivery: Mutex::new(DeliveryState::Pending) })
    }

    /// Sets the job's status on the server.
    pub fn set_status(&self, status: JobStatus) {
        match status {
            JobStatus::Ongoing => {}
            JobStatus::Canceling => self.request(StopRequest::Cancel),
            JobStatus::Finished => self.request(StopRequest::Finished),
        }
    }

    /// Restores the stop requests that an earlier agent recorded; the job's step was stopped because of them.
    pub fn restore(&self, earlier: &StopRequests) {
        sync::lock(&self.stop_requests).add_earlier(earlier);
        self.wake();
    }

    /// Requests the end of the job because the instance is interrupted.
    pub fn evict(&self, why: &str) {
        self.request(StopRequest::Evict(why.to_owned()));
    }

    /// Requests the end of the job because the agent shuts down.
    pub fn interrupt(&self, why: &str) {
        self.request(StopRequest::Interrupt(why.to_owned()));
    }

    /// Sets the function that ends the delivery of the final state. Calls it if the delivery was abandoned before.
    pub fn on_abandon(&self, abandon: Box<dyn Fn() + Send>) {
        let mut delivery = sync::lock(&self.delivery);
        match *delivery {
            DeliveryState::Abandoned => abandon(),
            DeliveryState::Pending | DeliveryState::Open(_) => *delivery = DeliveryState::Open(abandon),
        }
    }

    /// Leaves the delivery of the final state to the next agent.
    pub fn abandon(&self) {
        let before = std::mem::replace(&mut *sync::lock(&self.delivery), DeliveryState::Abandoned);
        if let DeliveryState::Open(abandon) = before {
            abandon();
        }
        self.wake();
    }

    /// Whether the next agent must deliver the final state.
    pub fn is_abandoned(&self) -> bool {
        matches!(*sync::lock(&self.delivery), DeliveryState::Abandoned)
    }

    /// The requests so far.
    pub fn stop_requests(&self) -> StopRequests {
        sync::lock(&self.stop_requests).clone()
    }

    /// A file descriptor that becomes readable with each request.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }

    /// Makes the descriptor unreadable until the next request.
    pub fn clear_wake(&self) {
        let _ = self.wake_fd.read();
    }

    /// Waits for `duration`. A request that ends the job also ends the wait.
    pub fn wait(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.stop_requests().stops_script() {
                return;
            }
            let _ = sys::wait([Some(self.wake_fd())], Some(left));
            self.clear_wake();
        }
    }

    fn request(&self, request: StopRequest) {
        sync::lock(&self.stop_requests).add(request);
        self.wake();
    }

    fn wake(&self) {
        let _ = self.wake_fd.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_ends_the_job_ends_the_wait() {
        let control = JobControl::new().expect("create the shared state");
        std::thread::scope(|scope| {
            let began = Instant::now();
            let waiting = scope.spawn(|| control.wait(Duration::from_secs(60)));
            control.set_status(JobStatus::Ongoing);
            assert!(!waiting.is_finished());
            control.set_status(JobStatus::Canceling);
            waiting.join().expect("the thread must not panic");
            assert!(began.elapsed() < Duration::from_secs(30));
        });
    }

    #[test]
    fn the_next_agent_restores_requests_except_the_agents_own_shutdown() {
        let first = JobControl::new().expect("create the shared state");
        first.set_status(JobStatus::Canceling);
        first.interrupt("terminated");
        first.interrupt("again");
        first.abandon();
        let written = serde_json::to_string(&first.stop_requests()).expect("encode as JSON");
        let second = JobControl::new().expect("create the shared state");
        second.restore(&serde_json::from_str(&written).expect("must be JSON"));
        let restored = second.stop_requests();
        assert!(restored.is_canceled() && !restored.is_finished());
        assert_eq!((restored.interruption(), restored.eviction()), (Some("terminated"), None));
        assert!(first.is_abandoned() && !second.is_abandoned());
    }

    #[test]
    fn a_delivery_that_was_abandoned_before_it_began_ends_at_once() {
        for abandoned_first in [true, false] {
            let control = JobControl::new().expect("create the shared state");
            let (sender, ended) = std::sync::mpsc::channel();
            let begin = || control.on_abandon(Box::new(move || sender.send(()).expect("a receiver")));
            match abandoned_first {
                true => {
                    control.abandon();
                    begin();
                }
                false => {
                    begin();
                    control.abandon();
                }
            }
            assert_eq!(ended.try_recv(), Ok(()), "{abandoned_first}");
        }
    }
}
