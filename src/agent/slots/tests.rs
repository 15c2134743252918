use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;

fn key(name: &str) -> RunnerKey {
    RunnerKey { url: "https://gitlab.test".to_owned(), short_token: name.to_owned() }
}

const FREE: RunnerBounds = RunnerBounds { limit: None, requests: 8, adaptive: false };

fn acquire(slots: &Arc<Slots>, name: &str, bounds: RunnerBounds) -> Permit {
    slots.acquire(&key(name), bounds, || false).expect("a permit")
}

/// Whether a permit is available now.
fn is_free(slots: &Arc<Slots>, name: &str, bounds: RunnerBounds) -> bool {
    let mut state = slots.lock();
    state.queue.push(QueueEntry { number: u64::MAX, key: key(name), bounds });
    let free = state.first_eligible() == Some(u64::MAX);
    state.queue.pop();
    free
}

#[test]
fn holds_a_slot_from_the_request_to_the_end_of_the_job() {
    let slots = Slots::new(1, None, 0);
    let mut permit = acquire(&slots, "a", FREE);
    assert!(!is_free(&slots, "a", FREE));
    permit.begin_job();
    assert!(!is_free(&slots, "a", FREE));
    assert_eq!(slots.jobs(), 1);
    assert!(slots.idle_for().is_none());
    drop(permit);
    assert!(is_free(&slots, "a", FREE));
    assert!(slots.idle_for().is_some());
}

#[test]
fn keeps_limit_and_request_concurrency_of_each_runner() {
    let slots = Slots::new(10, None, 0);
    let one_request = RunnerBounds { limit: Some(2), requests: 1, adaptive: false };
    let mut first = acquire(&slots, "a", one_request);
    assert!(!is_free(&slots, "a", one_request), "one request at once");
    assert!(is_free(&slots, "b", one_request), "another runner is free");
    first.begin_job();
    let mut second = acquire(&slots, "a", one_request);
    second.begin_job();
    assert!(!is_free(&slots, "a", one_request), "two jobs at once");
}

#[test]
fn concurrent_requests_adapt_to_their_outcomes() {
    let slots = Slots::new(10, None, 0);
    let bounds = RunnerBounds { limit: None, requests: 2, adaptive: true };
    let first = acquire(&slots, "a", bounds);
    assert!(!is_free(&slots, "a", bounds), "one at first");
    slots.adapt_requests(&key("a"), bounds, RequestOutcome::Job);
    assert!(is_free(&slots, "a", bounds), "a job came: two");
    let second = acquire(&slots, "a", bounds);
    (0..20).for_each(|_| slots.adapt_requests(&key("a"), bounds, RequestOutcome::Job));
    assert!(!is_free(&slots, "a", bounds), "never more than configured");
    drop((first, second));
    slots.adapt_requests(&key("a"), bounds, RequestOutcome::Overloaded);
    let _one = acquire(&slots, "a", bounds);
    assert!(!is_free(&slots, "a", bounds), "the server has enough to do");
}

#[test]
fn never_takes_more_than_max_builds() {
    let slots = Slots::new(4, Some(1), 0);
    let request = acquire(&slots, "a", FREE);
    assert!(!is_free(&slots, "a", FREE), "the one build is being asked for");
    drop(request);
    assert!(is_free(&slots, "a", FREE), "no job came, so the build is left");
    let mut job = acquire(&slots, "a", FREE);
    job.begin_job();
    assert!(slots.are_builds_used_up());
    drop(job);
    assert!(slots.are_builds_used_up());
    assert!(!is_free(&slots, "a", FREE));
}

#[test]
fn builds_of_an_earlier_agent_count_and_the_maximum_can_change() {
    let slots = Slots::new(4, Some(3), 2);
    let mut job = acquire(&slots, "a", FREE);
    job.begin_job();
    assert!(slots.are_builds_used_up());
    slots.set_max_builds(Some(4));
    assert!(is_free(&slots, "a", FREE));
    slots.set_max_builds(Some(1));
    assert!(slots.are_builds_used_up(), "fewer than were taken already");
    slots.set_max_builds(None);
    assert!(!slots.are_builds_used_up());
}

/// A clock that a test sets.
#[derive(Clone, Default)]
struct TestClock(Arc<Mutex<Duration>>);

impl TestClock {
    fn slots(&self) -> Arc<Slots> {
        let now = Arc::clone(&self.0);
        Slots::with_clock(1, None, 0, Box::new(move || *sync::lock(&now)))
    }

    fn advance(&self, seconds: u64) {
        *sync::lock(&self.0) += Duration::from_secs(seconds);
    }
}

#[test]
fn the_idle_time_does_not_advance_in_a_pause() {
    let clock = TestClock::default();
    let slots = clock.slots();
    clock.advance(20);
    slots.pause();
    assert!(!is_free(&slots, "a", FREE));
    clock.advance(20);
    assert_eq!(slots.idle_for(), Some(Duration::from_secs(20)));
    slots.unpause();
    assert!(is_free(&slots, "a", FREE));
    clock.advance(20);
    assert_eq!(slots.idle_for(), Some(Duration::from_secs(40)));
}

