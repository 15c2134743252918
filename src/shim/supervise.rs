//! The main loop of the shim: starts the step, copies its output, enforces its deadline, kills the processes that
//! remain, writes the status.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::{set_child_subreaper, set_dumpable};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use super::child::{self, FileTaskRunner, Started};
use super::confine::probe;
use super::descendants;
use super::groups;
use super::running;
use super::spec::{StepEnd, StepProgram, StepSpec, StepStatus, Stop};
use crate::decode;
use crate::sys::{self, BootTime};
use crate::trace::colours::{RESET, YELLOW};
use crate::trace::{Claim, Filter, Masks, Output, Spool};

/// Size of the status file, reserved at the start.
const STATUS_FILE_SIZE: usize = 4096;
/// Maximum size of a report.
const REPORT_MAX: u64 = 1 << 20;
/// Bytes read from a pipe at a time, as long as the step writes little. Memory that is not touched costs nothing.
const FIRST_READ_SIZE: usize = 4 * 1024;
/// Bytes read from a pipe at a time.
const READ_SIZE: usize = 128 * 1024;
/// An incomplete line is written to the log after this time without output.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// How long processes that outlive the main process have to end by themselves.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// How long killed processes may take to disappear. Only a process that hangs in the kernel takes longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The hidden subcommand `shim`: reads a [`StepSpec`] from standard input; `work` runs file tasks.
pub fn main(work: FileTaskRunner) -> ExitCode {
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
    let status = supervise(&spec, work).unwrap_or_else(|error| StepStatus {
        id: spec.id.clone(),
        end: StepEnd::NotStarted(error.to_string()),
        stopped: None,
        killed_processes: 0,
        report: String::new(),
    });
    match write_status(&spec.status, &status) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Creates the status file at its full size. The file marks the step as started: without a status and without a shim,
/// the step is lost. The reserved space lets the shim write the status even if the step fills the disk.
fn reserve_status(path: &Path) -> io::Result<()> {
    fs::write(running::started_marker(path), [b' '; STATUS_FILE_SIZE])
}

/// Writes the status into the reserved file.
fn write_status(path: &Path, status: &StepStatus) -> io::Result<()> {
    let mark = running::started_marker(path);
    let mut text = serde_json::to_vec(status)?;
    text.resize(text.len().max(STATUS_FILE_SIZE), b' ');
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&mark)?;
    file.write_all(&text)?;
    fs::rename(&mark, path)
}

fn supervise(spec: &StepSpec, work: FileTaskRunner) -> io::Result<StepStatus> {
    let signals = become_subreaper()?;
    reserve_status(&spec.status)?;
    let masks = spec.filters.patterns();
    let spool = Spool::open(&spec.spool, spec.filters.limit)?;
    groups::create(&spec.cgroups, spec.limits());
    let started = child::start(spec, work)?;
    let mut shim = Supervisor::new(spec, &masks, spool, started, signals);
    // `pidfd_open` fails if the process has ended. Then the step must stop, too.
    shim.agent = spec.stop_with_pid.map(sys::pidfd_open).transpose().unwrap_or_else(|_| {
        shim.stop(Stop::Requested);
        None
    });
    let end = shim.run()?;
    shim.kill_relay();
    let leftovers = shim.kill_leftovers();
    descendants::remove_groups(&spec.cgroups);
    let report = shim.read_report();
    Ok(StepStatus { id: spec.id.clone(), end, stopped: shim.stopped, killed_processes: leftovers, report })
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
    started: Started,
    signals: SignalFd,
    stdout: Option<Filter<'a>>,
    stderr: Option<Filter<'a>>,
    block: Vec<u8>,
    lines: Vec<u8>,
    stopped: Option<Stop>,
    kill_at: Option<Instant>,
    end: Option<StepEnd>,
    /// Whether the last output may end with an incomplete line.
    unflushed: bool,
    /// The pidfd of the process that the step stops with.
    agent: Option<OwnedFd>,
}

