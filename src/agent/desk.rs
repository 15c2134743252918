//! Where jobs are taken in: counted, written down, run in a thread each, and told when the agent goes.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Event;
use super::fitness::FailureStreaks;
use super::slots::Permit;
use crate::coordinator::{JobHandle, JobState, TraceSummary};
use crate::failure::{FailureReason, JobError};
use crate::instance::{Demand, Instance, Work};
use crate::job::context::{Context, name_of};
use crate::job::control::Control;
use crate::job::give_up;
use crate::job::run::{self, Ended};
use crate::journal::{Count, Progress, Record, SlotDirectory};
use crate::monitor::numbers::{self, Who};
use crate::payload::{self, Payload, Undecodable};
use crate::sys;

/// Enough for parsing large payloads.
const JOB_STACK: usize = 1 << 20;

/// A job that was queued for longer had to wait for an instance: more than a request, and the rest before it.
const AT_ONCE: Duration = Duration::from_secs(10);

/// All jobs of the instance.
pub struct Desk {
    state: PathBuf,
    instance: Arc<dyn Instance>,
    events: Sender<Event>,
    failures: FailureStreaks,
    inner: Mutex<Inner>,
}

struct Inner {
    count: Count,
    /// By slot: two servers may count up to the same number of a job.
    controls: HashMap<usize, Arc<Control>>,
    /// Numbers in use (`CI_CONCURRENT_ID`), by runner; and by runner and project.
    numbers: HashMap<NumberKey, Vec<u32>>,
    /// Why scripts are to give way, once they are.
    evicted: Option<String>,
    /// Why jobs are to stop, once they are.
    interrupted: Option<String>,
}

impl Desk {
    /// The desk of an instance whose journal is in `state`.
    pub fn new(state: PathBuf, instance: Arc<dyn Instance>, count: Count, events: Sender<Event>) -> Arc<Self> {
        if let Err(error) = count.save(&state) {
            log::error!("cannot save the job count error={error}");
        }
        let (controls, numbers) = (HashMap::new(), HashMap::new());
        let inner = Inner { count, controls, numbers, evicted: None, interrupted: None };
        Arc::new(Self { state, instance, events, failures: FailureStreaks::default(), inner: Mutex::new(inner) })
    }

    /// The jobs in a row that failed for the machine's sake.
    pub fn failures(&self) -> &FailureStreaks {
        &self.failures
    }

    /// Takes a job that has just come. It is ours from here on: it is run, or failed at the server. False when the
    /// answer is no job that anyone could be told of: nothing was taken then.
    pub fn take(self: &Arc<Self>, mut permit: Permit, context: Context, body: Vec<u8>, request_id: String) -> bool {
        let context = context.in_slot(permit.slot);
        let text = String::from_utf8_lossy(&body).into_owned();
        drop(body);
        let payload = match payload::decode(text.as_bytes()) {
            Ok(payload) => payload,
            Err(Undecodable { why, job: None }) => {
                log::error!(
                    "GitLab sent a job that cannot be decoded (no id or token); it cannot be reported runner={} error={why}",
                    context.runner.name
                );
                return false;
            }
            Err(Undecodable { why, job: Some(job) }) => {
                permit.begin_job();
                self.count();
                self.save_count();
                numbers::job_received(&context.who(), &job.id, None);
                self.refuse(permit, context, job, &why);
                return true;
            }
        };
        let record = Record {
            identity: context.identity.clone(),
            url: context.runner.url.clone(),
            tls: context.runner.tls.clone(),
            short_token: context.runner.token.short(),
            payload: text,
            request_id,
            concurrent: self.number(&context, &payload, None),
            began: sys::boottime(),
            number: self.count(),
            progress: Progress::default(),
        };
        // Before everything else: the server waits for an hour for a job that an agent took to its grave.
        let written = SlotDirectory::new(&self.state, permit.slot).begin(&record);
        permit.begin_job();
        self.save_count();
        let queued = payload.job_info.time_in_queue_seconds;
        numbers::job_received(&context.who(), payload.id, queued);
        log::info!("job received job={} runner={}", payload.id, context.runner.name);
        let waited = Duration::try_from_secs_f64(queued.unwrap_or(0.0));
        let had_to_wait = waited.is_ok_and(|waited| waited > AT_ONCE);
        self.instance.job_taken(if had_to_wait { Demand::More } else { Demand::One });
        self.start(Task { permit, context, record, payload, begin: Begin::Fresh(written) });
        true
    }

    /// Goes on with a job that was found in the journal.
    pub fn resume(self: &Arc<Self>, permit: Permit, context: Context, record: Record, payload: Payload) {
        let context = context.in_slot(permit.slot);
        self.number(&context, &payload, Some(record.concurrent));
        numbers::job_resumed(&context.who(), payload.id, record.began);
        log::info!("job resumed from journal job={} runner={}", payload.id, context.runner.name);
        self.start(Task { permit, context, record, payload, begin: Begin::Resumed });
    }

