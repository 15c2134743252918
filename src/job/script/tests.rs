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
        output.contains(":section_script_step_0[hide_duration=true,collapsed=true]\r\x1b[0K\x1b[32;1m$ echo a\necho b")
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
