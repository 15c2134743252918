//! The text of a script: exports, then the job's lines, for bash, dash and busybox ash.
//!
//! The lines are in one quoted string that a subshell evaluates. So a syntax error in the last line does not prevent
//! the first ones, and the lines have an empty standard input although the script itself arrives on standard input.

use crate::executor::shell::{push_quoted, quote};
use crate::payload::variables::READONLY;
use crate::trace::colours::{CLEAR, GREEN, RESET};

/// The file of `GITLAB_ENV`, in the temporary directory.
pub const GITLAB_ENV_FILE: &str = "gitlab_runner_env";

/// The settings of a script.
#[derive(Clone, Debug, Default)]
pub struct ScriptSettings {
    /// Variables to export, in order.
    pub exports: Vec<(String, String)>,
    /// Files of file variables: name and content.
    pub files: Vec<(String, String)>,
    /// `<project directory>.tmp`, for those files and for `GITLAB_ENV`.
    pub temporary: String,
    /// The working directory of the lines; `None` for the shell's initial directory.
    pub directory: Option<String>,
    pub trace: CommandTrace,
    pub status_check: StatusCheck,
    pub multi_line: MultiLineCommands,
}

/// Whether the shell prints each command before it runs (`CI_DEBUG_TRACE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CommandTrace {
    #[default]
    Off,
    On,
}

/// How a script stops after a failed line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatusCheck {
    /// The shell ends at the first failed command (`errexit`).
    #[default]
    ByShell,
    /// The script also checks the status after each line (`FF_ENABLE_BASH_EXIT_CODE_CHECK`).
    AfterEachLine,
}

/// How the log shows a command of several lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MultiLineCommands {
    /// By its first line.
    #[default]
    FirstLine,
    /// In a section of its own (`FF_SCRIPT_SECTIONS`).
    Section,
}

/// Lines with a common origin.
#[derive(Clone, Debug)]
pub struct LineGroup<'a> {
    /// The origin, such as `script_step`; part of section names.
    pub origin: &'a str,
    /// The lines; each may itself have several lines.
    pub lines: Vec<String>,
}

/// Shell text that the agent adds to the job's lines; the log does not show it.
#[derive(Clone, Debug, Default)]
pub struct AgentText {
    pub before: String,
    /// Runs after the lines, if none of them failed. The text runs a second time in the shell around the lines, because
    /// the lines may end their own shell by `exit 0`. So the text must have no effect the second time.
    pub after: String,
}

