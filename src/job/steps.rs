//! The steps of a stage: what is handed to a shim, and what its outcome means.

use std::io;

use super::engine::{Engine, abort_error, stop_error};
use super::flags::WITHOUT_TOKENS;
use super::limits::{Limit, Over};
use super::script::{self, Lines, Setup};
use super::sources::{self, Strategy};
use super::work;
use crate::executor::Ground;
use crate::failure::{FailureReason, JobError};
use crate::journal::StepRecord;
use crate::journal::orders::Orders;
use crate::shim::spec::{End, Rights, Spec, Status, Stop, Task};
use crate::shim::{self, Event, Outcome, Running};
use crate::sys;

/// What stops a step, short of the end of everything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StopsFor {
    /// A cancel by a person, and the loss of the machine.
    Any,
    /// The loss of the machine.
    Eviction,
    /// Nothing: it is what the time that is left is for.
    Nothing,
}

impl StopsFor {
    fn stops(self, orders: &Orders) -> bool {
        match self {
            Self::Any => orders.stop(),
            Self::Eviction => orders.evict.is_some(),
            Self::Nothing => false,
        }
    }
}

/// File work whose shim is killed this often is given up.
const LOSSES_MOST: u32 = 3;

impl Engine<'_> {
    /// True when there is nothing to fetch and nothing to remove.
    pub(super) fn has_no_sources(&self) -> bool {
        let strategy = sources::strategy(&self.payload, &self.prepared.variables);
        !self.prepared.flags.is_on(WITHOUT_TOKENS) && strategy.is_ok_and(|strategy| strategy == Strategy::None)
    }

    /// Hooks, git, hooks.
    pub(super) fn try_sources(&mut self) -> io::Result<Result<(), JobError>> {
        if self.has_no_sources() {
            return Ok(Ok(()));
        }
        let tasks = match self.sources_plan() {
            Ok(plan) => self.sources_tasks(plan)?,
            Err(error) => return Ok(Err(error)),
        };
        let limit = self.sources_limit();
        for (index, task) in tasks.into_iter().enumerate().skip(self.record.progress.steps_done) {
            if let Err(error) = self.step(task, &limit, StopsFor::Any)? {
                return Ok(Err(error));
            }
            self.record.progress.steps_done = index + 1;
            self.record.progress.step = None;
            self.save()?;
        }
        Ok(Ok(()))
    }

    fn sources_tasks(&self, plan: sources::Plan) -> io::Result<Vec<Task>> {
        let hooks = plan.strategy != Strategy::Empty;
        let runner = &self.context.runner;
        let own = |text: &Option<String>| -> Vec<String> { text.iter().filter(|_| hooks).cloned().collect() };
        let of_job = |name: &str| if hooks { self.payload.hook(name).to_vec() } else { Vec::new() };
        let before = vec![
            Lines { origin: "pre_clone_script", lines: own(&runner.pre_get_sources_script) },
            Lines { origin: "pre_clone_script", lines: of_job("pre_get_sources_script") },
        ];
        let after = vec![
            Lines { origin: "post_clone_script", lines: of_job("post_get_sources_script") },
            Lines { origin: "post_clone_script", lines: own(&runner.post_get_sources_script) },
        ];
        let mut tasks = Vec::new();
        let has_lines = |groups: &[Lines<'_>]| groups.iter().any(|group| !group.lines.is_empty());
        if has_lines(&before) {
            tasks.push(self.shell_task(&before, None, None));
        }
        tasks.push(self.file_work(&work::Plan::Sources(plan))?);
        if has_lines(&after) {
            let directory = self.prepared.place.seen(&self.prepared.place.project).display().to_string();
            tasks.push(self.shell_task(&after, Some(directory), None));
        }
        Ok(tasks)
    }

    /// A stage of file work; nothing to do is done well.
    pub(super) fn carry(&mut self, plan: Option<work::Plan>) -> io::Result<Result<(), JobError>> {
        let Some(plan) = plan else { return Ok(Ok(())) };
        let stops_for = match plan {
            work::Plan::SaveCache(_) => StopsFor::Eviction,
            work::Plan::UploadArtifacts(_) | work::Plan::CleanUp(_) => StopsFor::Nothing,
            _ => StopsFor::Any,
        };
        let limit = self.job_limit();
        let outcome = self.step(self.file_work(&plan)?, &limit, stops_for)?;
        // A cache that was not finished for lack of time is no failure of the job.
        let given_up = stops_for == StopsFor::Eviction && stops_for.stops(&self.control.orders());
        Ok(if given_up && !self.control.orders().abort() { Ok(()) } else { outcome })
    }

    /// Takes away what the job left, where it asks for that; never the job's failure, and never in a work tree that is
    /// not ours.
    pub(super) fn clean_up(&mut self) -> io::Result<Result<(), JobError>> {
        if !self.prepared.flags.is_on("FF_ENABLE_JOB_CLEANUP") || self.context.place.is_some() {
            return Ok(Ok(()));
        }
        let plan = self.sources_plan().ok().map(work::Plan::CleanUp);
        let outcome = self.carry(plan)?;
        Ok(if self.control.orders().abort() { outcome } else { Ok(()) })
    }

    fn sources_plan(&self) -> Result<sources::Plan, JobError> {
        let place = sources::Place {
            project: self.prepared.place.project.clone(),
            temporary: self.prepared.place.temporary.clone(),
            seen: self.context.executor.containers().map(|_| self.prepared.place.seen(&self.prepared.place.temporary)),
            server: self.context.runner.url.clone(),
            clone_url: self.context.runner.clone_url.clone(),
            ca_certificates: self.prepared.ca_certificates.clone(),
            correlation_id: match self.prepared.flags.is_on("FF_USE_GITALY_CORRELATION_ID") {
                true => self.record.request_id.clone(),
                false => String::new(),
            },
            environment: self.context.executor.environment(),
            without_tokens: self.prepared.flags.is_on(WITHOUT_TOKENS),
        };
        let plan = sources::plan(&self.payload, &self.prepared.variables, place)?;
        Ok(sources::Plan { clear_worktree: self.record.progress.attempt == 1, ..plan })
    }

    /// One step of the payload, with what the runner puts around it.
    pub(super) fn script_step(&mut self, index: usize) -> io::Result<Result<(), JobError>> {
        let step = self.payload.steps[index].clone();
        let runner = self.context.runner.clone();
        let own = |text: &Option<String>| -> Vec<String> { text.iter().cloned().collect() };
        let mut lines = step.script;
        if step.name == "release" {
            lines = lines.iter().map(|line| self.prepared.variables.expand(line)).collect();
        }
        let groups = [
            Lines { origin: "pre_build_script", lines: own(&runner.pre_build_script) },
            Lines { origin: "script_step", lines },
            Lines { origin: "post_build_script", lines: own(&runner.post_build_script) },
        ];
        let directory = self.prepared.place.seen(&self.prepared.place.project).display().to_string();
        let task = self.shell_task(&groups, Some(directory), None);
        let limit = self.script_limit();
        self.step(task, &limit, StopsFor::Any)
    }

    /// Runs in any case, in a shell of its own, and knows how the scripts came out.
    pub(super) fn after_script(&mut self) -> io::Result<Result<(), JobError>> {
        let lines = self.payload.step("after_script").map(|step| step.script.clone()).unwrap_or_default();
        let groups = [Lines { origin: "after_script_step", lines }];
        let status = self.record.progress.status.clone().unwrap_or_else(|| "success".to_owned());
        self.prepared.variables.set("CI_JOB_STATUS", status);
        let directory = self.prepared.place.seen(&self.prepared.place.project).display().to_string();
        let task = self.shell_task(&groups, Some(directory), Some("Running after script..."));
        let limit = self.after_script_limit();
        self.step(task, &limit, StopsFor::Eviction)
    }

    fn shell_task(&self, groups: &[Lines<'_>], directory: Option<String>, greeting: Option<&str>) -> Task {
        let flags = &self.prepared.flags;
        let setup = Setup {
            exports: self.prepared.variables.exports(),
            files: self.prepared.variables.files(),
            temporary: self.prepared.place.seen(&self.prepared.place.temporary).display().to_string(),
            directory,
            trace: self.prepared.debug,
            check_each_line: flags.is_on("FF_ENABLE_BASH_EXIT_CODE_CHECK"),
            sections: flags.is_on("FF_SCRIPT_SECTIONS") && self.payload.features.trace_sections,
        };
        // With stamps each line says which stream it came from; without, or with the shell's own trace between the
        // output, their exact order is worth more.
        let merge = self.prepared.debug || !self.prepared.filters.timestamps;
        let text = script::script(&setup, groups, greeting);
        match self.context.executor.ground() {
            Ground::Containers(_) => self.container_script(text, merge),
            Ground::Shell(shell) => shell.script(text, merge),
        }
    }

    /// Work on the job's files.
    fn file_work(&self, plan: &work::Plan) -> io::Result<Task> {
        let rights = match self.context.executor.containers() {
            Some(_) => Rights::Walled(self.walls(plan)),
            None => Rights::User,
        };
        Ok(Task::Work { plan: plan.to_text().map_err(io::Error::other)?, rights, doors: None })
    }

    /// Runs one step, or takes up one that an earlier agent had started.
    pub(super) fn step(&mut self, task: Task, limit: &Limit, stops_for: StopsFor) -> io::Result<Result<(), JobError>> {
        // File work can be done again from its start; a script cannot, nor what speaks with an engine about one.
        let is_file_work = matches!(&task, Task::Work { rights, .. } if *rights != Rights::All);
        let again = is_file_work.then(|| task.clone());
        let mut outcome = match self.record.progress.step.clone() {
            Some(step) => self.take_up(task, &step, stops_for)?,
            None => self.begin(task, limit, stops_for)?,
        };
        for _ in 0..LOSSES_MOST {
            let Some(again) = again.clone().filter(|_| outcome == Outcome::Lost) else { break };
            let orders = self.control.orders();
            if orders.abort() || stops_for.stops(&orders) {
                break;
            }
            self.sweep();
            self.say("The process that did this was killed; it is done again".to_owned())?;
            outcome = self.begin(again, limit, stops_for)?;
        }
        Ok(self.judge(&outcome, limit, stops_for))
    }

    /// Writes down that a step is about to run, and runs it.
    fn begin(&mut self, task: Task, limit: &Limit, stops_for: StopsFor) -> io::Result<Outcome> {
        // Another server, or another agent on this machine, may have a job of this number.
        let id = format!("{}-{:x}-{}", self.payload.id, self.record.began, self.record.progress.steps);
        self.record.progress.steps += 1;
        let cgroups = self.context.executor.cgroups(&id);
        let step = StepRecord { id, shim: None, cgroups, deadline: Some(limit.deadline) };
        self.record.progress.step = Some(step.clone());
        self.save()?;
        self.start(task, &step, stops_for)
    }

    fn start(&mut self, task: Task, step: &StepRecord, stops_for: StopsFor) -> io::Result<Outcome> {
        let spec = Spec {
            id: step.id.clone(),
            spool: self.directory.spool(),
            status: self.directory.status(&step.id),
            filters: self.prepared.filters.clone(),
            user: self.context.executor.user().cloned(),
            cgroups: step.cgroups.clone(),
            grace: self.grace_of(&task),
            deadline: step.deadline,
            task,
        };
        let running = match Running::start(&spec) {
            Ok(running) => running,
            // Processes or memory are used up: the job fails with its log, as if the shim had found that.
            Err(error) => {
                let end = End::NotStarted(format!("no process can be started for the script: {error}"));
                return Ok(Outcome::Ended(Status {
                    id: spec.id,
                    end,
                    stopped: None,
                    leftovers: 0,
                    report: String::new(),
                }));
            }
        };
        if let Some(step) = &mut self.record.progress.step {
            step.shim = Some(running.identity());
        }
        self.save()?;
        self.watch(running, stops_for)
    }

    /// A step of an earlier agent: it still runs, or it has left its outcome, or it never began.
    fn take_up(&mut self, task: Task, step: &StepRecord, stops_for: StopsFor) -> io::Result<Outcome> {
        let status = self.directory.status(&step.id);
        let running = match step.shim {
            Some(identity) => Running::adopt(identity, &status),
            None => Running::find(&step.id, &status),
        };
        if let Some(running) = running {
            return self.watch(running, stops_for);
        }
        match Outcome::read(&status) {
            Outcome::Lost if !shim::begun_mark(&status).exists() => self.start(task, step, stops_for),
            outcome => Ok(outcome),
        }
    }

    /// Waits for the end of a step, and stops it when something says so: that is written down first, since the outcome
    /// of a step that was stopped does not say what for.
    fn watch(&mut self, running: Running, stops_for: StopsFor) -> io::Result<Outcome> {
        loop {
            let orders = self.control.orders();
            if orders.abort() || stops_for.stops(&orders) {
                if self.record.progress.orders != orders {
                    self.record.progress.orders = orders;
                    self.save()?;
                }
                running.stop();
            }
            match running.wait(self.control.bell(), None) {
                Event::Ended => return Ok(running.outcome()),
                Event::Woken | Event::TimedOut => self.control.heard(),
            }
        }
    }

    /// Whose fault an outcome was.
    fn judge(&mut self, outcome: &Outcome, limit: &Limit, stops_for: StopsFor) -> Result<(), JobError> {
        let orders = self.control.orders();
        if orders.abort() {
            self.record.progress.aborted = true;
            return Err(abort_error(&orders));
        }
        let status = match outcome {
            Outcome::Ended(status) => status,
            Outcome::Lost => {
                self.sweep();
                self.record.progress.aborted = true;
                return Err(JobError::system(
                    "the process that held the script was killed: by the script, for lack of memory, or with the \
                     machine",
                ));
            }
        };
        self.record.progress.container_spent |= status.stopped.is_some();
        match status.stopped {
            Some(Stop::Deadline) if sys::boottime() >= self.job_deadline() => {
                self.record.progress.aborted = true;
                Err(self.job_timed_out())
            }
            Some(Stop::Deadline) => {
                self.record.progress.aborted |= limit.over == Over::Job;
                Err(limit.error.clone())
            }
            Some(Stop::Requested) if stops_for.stops(&orders) => stop_error(&orders).map_or(Ok(()), Err),
            _ => self.hear_report(&status.report).unwrap_or_else(|| end_of(status)),
        }
    }

    /// Ends what a dead shim left.
    pub(super) fn sweep(&self) {
        if let Some(step) = &self.record.progress.step {
            shim::sweep(&step.id, &step.cgroups);
        }
    }
}

fn end_of(status: &Status) -> Result<(), JobError> {
    let failed = |code: i32, message: String| {
        Err(JobError { reason: FailureReason::ScriptFailure, exit_code: Some(code), message })
    };
    match &status.end {
        End::Exited(0) => Ok(()),
        End::Exited(code) => failed(*code, format!("exit status {code}")),
        End::Signaled(number) => failed(-1, format!("signal: {}", name_of_signal(*number))),
        End::NotStarted(why) => Err(JobError::system(why.clone())),
    }
}

/// A signal in the words that job authors know.
fn name_of_signal(number: i32) -> String {
    use nix::libc;

    let name = match number {
        libc::SIGABRT => "aborted",
        libc::SIGALRM => "alarm clock",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGHUP => "hangup",
        libc::SIGILL => "illegal instruction",
        libc::SIGINT => "interrupt",
        libc::SIGKILL => "killed",
        libc::SIGPIPE => "broken pipe",
        libc::SIGQUIT => "quit",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGTERM => "terminated",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "file size limit exceeded",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
