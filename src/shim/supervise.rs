//! The main loop of the shim: starts the step, copies its output, enforces its deadline, kills the processes that
//! remain, writes the status.

mod leftovers;
mod status_file;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::prctl::{set_child_subreaper, set_dumpable};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::setsid;

use super::child::{self, StartedStep, TaskRunner};
use super::confine::probe;
use super::descendants;
use super::groups;
use super::spec::{StepEnd, StepSpec, StepStatus, Stop};
use crate::decode;
use crate::sys::{self, BootTime};
use crate::trace::{Filter, Masks, Output, Spool, TextKind};

/// Maximum size of a report.
const MAX_REPORT: u64 = 1 << 20;
/// Bytes read from a pipe at a time, as long as the step writes little. Memory that is not touched costs nothing.
const FIRST_READ_SIZE: usize = 4 * 1024;
/// Bytes read from a pipe at a time.
const READ_SIZE: usize = 128 * 1024;
/// The size of the largest pipe, in bytes.
const PIPE_SIZE: usize = 1 << 20;
/// An incomplete line is written to the log after this time without output.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// After the end of the main process, the output of its other processes counts as complete after this time without
/// output.
const LAST_OUTPUT_SILENCE: Duration = Duration::from_millis(500);
/// The time limit for the output of other processes after the end of the main process.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// The hidden subcommand `shim`: reads a [`StepSpec`] from standard input; `work` runs tasks of the agent's program.
pub fn main(work: TaskRunner) -> ExitCode {
    let mut arguments = std::env::args_os().skip(2);
    if arguments.next().is_some_and(|first| first == probe::ARGUMENT) {
        return probe::main(arguments);
    }
    let mut text = Vec::new();
    let read =
        io::stdin().as_fd().try_clone_to_owned().map(File::from).and_then(|mut file| file.read_to_end(&mut text));
    let spec: StepSpec = match read.map(|_| decode::json(&text)) {
        Ok(Ok(spec)) => spec,
        _ => {
            eprintln!("mayfly shim is started by mayfly itself, with a step on standard input");
            return ExitCode::from(2);
        }
    };
    drop(text);
    let status = supervise(&spec, work).unwrap_or_else(|error| StepStatus::not_started(&spec.id, error.to_string()));
    match status_file::write(&spec.status, &status) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn supervise(spec: &StepSpec, work: TaskRunner) -> io::Result<StepStatus> {
    let signals = become_subreaper()?;
    status_file::reserve(&spec.status)?;
    let masks = spec.filters.patterns();
    let spool = Spool::open(&spec.spool, spec.filters.limit)?;
    groups::create(&spec.cgroups, spec.limits());
    let started = child::start(spec, work)?;
    let mut supervisor = Supervisor::new(spec, &masks, spool, started, signals);
    // `pidfd_open` fails if the process has ended. Then the step must stop, too.
    supervisor.agent = spec.stop_with_pid.map(sys::pidfd_open).transpose().unwrap_or_else(|_| {
        supervisor.stop(Stop::Requested);
        None
    });
    let end = supervisor.run()?;
    supervisor.kill_relay();
    let leftovers = supervisor.kill_leftovers();
    descendants::remove_groups(&spec.cgroups);
    let report = supervisor.read_report();
    Ok(StepStatus { id: spec.id.clone(), end, stopped: supervisor.stopped, killed_processes: leftovers, report })
}

/// Makes the shim independent of the agent, not readable for the job, and the subreaper of all processes of the step.
fn become_subreaper() -> io::Result<SignalFd> {
    // Fails only for a process group leader, which needs no new session.
    let _ = setsid();
    set_dumpable(false)?;
    set_child_subreaper(true)?;
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE] {
        sys::ignore(signal)?;
    }
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

struct Supervisor<'a> {
    spec: &'a StepSpec,
    spool: Spool,
    started: StartedStep,
    signals: SignalFd,
    /// The filter of standard output; `None` once the pipe is closed.
    stdout: Option<Filter<'a>>,
    /// The same for standard error; `None` if that is merged into standard output.
    stderr: Option<Filter<'a>>,
    /// The buffer for reading from a pipe.
    block: Vec<u8>,
    /// The buffer for filtered output.
    lines: Vec<u8>,
    /// Why the shim stopped the step, if it did.
    stopped: Option<Stop>,
    /// When the shim sends KILL to a step that it has stopped.
    kill_at: Option<Instant>,
    /// How the main process ended, once it has.
    end: Option<StepEnd>,
    /// Whether the last output may end with an incomplete line.
    unflushed: bool,
    /// The pidfd of the process that the step stops with.
    agent: Option<OwnedFd>,
}