    /// Has all jobs hand over what their scripts have made so far, also those that are still coming.
    pub fn evict(&self, why: &str) {
        let mut inner = self.lock();
        inner.evicted = Some(why.to_owned());
        inner.controls.values().for_each(|control| control.evict(why));
    }

    /// Jobs that are still coming are run again.
    pub fn forgive(&self) {
        self.lock().evicted = None;
    }

    /// Stops all jobs, also those that are still coming.
    pub fn interrupt(&self, why: &str) {
        let mut inner = self.lock();
        inner.interrupted = Some(why.to_owned());
        inner.controls.values().for_each(|control| control.interrupt(why));
    }

    /// Leaves what is not delivered yet to the next agent.
    pub fn abandon(&self) {
        let controls: Vec<Arc<Control>> = self.lock().controls.values().cloned().collect();
        controls.iter().for_each(|control| control.abandon());
    }

    fn start(self: &Arc<Self>, task: Task) {
        let control = match Control::new() {
            Ok(control) => Arc::new(control),
            Err(error) => return self.give_up(task, &format!("the agent has no descriptors left: {error}")),
        };
        {
            let mut inner = self.lock();
            if let Some(why) = &inner.evicted {
                control.evict(why);
            }
            if let Some(why) = &inner.interrupted {
                control.interrupt(why);
            }
            inner.controls.insert(task.permit.slot, Arc::clone(&control));
            // Under the lock, so that the last word is the right one.
            self.instance.protect(Work::Busy);
        }
        let desk = Arc::clone(self);
        if let Err((task, error)) = in_thread(task.payload.id, task, move |task| desk.work(task, &control)) {
            self.give_up(task, &format!("no thread for the job: {error}"));
        }
    }

    fn work(&self, task: Task, control: &Arc<Control>) {
        let Task { permit, context, record, payload, begin } = task;
        let (id, handle) = (payload.id, payload.handle());
        let (numbers, keys) = (record.concurrent, numbers_of(&context, &payload));
        let directory = SlotDirectory::new(&self.state, permit.slot);
        let (left, name) = (directory.clone(), name_of(&payload, record.began));
        // A mistake of ours in one job must not take the others down, nor leave this one hanging.
        let outcome = catch_unwind(AssertUnwindSafe(|| match begin {
            Begin::Fresh(written) => written.and_then(|()| run::run(&context, directory, record, payload, control)),
            Begin::Resumed => run::resume(&context, directory, record, payload, control),
        }));
        let trouble = match outcome {
            Ok(Ok(ended)) => {
                tell(&context.who(), id, &ended);
                if let Ended::Reported(state, _) = &ended {
                    self.failures.note(&context.who(), is_system_failure(state));
                }
                None
            }
            Ok(Err(error)) => Some(format!("the agent cannot work in its state directory: {error}")),
            Err(_) => Some("the agent's thread for this job died; its log says where".to_owned()),
        };
        if let Some(why) = trouble {
            give_up::end_leftovers(&context, &left, name);
            fail_with_log(&context, &left, &handle, &why);
            self.failures.note(&context.who(), true);
        }
        self.forget(permit, numbers, &keys);
    }

    /// Fails a job that cannot even begin.
    fn give_up(&self, task: Task, why: &str) {
        let name = name_of(&task.payload, task.record.began);
        let directory = SlotDirectory::new(&self.state, task.permit.slot);
        give_up::end_leftovers(&task.context, &directory, name);
        fail(&task.context, &task.payload.handle(), why);
        self.failures.note(&task.context.who(), true);
        if let Err(error) = directory.discard() {
            log::error!("cannot remove the directory of a slot error={error}");
        }
        self.forget(task.permit, task.record.concurrent, &numbers_of(&task.context, &task.payload));
    }

    /// A payload that cannot be read is failed at the server, which would wait for an hour otherwise: in a thread of
    /// its own, since the server may be slow and other jobs wait.
    fn refuse(self: &Arc<Self>, permit: Permit, context: Context, job: JobHandle, why: &str) {
        let why = format!("the payload of this job cannot be read: {why}");
        let (desk, told) = (Arc::clone(self), why.clone());
        let refused = in_thread(job.id.clone(), (permit, context, job), move |(permit, context, job)| {
            let directory = SlotDirectory::new(&desk.state, permit.slot);
            fail_with_log(&context, &directory, &job, &told);
            drop(permit);
            let _ = desk.events.send(Event::Changed);
        });
        if let Err(((_permit, context, job), error)) = refused {
            fail(&context, &job, &format!("{why}; and no thread for it: {error}"));
        }
    }

    /// Counts a job; returns how many there are with it.
    fn count(&self) -> u32 {
        let mut inner = self.lock();
        inner.count.jobs += 1;
        inner.count.jobs
    }

    fn save_count(&self) {
        if let Err(error) = self.lock().count.save(&self.state) {
            log::error!("cannot save the job count error={error}");
        }
    }