#[test]
fn idle_time_restarts_when_a_job_ends_in_a_pause() {
    let slots = Slots::new(1, None, 0);
    let job = slots.occupy(key("a"), 0);
    slots.pause();
    assert_eq!(slots.idle_for(), None);
    drop(job);
    assert_eq!(slots.idle_for(), Some(Duration::ZERO));
}

#[test]
fn knows_whether_there_was_a_request_since_the_last_job() {
    let slots = Slots::new(2, None, 0);
    assert!(slots.has_polled(), "no runner polls");
    slots.set_polling_runners(1);
    assert!(!slots.has_polled());
    drop(acquire(&slots, "a", FREE));
    assert!(slots.has_polled());
    let mut job = acquire(&slots, "a", FREE);
    job.begin_job();
    drop(acquire(&slots, "a", FREE));
    drop(job);
    assert!(!slots.has_polled(), "the request that brought nothing was answered while the job ran");
}

#[test]
fn reopening_restarts_the_idle_time() {
    let clock = TestClock::default();
    let slots = clock.slots();
    clock.advance(20);
    slots.close();
    slots.open();
    assert_eq!(slots.idle_for(), Some(Duration::ZERO));
    assert!(is_free(&slots, "a", FREE));
}

#[test]
fn a_request_is_not_held_when_runners_outnumber_the_free_slots() {
    let slots = Slots::new(2, None, 0);
    slots.set_polling_runners(2);
    let mut first = acquire(&slots, "a", FREE);
    assert_eq!(first.poll_mode(), PollMode::Long);
    first.begin_job();
    assert_eq!(acquire(&slots, "b", FREE).poll_mode(), PollMode::Short, "one free slot, two runners");
}

#[test]
fn slots_are_given_in_the_order_of_the_queue() {
    let slots = Slots::new(1, None, 0);
    let first = acquire(&slots, "a", FREE);
    let (sender, receiver) = mpsc::channel();
    let mut waiting = Vec::new();
    for (queued, name) in ["b", "a"].into_iter().enumerate() {
        let (slots, sender) = (Arc::clone(&slots), sender.clone());
        let ask = Arc::clone(&slots);
        waiting.push(thread::spawn(move || {
            let permit = acquire(&ask, name, FREE);
            sender.send(name).expect("the receiver must exist");
            drop(permit);
        }));
        while slots.lock().queue.len() <= queued {
            thread::yield_now();
        }
    }
    drop(first);
    assert_eq!([receiver.recv(), receiver.recv()], [Ok("b"), Ok("a")]);
    for thread in waiting {
        thread.join().expect("the thread must not panic");
    }
}

#[test]
fn gives_up_when_closed_or_cancelled() {
    let slots = Slots::new(0, None, 0);
    let cancelled = Arc::new(AtomicBool::new(false));
    let waiter = {
        let (slots, cancelled) = (Arc::clone(&slots), Arc::clone(&cancelled));
        thread::spawn(move || slots.acquire(&key("a"), FREE, || cancelled.load(Ordering::SeqCst)).is_none())
    };
    cancelled.store(true, Ordering::SeqCst);
    slots.wake();
    assert!(waiter.join().expect("the thread must not panic"));
    slots.close();
    assert!(slots.acquire(&key("a"), FREE, || false).is_none());
}

#[test]
fn a_cancelled_poller_does_not_block_the_queue() {
    for _ in 0..50 {
        let slots = Slots::new(1, None, 0);
        let first = acquire(&slots, "a", FREE);
        let ended = Arc::new(AtomicBool::new(false));
        let mut waiting = Vec::new();
        for (queued, gives_up) in [true, false].into_iter().enumerate() {
            let (waiter, ended) = (Arc::clone(&slots), Arc::clone(&ended));
            let cancelled = move || gives_up && ended.load(Ordering::SeqCst);
            waiting.push(thread::spawn(move || waiter.acquire(&key("a"), FREE, cancelled).is_some()));
            while slots.lock().queue.len() <= queued {
                thread::yield_now();
            }
        }
        ended.store(true, Ordering::SeqCst);
        drop(first);
        slots.wake();
        let got: Vec<bool> =
            waiting.into_iter().map(|thread| thread.join().expect("the thread must not panic")).collect();
        assert!(got[1], "the one behind gets its permit");
    }
}

#[test]
fn a_resumed_job_takes_its_old_slot() {
    let slots = Slots::new(1, Some(5), 0);
    let resumed = slots.occupy(key("a"), 2);
    assert!(!is_free(&slots, "b", FREE));
    assert_eq!(slots.jobs(), 1);
    drop(resumed);
    let next = acquire(&slots, "b", FREE);
    assert_eq!(next.slot, 0);
}