impl<'a> Supervisor<'a> {
    fn new(spec: &'a StepSpec, masks: &'a Masks, spool: Spool, started: Started, signals: SignalFd) -> Self {
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
            if let Some(end) = self.end.take() {
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
        while let Some(signal) = self.signals.read_signal()? {
            if signal.ssi_signo == Signal::SIGTERM as u32 {
                self.stop(Stop::Requested);
            }
        }
        self.reap();
        Ok(())
    }

    /// Reaps all children that have ended, and records how the main process ended.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let main = self.started.pid;
            match status {
                WaitStatus::Exited(pid, code) if pid == main => self.end = Some(StepEnd::Exited(code)),
                WaitStatus::Signaled(pid, signal, _) if pid == main => {
                    self.end = Some(StepEnd::Signaled(signal as i32))
                }
                WaitStatus::StillAlive => return,
                ended if ended.pid() == self.started.relay => self.started.relay = None,
                _ => {}
            }
        }
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
        let _ = self.spool.append(&self.lines, Claim::Output);
        matches!(read, Ok(1..))
    }

    fn flush(&mut self) {
        self.unflushed = false;
        for filter in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            self.lines.clear();
            filter.flush(&mut self.lines);
            let _ = self.spool.append(&self.lines, Claim::Output);
        }
    }

    /// Copies the data that is left in the pipes after the end of the main process. Does not wait for the end of the
    /// pipes, because another process may keep them open forever.
    fn drain(&mut self) {
        for output in [Output::Out, Output::Error] {
            // A pipe holds at most 1 MiB, so a process that keeps writing cannot delay the shim.
            for _ in 0..(1 << 20) / 4096 {
                if !self.pump(output) {
                    break;
                }
            }
        }
        for filter in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            let mut filter = filter;
            self.lines.clear();
            filter.finish(&mut self.lines);
            let _ = self.spool.append(&self.lines, Claim::Output);
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

    /// Sends TERM to all processes, and sets the time for KILL.
    fn stop(&mut self, why: Stop) {
        if self.stopped.is_none() {
            self.stopped = Some(why);
            self.kill_at = Some(Instant::now() + self.spec.grace);
            descendants::signal_all(&self.all_processes(), Signal::SIGTERM);
        }
    }

    fn all_processes(&self) -> Vec<i32> {
        let mut all = descendants::below(Pid::this().as_raw());
        for group in &self.spec.cgroups {
            all.extend(descendants::in_group(group));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn kill_all_processes(&self) {
        for group in &self.spec.cgroups {
            descendants::kill_group(group);
        }
        descendants::signal_all(&descendants::below(Pid::this().as_raw()), Signal::SIGKILL);
    }

    fn kill_relay(&mut self) {
        if let Some(relay) = self.started.relay.take() {
            let _ = kill(relay, Signal::SIGKILL);
            let _ = waitpid(relay, None);
        }
    }

    /// Kills the processes that the step left. Returns their number.
    fn kill_leftovers(&mut self) -> u32 {
        // All orphans of the step become children of the shim, its subreaper. So if the shim has no child, no process
        // is left.
        if waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD) {
            return 0;
        }
        let left = self.all_processes();
        if left.is_empty() {
            return 0;
        }
        let names: Vec<String> = left.iter().take(3).map(|pid| descendants::name_of(*pid)).collect();
        descendants::signal_all(&left, Signal::SIGTERM);
        let grace = if self.stopped.is_some() { Duration::ZERO } else { LEFTOVER_GRACE };
        if !self.wait_for_children(grace) {
            // New processes may be forked meanwhile, so repeat until none is left or the timeout has passed.
            let until = Instant::now() + KILL_TIMEOUT;
            while Instant::now() < until {
                self.kill_all_processes();
                if self.wait_for_children(Duration::from_millis(100)) {
                    break;
                }
            }
        }
        // Only the leftovers of a script are logged. In file tasks the agent runs git, whose helpers can outlive git
        // when a server fails.
        if matches!(self.spec.task, StepProgram::Process { .. }) {
            self.log_leftovers(left.len(), &names);
        }
        u32::try_from(left.len()).unwrap_or(u32::MAX)
    }

    fn log_leftovers(&self, count: usize, names: &[String]) {
        let more = if count > names.len() { ", …" } else { "" };
        let text = format!(
            "{YELLOW}WARNING: ended {count} process(es) that the script had left running: {}{more}{RESET}\n",
            names.join(", ")
        );
        let masks = Masks::new(&self.spec.filters.masks, &self.spec.filters.token_prefixes);
        let mut filter = Filter::new(&masks, &self.spec.filters, 0, Output::Out);
        let mut lines = Vec::new();
        filter.push(text.as_bytes(), &mut lines);
        filter.finish(&mut lines);
        let _ = self.spool.append(&lines, Claim::Result);
    }

    /// Waits until the shim has no child, at most for `timeout`. An orphan becomes a child of the shim when its parent
    /// ends.
    fn wait_for_children(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        loop {
            loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Err(Errno::ECHILD) => return true,
                    Ok(WaitStatus::StillAlive) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let _ = sys::wait([Some(self.signals.as_fd())], Some(left));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }

    /// Reads the report of a file task, up to the maximum size.
    fn read_report(&mut self) -> String {
        let mut text = Vec::new();
        let report = &mut self.started.report;
        let read = report.rewind().and_then(|()| report.take(REPORT_MAX).read_to_end(&mut text));
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