impl<'a> Supervisor<'a> {
    fn new(spec: &'a StepSpec, masks: &'a Masks, spool: Spool, started: StartedStep, signals: SignalFd) -> Self {
        let filter = |output| Filter::new(masks, &spec.filters, 1, output);
        let stderr = started.stderr.as_ref().map(|_| filter(Output::Error));
        Self {
            spec,
            spool,
            started,
            signals,
            stdout: Some(filter(Output::Out)),
            stderr,
            block: vec![0; FIRST_READ_SIZE],
            lines: Vec::new(),
            stopped: None,
            kill_at: None,
            end: None,
            unflushed: false,
            agent: None,
        }
    }

    /// Runs until the main process has ended and its output is in the log.
    fn run(&mut self) -> io::Result<StepEnd> {
        loop {
            if let Some(end) = self.end.clone() {
                self.read_last_output();
                self.drain();
                return Ok(self.with_start_error(end));
            }
            let timeout = self.next_timeout();
            let [signal, stdout, stderr, agent] = self.poll(timeout)?;
            if agent {
                self.agent = None;
                self.stop(Stop::Requested);
            }
            if signal {
                self.read_signals()?;
            }
            if stdout {
                self.pump(Output::Out);
            }
            if stderr {
                self.pump(Output::Error);
            }
            if !(signal || stdout || stderr || agent) && self.unflushed {
                self.flush();
            }
            self.enforce_deadlines();
        }
    }

    /// Time until the next deadline or flush.
    fn next_timeout(&self) -> Option<Duration> {
        let deadline = self.spec.deadline.filter(|_| self.stopped.is_none());
        let deadline = deadline.map(BootTime::time_left);
        let kill = self.kill_at.map(|at| at.saturating_duration_since(Instant::now()));
        let silence = self.unflushed.then_some(FLUSH_INTERVAL);
        [deadline, kill, silence].into_iter().flatten().min()
    }

    fn poll(&self, timeout: Option<Duration>) -> io::Result<[bool; 4]> {
        let stdout = self.stdout.as_ref().map(|_| self.started.stdout.as_fd());
        let stderr = self.started.stderr.as_ref().filter(|_| self.stderr.is_some()).map(AsFd::as_fd);
        sys::wait([Some(self.signals.as_fd()), stdout, stderr, self.agent.as_ref().map(AsFd::as_fd)], timeout)
    }

    fn read_signals(&mut self) -> io::Result<()> {
        let mut is_stop_requested = false;
        while let Some(signal) = self.signals.read_signal()? {
            is_stop_requested |= signal.ssi_signo == Signal::SIGTERM as u32;
        }
        // The end of the main process counts first: a step that has ended by itself was not stopped.
        self.reap();
        if is_stop_requested {
            self.stop(Stop::Requested);
        }
        Ok(())
    }

