//! The standard streams of a step: pipes, named pipes for a container, and memory files.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl, open, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, mkfifoat, pipe2, unlinkat};

use super::spec::{OutputFifos, OutputStreams, StepProgram, User};
use crate::sys;

/// Size of the pipes in bytes, if the system allows it: fewer reads for a step with much output.
const PIPE_SIZE: i32 = 1 << 20;

/// The ends from which the shim reads.
pub struct StepStreams {
    pub stdout: OwnedFd,
    /// `None` if standard error is merged into standard output.
    pub stderr: Option<OwnedFd>,
}

/// The ends that become the standard streams of the child.
pub struct ChildEnds {
    pub stdin: File,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl StepStreams {
    /// Opens the streams of a step. Errors: no pipe or memory file can be created.
    pub fn open(task: &StepProgram, user: Option<&User>) -> io::Result<(Self, ChildEnds)> {
        let (fifos, streams, stdin) = match task {
            StepProgram::Process { streams, stdin, .. } => (None, *streams, memory_file(stdin.as_bytes())?),
            StepProgram::AgentTask { .. } => (None, OutputStreams::Separate, File::open("/dev/null")?),
            StepProgram::ContainerScript { output_fifos, .. } => {
                let is_merged = output_fifos.error.is_none();
                let streams = if is_merged { OutputStreams::Merged } else { OutputStreams::Separate };
                (Some(output_fifos), streams, File::open("/dev/null")?)
            }
        };
        let (stdout, child_stdout) = open_output(fifos.map(|fifos| (fifos, fifos.output.as_path())), user)?;
        let (stderr, child_stderr) = if streams == OutputStreams::Merged {
            (None, child_stdout.try_clone()?)
        } else {
            let fifo = fifos.and_then(|fifos| Some((fifos, fifos.error.as_deref()?)));
            let (reader, writer) = open_output(fifo, user)?;
            (Some(reader), writer)
        };
        Ok((Self { stdout, stderr }, ChildEnds { stdin, stdout: child_stdout, stderr: child_stderr }))
    }
}

/// Opens the pipe for a stream: the named pipe if one is requested and can be created, otherwise an anonymous pipe.
fn open_output(fifo: Option<(&OutputFifos, &Path)>, user: Option<&User>) -> io::Result<(OwnedFd, OwnedFd)> {
    match fifo.map(|(output_fifos, path)| open_fifo(&output_fifos.root, path)) {
        Some(Ok(pipe)) => Ok(pipe),
        // The script falls back to the engine's socket if the named pipe does not exist.
        Some(Err(_)) | None => output_pipe(user),
    }
}

/// Creates a named pipe that every user may write to, and replaces an existing file. Fails if the path is unusable, or
/// the file system has no named pipes.
fn open_fifo(root: &Path, path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let directory = sys::open_beneath(root.as_fd(), parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let _ = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
    mkfifoat(&directory, name, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // A job may already have put a device in place of the named pipe. The shim must not even open a device.
    let found = openat(&directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if fstat(&found)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFIFO.bits() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let reader = sys::reopen(found.as_fd(), OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let writer = sys::reopen(found.as_fd(), OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
    fchmod(&reader, Mode::from_bits_truncate(0o666))?;
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer))
}

/// A pipe that the job's user may open again (`/dev/stdout`).
fn output_pipe(user: Option<&User>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    if let Some(user) = user {
        fchown(writer.as_fd(), Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    }
    Ok((reader, writer))
}

/// A file in memory with this content, at its beginning.
pub fn memory_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"script", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}
