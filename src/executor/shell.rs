//! The instance's own shell: `executor = "shell"` and `"instance"`.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::cgroup::CgroupParents;
use super::{Executor, user};
use crate::failure::JobError;
use crate::shim::spec::{OutputStreams, StepProgram, User};

/// The PATH for jobs, and for programs that the agent runs for jobs.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs scripts in a login shell directly on the machine.
#[derive(Clone)]
pub struct Shell {
    /// The name of the shell, for the job's log.
    shell: String,
    program: Option<PathBuf>,
    /// The configured user, if it is not the agent's.
    user: Option<User>,
    /// The user that runs scripts.
    script_user: User,
    parents: CgroupParents,
    /// The configured `user` with its placeholder, if each slot has its own user.
    user_pattern: Option<String>,
    /// The error of the look-up, if the user of this slot does not exist.
    missing_user: Option<String>,
}

impl Shell {
    /// Runs scripts with `shell` (`bash` or `sh`; `None` for bash if it is installed) as `user` (`None` for the agent's
    /// user), which may be a pattern for one user per slot. Fails if a user does not exist or the agent may not switch
    /// to it.
    pub fn new(shell: Option<&str>, user: Option<&str>, slots: u32, parents: CgroupParents) -> Result<Self, String> {
        let current = user::current();
        let user_pattern = user.filter(|name| user::is_pattern(name)).map(str::to_owned);
        let user = match user {
            Some(name) if *name != *current.name => user::slot_users(name, slots)?.into_iter().next(),
            _ => None,
        };
        if let Some(user) = user.as_ref().filter(|_| current.uid != 0) {
            return Err(format!("only root can run jobs as another user; start mayfly as root, or as `{}`", user.name));
        }
        let wanted: &[&str] = match shell {
            Some("bash") => &["bash"],
            Some("sh") => &["sh"],
            _ => &["bash", "sh"],
        };
        let found = wanted.iter().find_map(|name| Some((*name, find_program(name)?)));
        let (name, program) = found.map_or((wanted[0], None), |(name, path)| (name, Some(path)));
        Ok(Self {
            shell: name.to_owned(),
            program,
            script_user: user.clone().unwrap_or(current),
            user,
            parents,
            user_pattern,
            missing_user: None,
        })
    }

    /// Fails if the shell, or the user of this slot, is missing.
    pub fn check(&self) -> Result<(), JobError> {
        if let Some(why) = &self.missing_user {
            return Err(JobError::system(why.clone()));
        }
        if self.program.is_none() {
            return Err(JobError::system(format!("`{}` was not found in {PATH}; install it in the image", self.shell)));
        }
        Ok(())
    }

    /// The executor of one slot; `None` if all slots have the same user.
    pub fn for_slot(&self, slot: usize) -> Option<Self> {
        let name = user::slot_user_name(self.user_pattern.as_ref()?, slot);
        Some(match user::look_up(&name) {
            Ok(user) => Self { user: Some(user.clone()), script_user: user, ..self.clone() },
            // `check` returns this error, so the job fails before the agent creates anything.
            Err(why) => Self { missing_user: Some(why), ..self.clone() },
        })
    }

    /// The program that runs the text of a script.
    pub fn script_program(&self, text: String, streams: OutputStreams) -> StepProgram {
        let program = self.program.clone().unwrap_or_else(|| PathBuf::from("/bin/sh"));
        StepProgram::Process {
            argv: vec![program.display().to_string(), "-l".to_owned()],
            env: self.environment(),
            // A missing home directory must not stop a job: its scripts change to the project directory themselves.
            cwd: if self.script_user.home.is_dir() { self.script_user.home.clone() } else { PathBuf::from("/") },
            stdin: text,
            streams,
        }
    }
}

impl Executor for Shell {
    fn greeting(&self) -> Option<String> {
        let as_user = self.user.as_ref().map(|user| format!(" as user {}", user.name)).unwrap_or_default();
        Some(format!("Using Shell ({}) executor{as_user}...", self.shell))
    }

    fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    fn shares_caches(&self) -> bool {
        self.user_pattern.is_some()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            pair("HOME", &self.script_user.home.display().to_string()),
            pair("USER", &self.script_user.name),
            pair("LOGNAME", &self.script_user.name),
            pair("SHELL", &self.script_user.shell.display().to_string()),
            pair("PATH", PATH),
        ]
    }

    fn cgroups(&self, step: &str) -> Vec<PathBuf> {
        self.parents.step_groups(step)
    }

    fn environment_marker(&self) -> &'static str {
        "CI_SHARED_ENVIRONMENT"
    }
}

/// Finds a program in the PATH of jobs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    find_in(PATH, name)
}

/// Finds the git that the agent runs for jobs, in the agent's own PATH, which an operator can set.
pub fn find_git() -> Option<PathBuf> {
    match std::env::var("PATH") {
        Ok(own) if !own.is_empty() => find_in(&own, "git"),
        _ => find_program("git"),
    }
}

fn find_in(path: &str, name: &str) -> Option<PathBuf> {
    let is_executable = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    path.split(':').map(|directory| Path::new(directory).join(name)).find(is_executable)
}

/// Quotes text for any POSIX shell; drops zero bytes, which no shell supports.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    push_quoted(&mut quoted, text);
    quoted
}

/// Appends text quoted as by [`quote`].
pub fn push_quoted(out: &mut String, text: &str) {
    out.push('\'');
    for part in text.split_inclusive(['\0', '\'']) {
        match part.as_bytes().last() {
            Some(b'\'') => {
                out.push_str(&part[..part.len() - 1]);
                out.push_str("'\\''");
            }
            Some(0) => out.push_str(&part[..part.len() - 1]),
            _ => out.push_str(part),
        }
    }
    out.push('\'');
}
