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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// All supported shells.
    const SHELLS: [&str; 4] = ["bash", "bash --posix", "dash", "busybox ash"];

    /// Runs a text in a shell on standard input, as scripts run.
    fn run(shell: &str, text: &str) -> (String, i32) {
        let mut words = shell.split(' ');
        let mut child = Command::new(words.next().expect("a program"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell");
        child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("write all bytes");
        let output = child.wait_with_output().expect("wait for the end of the process");
        let all = [output.stdout, output.stderr].concat();
        (String::from_utf8_lossy(&all).into_owned(), output.status.code().unwrap_or(-1))
    }

    fn case(lines: &[&str]) -> (ScriptSettings, Vec<LineGroup<'static>>, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a directory");
        let temporary = directory.path().join("p.tmp").display().to_string();
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        (
            ScriptSettings { temporary, ..ScriptSettings::default() },
            vec![LineGroup { origin: "script_step", lines }],
            directory,
        )
    }

    #[test]
    fn runs_the_same_in_every_shell() {
        for shell in SHELLS {
            let (mut settings, lines, _directory) =
                case(&["echo \"it's $A\"", "echo one\necho two", "", "cat; exit 7", "echo never"]);
            settings.exports.push(("A".to_owned(), "a 'quoted'\nvalue".to_owned()));
            let (output, code) = run(shell, &text(&settings, &lines, &AgentText::default()));
            let expected = "\x1b[32;1m$ echo \"it's $A\"\x1b[0;m\nit's a 'quoted'\nvalue\n\
                            \x1b[32;1m$ echo one # collapsed multi-line command\x1b[0;m\none\ntwo\n\n\
                            \x1b[32;1m$ cat; exit 7\x1b[0;m\n";
            assert_eq!((output.as_str(), code), (expected, 7), "{shell}");
        }
    }

    #[test]
    fn stops_at_the_first_failure_and_runs_the_lines_before_a_syntax_error() {
        let (settings, lines, _directory) = case(&["echo before", "if then fi", "echo after"]);
        let (output, code) = run("bash", &text(&settings, &lines, &AgentText::default()));
        assert!(output.contains("before\n") && !output.contains("\nafter"), "{output}");
        assert_ne!(code, 0);
        let (settings, lines, _directory) = case(&["false | cat", "echo after"]);
        let (output, code) = run("bash", &text(&settings, &lines, &AgentText::default()));
        assert!(code != 0 && !output.contains("\nafter"), "pipefail: {output}");
    }

    #[test]
    fn text_after_the_lines_runs_unless_they_fail_and_also_after_exit_0() {
        for shell in SHELLS {
            for (line, expected) in [("true", 0), ("exit 0", 0), ("trap 'echo end' EXIT; exit 0", 0), ("false", 1)] {
                let (settings, lines, directory) = case(&[line, "true"]);
                let mark = directory.path().join("mark").display().to_string();
                let after = format!("[ -e {mark} ] || echo once >{mark}\n");
                let own = AgentText { before: String::new(), after };
                let (output, code) = run(shell, &text(&settings, &lines, &own));
                assert_eq!(code, expected, "{shell}, {line}: {output}");
                assert_eq!(std::path::Path::new(&mark).exists(), expected == 0, "{shell}, {line}: {output}");
            }
        }
    }

    #[test]
    fn a_failure_in_bash_logout_does_not_fail_the_job() {
        let (settings, lines, directory) = case(&["echo done"]);
        std::fs::write(directory.path().join(".bash_logout"), "echo bye\nfalse\n").expect("write the file");
        let mut child = Command::new("bash")
            .arg("-l")
            .env("HOME", directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(text(&settings, &lines, &AgentText::default()).as_bytes())
            .expect("write all bytes");
        let output = child.wait_with_output().expect("wait for the end of the process");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && shown.ends_with("done\nbye\n"), "{shown}");
    }

    #[test]
    fn carries_variables_from_script_to_script() {
        for shell in SHELLS {
            let (settings, lines, _directory) = case(&[
                "echo 'GREETING=hello world=' >>\"$GITLAB_ENV\"",
                "printf '%s\\n' junk =x 1A=x A-B=x 'UID=7' '$(touch /never)=x' '' EMPTY= >>\"$GITLAB_ENV\"",
                "printf 'LAST=no line end' >>\"$GITLAB_ENV\"",
            ]);
            assert_eq!(run(shell, &text(&settings, &lines, &AgentText::default())).1, 0);
            let show = "echo \"$GREETING|${EMPTY-unset}|$LAST\"".to_owned();
            let lines = vec![LineGroup { origin: "script_step", lines: vec![show] }];
            let (output, code) = run(shell, &text(&settings, &lines, &AgentText::default()));
            assert!(code == 0 && output.ends_with("\nhello world=||no line end\n"), "{shell}: {output}");
        }
    }

    #[test]
    fn writes_file_variables_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let mode =
            |path: &std::path::Path| std::fs::metadata(path).expect("the file must exist").permissions().mode() & 0o777;
        for shell in SHELLS {
            let (mut settings, lines, directory) = case(&["true"]);
            settings.files.push(("KEY".to_owned(), "line1\nline2".to_owned()));
            assert_eq!(
                run(shell, &text(&settings, &lines, &AgentText::default())),
                ("\x1b[32;1m$ true\x1b[0;m\n".to_owned(), 0)
            );
            let temporary = directory.path().join("p.tmp");
            assert_eq!(std::fs::read_to_string(temporary.join("KEY")).expect("read the file"), "line1\nline2");
            assert_eq!((mode(&temporary), mode(&temporary.join("KEY"))), (0o700, 0o600), "{shell}");
            assert_eq!(mode(&temporary.join("gitlab_runner_env")), 0o600);
        }
    }

    #[test]
    fn replaces_anything_that_an_earlier_job_left_in_the_place_of_files() {
        use std::os::unix::fs::symlink;
        type Plant<'a> = &'a dyn Fn(&std::path::Path, &std::path::Path);
        let plants: [(&str, Plant<'_>); 6] = [
            ("a link instead of the directory", &|temporary, outside| {
                symlink(outside, temporary).expect("create the link")
            }),
            ("a file instead of the directory", &|temporary, _| std::fs::write(temporary, "").expect("write the file")),
            ("links instead of the files", &|temporary, outside| {
                std::fs::create_dir(temporary).expect("create the directory");
                symlink(outside.join("KEY"), temporary.join("KEY")).expect("create the link");
                symlink(outside.join("env"), temporary.join("gitlab_runner_env")).expect("create the link");
            }),
            ("directories instead of the files", &|temporary, _| {
                std::fs::create_dir_all(temporary.join("KEY/x")).expect("create the directory");
                std::fs::create_dir_all(temporary.join("gitlab_runner_env/x")).expect("create the directory");
            }),
            ("a pipe that would never end", &|temporary, _| {
                std::fs::create_dir(temporary).expect("create the directory");
                let pipe = temporary.join("gitlab_runner_env");
                nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("create the named pipe");
            }),
            ("a closed directory", &|temporary, _| {
                std::fs::create_dir(temporary).expect("create the directory");
                let closed = std::os::unix::fs::PermissionsExt::from_mode(0o0);
                std::fs::set_permissions(temporary, closed).expect("set the permissions");
            }),
        ];
        for (what, plant) in plants {
            let (mut settings, lines, directory) = case(&["cat \"$GITLAB_ENV\""]);
            settings.files.push(("KEY".to_owned(), "secret".to_owned()));
            let outside = directory.path().join("outside");
            std::fs::create_dir(&outside).expect("create the directory");
            plant(&directory.path().join("p.tmp"), &outside);
            let (output, code) = run("dash", &text(&settings, &lines, &AgentText::default()));
            assert_eq!(code, 0, "{what}: {output}");
            assert_eq!(
                std::fs::read_to_string(directory.path().join("p.tmp/KEY")).expect("read the file"),
                "secret",
                "{what}"
            );
            assert_eq!(std::fs::read_dir(&outside).expect("a directory").count(), 0, "{what}");
        }
    }

    #[test]
    fn puts_multi_line_commands_into_sections() {
        let (mut settings, lines, _directory) = case(&["echo a\necho b"]);
        settings.multi_line = MultiLineCommands::Section;
        let (output, _) = run("bash", &text(&settings, &lines, &AgentText::default()));
        assert!(
            output.contains(
                ":section_script_step_0[hide_duration=true,collapsed=true]\r\x1b[0K\x1b[32;1m$ echo a\necho b"
            )
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn quoting_survives_real_shells(value in "[^\\x00]{0,80}") {
            for shell in SHELLS {
                let (output, _) = run(shell, &format!("printf '%s.' {}\n", quote(&value)));
                prop_assert_eq!(output, format!("{value}."));
            }
        }
    }
}