/// The text of a script.
pub fn text(settings: &ScriptSettings, groups: &[LineGroup<'_>], own: &AgentText) -> String {
    let mut text = String::from("trap 'exit 1' TERM\n");
    if settings.trace == CommandTrace::On {
        text.push_str("set -o xtrace\n");
    }
    // Bash supports `pipefail`, so the test in a subshell, which costs a process, is needed only for other shells.
    text.push_str(
        "if [ -n \"${BASH_VERSION-}\" ] || (set -o pipefail) 2>/dev/null; then set -o pipefail; fi\n\
         set -o errexit\nset +o noclobber\n",
    );
    write_files(settings, &mut text);
    if let Some(directory) = &settings.directory {
        // This is before the exports: if the environment is too large, the shell cannot start a program.
        let directory = quote(directory);
        text.push_str(&format!("[ -d {directory} ] || mkdir -p {directory}\n"));
    }
    export(settings, &mut text);
    export_gitlab_env(settings, &mut text);
    if let Some(directory) = &settings.directory {
        text.push_str(&format!("cd {}\n", quote(directory)));
    }
    let body = format!("{}{}{}", own.before, body(settings, groups), own.after);
    // A login shell runs `.bash_logout` at its end; a failure there must not fail the job.
    text.push_str(&format!("(\ntrap 'exit 1' TERM\neval {}\n) </dev/null\n", quote(&body)));
    if !own.after.is_empty() {
        text.push_str(&format!("(\n{}) </dev/null\n", own.after));
    }
    text.push_str("set +o errexit\nexit 0\n");
    text
}

/// Exports the variables in one command, which bash runs faster than a command for each; in separate commands if they
/// are traced.
fn export(settings: &ScriptSettings, text: &mut String) {
    if settings.exports.is_empty() {
        return;
    }
    text.push_str("export");
    let separator = if settings.trace == CommandTrace::On { "\nexport " } else { " " };
    for (index, (name, value)) in settings.exports.iter().enumerate() {
        text.push_str(if index == 0 { " " } else { separator });
        text.push_str(name);
        text.push('=');
        push_quoted(text, value);
    }
    text.push('\n');
}

/// Writes file variables, readable only by their owner. An earlier job may have left a link, a pipe without a reader,
/// or a directory without permissions in their place.
fn write_files(settings: &ScriptSettings, text: &mut String) {
    let directory = quote(&settings.temporary);
    text.push_str(&format!(
        "if [ -L {directory} ] || [ ! -d {directory} ]; then rm -rf {directory}; mkdir -p -m 700 {directory}; fi\n\
         [ -w {directory} ] && [ -x {directory} ] || chmod 700 {directory}\n"
    ));
    let gitlab_env = quote(&gitlab_env_path(settings));
    text.push_str(&format!(
        "if [ -L {gitlab_env} ] || {{ [ -e {gitlab_env} ] && [ ! -f {gitlab_env} ]; }}; then rm -rf {gitlab_env}; fi\n\
         [ -f {gitlab_env} ] || (umask 077\n: >>{gitlab_env})\n"
    ));
    if settings.files.is_empty() {
        return;
    }
    text.push_str("(umask 077\n");
    for (name, content) in &settings.files {
        let path = quote(&format!("{}/{name}", settings.temporary));
        text.push_str(&format!(
            "if [ -e {path} ] || [ -L {path} ]; then rm -rf {path}; fi\nprintf '%s' {} >{path}\n",
            quote(content)
        ));
    }
    text.push_str(")\n");
}

fn gitlab_env_path(settings: &ScriptSettings) -> String {
    format!("{}/{GITLAB_ENV_FILE}", settings.temporary)
}

/// Exports the variables that earlier scripts appended to the file of `GITLAB_ENV`, one `KEY=VALUE` per line. Invalid
/// lines are skipped: a failing `export` would end dash.
fn export_gitlab_env(settings: &ScriptSettings, text: &mut String) {
    let readonly = READONLY.join("|");
    text.push_str(&format!(
        "export GITLAB_ENV={}\n\
         while IFS= read -r mayfly_line || [ -n \"$mayfly_line\" ]; do\n\
         case ${{mayfly_line%%=*}} in\n\
         \"$mayfly_line\"|''|[0-9]*|*[!A-Za-z0-9_]*|{readonly}) ;;\n\
         *) export \"$mayfly_line\" ;;\n\
         esac\n\
         done <\"$GITLAB_ENV\"\nunset mayfly_line\n",
        quote(&gitlab_env_path(settings))
    ));
}

/// Shell text that prints a line of the agent.
pub fn print_line(line: &str) -> String {
    format!("printf '%s\\n' {}\n", quote(&format!("{GREEN}{line}{RESET}")))
}

fn body(settings: &ScriptSettings, groups: &[LineGroup<'_>]) -> String {
    let mut body = String::new();
    for group in groups {
        for (index, line) in group.lines.iter().enumerate() {
            echo(settings, group.origin, index, line.trim(), &mut body);
            body.push_str(line.trim());
            body.push('\n');
            if settings.status_check == StatusCheck::AfterEachLine {
                body.push_str("mayfly_status=$?; if [ $mayfly_status -ne 0 ]; then exit $mayfly_status; fi\n");
            }
        }
    }
    body
}

/// Prints a line before it runs, unexpanded.
fn echo(settings: &ScriptSettings, origin: &str, index: usize, line: &str, body: &mut String) {
    let print = |text: &str| format!("printf '%s\\n' {}\n", quote(text));
    match line.split_once('\n') {
        None if line.is_empty() => body.push_str("echo\n"),
        None => body.push_str(&print(&format!("{GREEN}$ {line}{RESET}"))),
        Some(_) if settings.multi_line == MultiLineCommands::Section => {
            let name = format!("section_{origin}_{index}");
            body.push_str(&format!(
                "printf 'section_start:%s:{name}[hide_duration=true,collapsed=true]\\r%s\\n' \"$(date +%s)\" {}\n\
                 printf 'section_end:%s:{name}\\r%s\\n' \"$(date +%s)\" {}\n",
                quote(&format!("{CLEAR}{GREEN}$ {line}{RESET}")),
                quote(CLEAR),
            ));
        }
        Some((first, _)) => {
            body.push_str(&print(&format!("{GREEN}$ {first} # collapsed multi-line command{RESET}")));
        }
    }
}

#[cfg(test)]
mod tests;