    /// The smallest free numbers of a job, or the ones it had.
    fn number(&self, context: &Context, payload: &Payload, had: Option<(u32, u32)>) -> (u32, u32) {
        let mut inner = self.lock();
        let [of_runner, of_project] = numbers_of(context, payload);
        let mut take = |key: NumberKey, had: Option<u32>| {
            let used = inner.numbers.entry(key).or_default();
            let number = had.unwrap_or_else(|| (0..).find(|number| !used.contains(number)).unwrap_or(0));
            used.push(number);
            number
        };
        (take(of_runner, had.map(|had| had.0)), take(of_project, had.map(|had| had.1)))
    }

    /// The end of a job. Its slot is given back last: the next job in it has a control of its own.
    fn forget(&self, permit: Permit, numbers: (u32, u32), keys: &[NumberKey; 2]) {
        {
            let mut inner = self.lock();
            inner.controls.remove(&permit.slot);
            if inner.controls.is_empty() {
                self.instance.protect(Work::Idle);
            }
            for (key, number) in keys.iter().zip([numbers.0, numbers.1]) {
                if let Some(used) = inner.numbers.get_mut(key) {
                    used.retain(|used| *used != number);
                }
            }
        }
        drop(permit);
        let _ = self.events.send(Event::Changed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What numbers are counted over: a runner, or a runner and a project.
type NumberKey = (String, Option<i64>);

/// A job, with all that its thread needs.
struct Task {
    permit: Permit,
    context: Context,
    record: Record,
    payload: Payload,
    begin: Begin,
}

enum Begin {
    /// It has just been taken, and this came of writing it down.
    Fresh(io::Result<()>),
    /// It was found in the journal.
    Resumed,
}

/// Has a thread of a job work on something. Errors: there can be no more threads; what it was to work on comes back.
fn in_thread<T: Send + 'static>(
    job: impl std::fmt::Display,
    load: T,
    work: impl FnOnce(T) + Send + 'static,
) -> Result<(), (T, io::Error)> {
    let (hand, given) = mpsc::channel();
    let thread = thread::Builder::new().name(format!("job-{job}")).stack_size(JOB_STACK);
    if let Err(error) = thread.spawn(move || given.recv().map_or((), work)) {
        return Err((load, error));
    }
    // It waits for that.
    let _ = hand.send(load);
    Ok(())
}

fn numbers_of(context: &Context, payload: &Payload) -> [NumberKey; 2] {
    let runner = context.runner.token.short();
    [(runner.clone(), None), (runner, Some(payload.job_info.project_id))]
}

fn tell(who: &Who, id: i64, ended: &Ended) {
    numbers::job_ended(who, id, result(ended));
    match ended {
        Ended::Reported(JobState::Failed { reason, exit_code }, delivery) => {
            let code = exit_code.map(|code| format!(" exit_code={code}")).unwrap_or_default();
            log::info!("job ended job={id} state=failed reason={}{code} delivery={delivery:?}", reason.as_str());
        }
        Ended::Reported(_, delivery) => log::info!("job ended job={id} state=success delivery={delivery:?}"),
        Ended::Dropped => log::info!("job dropped: GitLab no longer expects it from this runner job={id}"),
    }
}

/// Whether a job failed for the machine's sake.
fn is_system_failure(state: &JobState) -> bool {
    matches!(state, JobState::Failed { reason: FailureReason::RunnerSystemFailure, .. })
}

/// How monitoring calls an end.
fn result(ended: &Ended) -> &'static str {
    match ended {
        Ended::Reported(JobState::Failed { reason, .. }, _) => reason.as_str(),
        Ended::Reported(..) => "success",
        Ended::Dropped => "dropped",
    }
}

/// Fails a job that has no engine (any more).
fn fail_with_log(context: &Context, directory: &SlotDirectory, job: &JobHandle, why: &str) {
    match give_up::fail(context, directory, job, why) {
        Ok(_) => {
            log::error!("job failed by the agent job={} error={why}", job.id);
            numbers::job_ended(&context.who(), &job.id, FailureReason::RunnerSystemFailure.as_str());
        }
        Err(error) => fail(context, job, &format!("{why}; and its log cannot be kept: {error}")),
    }
}

/// Fails a job for which not even a log can be kept.
fn fail(context: &Context, job: &JobHandle, why: &str) {
    numbers::job_ended(&context.who(), &job.id, FailureReason::RunnerSystemFailure.as_str());
    log::error!("job failed by the agent job={} error={why}", job.id);
    let error = JobError::new(FailureReason::RunnerSystemFailure, why);
    let state = JobState::Failed { reason: error.reason, exit_code: None };
    context.coordinator.update_job(job, &state, TraceSummary::default());
}

/// Jobs that an earlier agent left: `None` for a record that cannot be read any more.
pub fn payload_of(record: &Record) -> Option<Payload> {
    payload::decode(record.payload.as_bytes()).ok()
}

/// Makes the state directory. Errors: it cannot be made or written.
pub fn prepare_state(state: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state)
}