    /// Reaps all children that have ended, and records how the main process ended. Returns whether a child still runs:
    /// all orphans of the step become children of the shim, its subreaper.
    fn reap(&mut self) -> bool {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let main = self.started.pid;
            match status {
                WaitStatus::Exited(pid, code) if pid == main => self.end = Some(StepEnd::Exited(code)),
                WaitStatus::Signaled(pid, signal, _) if pid == main => {
                    self.end = Some(StepEnd::Signaled(signal as i32))
                }
                WaitStatus::StillAlive => return true,
                ended if ended.pid() == self.started.relay => self.started.relay = None,
                _ => {}
            }
        }
        false
    }

    /// Copies one block of a stream to the log. Returns false if the stream is closed.
    fn pump(&mut self, output: Output) -> bool {
        let (fd, filter) = match output {
            Output::Out => (Some(&self.started.stdout), &mut self.stdout),
            Output::Error => (self.started.stderr.as_ref(), &mut self.stderr),
        };
        let (Some(fd), Some(open)) = (fd, filter.as_mut()) else { return false };
        self.lines.clear();
        let read = nix::unistd::read(fd, &mut self.block);
        match read {
            Ok(0) => {
                open.finish(&mut self.lines);
                *filter = None;
            }
            Ok(length) => {
                open.push(&self.block[..length], &mut self.lines);
                self.unflushed = true;
                if length == self.block.len() {
                    self.block.resize(READ_SIZE, 0);
                }
            }
            Err(_) => return false,
        }
        let _ = self.spool.append(&self.lines, TextKind::Output);
        matches!(read, Ok(1..))
    }

    fn flush(&mut self) {
        self.unflushed = false;
        for filter in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            self.lines.clear();
            filter.flush(&mut self.lines);
            let _ = self.spool.append(&self.lines, TextKind::Output);
        }
    }

    /// Copies the output of processes that outlive the main process, such as `tee` in `exec > >(tee FILE)`, until they
    /// are silent. They are killed afterwards, with the output that they have not written.
    fn read_last_output(&mut self) {
        let until = Instant::now() + LAST_OUTPUT_TIMEOUT;
        while self.stopped.is_none() && Instant::now() < until && self.has_open_stream() && self.reap() {
            let Ok([signal, stdout, stderr, _]) = self.poll(Some(LAST_OUTPUT_SILENCE)) else { return };
            if !(signal || stdout || stderr) {
                return;
            }
            if signal && self.read_signals().is_err() {
                return;
            }
            if stdout {
                self.pump(Output::Out);
            }
            if stderr {
                self.pump(Output::Error);
            }
        }
    }

    fn has_open_stream(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    /// Copies the data that is left in the pipes after the end of the main process. Does not wait for the end of the
    /// pipes, because another process may keep them open forever.
    fn drain(&mut self) {
        for output in [Output::Out, Output::Error] {
            // A process that keeps writing cannot delay the shim: it reads as many blocks as the largest pipe holds.
            for _ in 0..PIPE_SIZE / FIRST_READ_SIZE {
                if !self.pump(output) {
                    break;
                }
            }
        }
        for filter in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            let mut filter = filter;
            self.lines.clear();
            filter.finish(&mut self.lines);
            let _ = self.spool.append(&self.lines, TextKind::Output);
        }
    }

    fn enforce_deadlines(&mut self) {
        if self.stopped.is_none() && self.spec.deadline.is_some_and(|at| BootTime::now() >= at) {
            self.stop(Stop::Deadline);
        }
        if self.kill_at.is_some_and(|at| Instant::now() >= at) {
            self.kill_at = None;
            self.kill_all_processes();
        }
    }

    /// Sends TERM to all processes, and sets the time for KILL, unless the main process has already ended.
    fn stop(&mut self, why: Stop) {
        if self.stopped.is_none() && self.end.is_none() {
            self.stopped = Some(why);
            self.kill_at = Some(Instant::now() + self.spec.grace);
            descendants::signal_all(&self.all_processes(), Signal::SIGTERM);
        }
    }

    /// Reads the report of a task of the agent's program, up to the maximum size.
    fn read_report(&mut self) -> String {
        let mut text = Vec::new();
        let report = &mut self.started.report;
        let read = report.rewind().and_then(|()| report.take(MAX_REPORT).read_to_end(&mut text));
        read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&text).into_owned())
    }

    /// Replaces the end by `NotStarted` if the step could not be started.
    fn with_start_error(&mut self, end: StepEnd) -> StepEnd {
        let mut why = String::new();
        match self.started.failure.read_to_string(&mut why) {
            Ok(length) if length > 0 => StepEnd::NotStarted(why),
            _ => end,
        }
    }
}
