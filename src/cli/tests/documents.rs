//! Generates the man pages and shell completions of the packages from the command line. A test does this, so that the
//! program does not contain the generators: `packages/build` runs this test with a target directory.

use std::fs;
use std::path::Path;

use clap_complete::aot::{Shell, generate_to};

use super::command;

/// The target directory; a temporary one by default.
const DIRECTORY: &str = "MAYFLY_DOCUMENTS";
/// Shell code that completes the names of jobs, which depend on the checkout.
const BASH_JOBS: &str = include_str!("../../../packages/completions/jobs.bash");
const ZSH_JOBS: &str = include_str!("../../../packages/completions/jobs.zsh");
const FISH_JOBS: &str = include_str!("../../../packages/completions/jobs.fish");
/// Man page sections that the command line does not provide: signals, files, see also.
const MORE: &str = include_str!("../../../packages/mayfly.1.more");

#[test]
fn documents_every_subcommand() {
    let temporary = tempfile::tempdir().expect("a directory");
    let wanted = std::env::var_os(DIRECTORY).map(std::path::PathBuf::from);
    let directory = wanted.as_deref().unwrap_or(temporary.path());
    write(directory).expect("write the file");
    let text = |name: &str| fs::read_to_string(directory.join(name)).expect(name);
    for subcommand in command().get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let name = subcommand.get_name();
        assert!(text("mayfly.1").contains(&format!("mayfly\\-{}(1)", name.replace('-', "\\-"))), "{name}");
        assert!(text(&format!("mayfly-{name}.1")).contains(".SH SYNOPSIS"), "{name}");
        for completions in ["mayfly.bash", "_mayfly", "mayfly.fish"] {
            assert!(text(completions).contains(name), "{name} in {completions}");
            assert!(text(completions).contains("exec --complete-jobs"), "{completions}");
        }
    }
    assert!(text("mayfly.1").contains("SIGQUIT"));
    assert!(!text("mayfly-run.1").contains("shim"), "what is hidden stays so");
}

fn write(directory: &Path) -> std::io::Result<()> {
    // With the revision, the pages would differ in every build.
    let mut command = command().version(env!("CARGO_PKG_VERSION"));
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "mayfly", directory)?;
    }
    let add = |name: &str, more: &str| {
        let path = directory.join(name);
        fs::write(&path, fs::read_to_string(&path)? + more)
    };
    add("mayfly.bash", BASH_JOBS)?;
    add("mayfly.fish", FISH_JOBS)?;
    let zsh = directory.join("_mayfly");
    let text = fs::read_to_string(&zsh)?.replacen("#compdef mayfly\n", &format!("#compdef mayfly\n\n{ZSH_JOBS}"), 1);
    let takes_jobs =
        |line: &str| ["'*::jobs", "'*--manual=", "'--explain="].iter().any(|start| line.starts_with(start));
    let with_jobs = |line: &str| match takes_jobs(line) {
        true => line.replace(":_default'", ":_mayfly_jobs'") + "\n",
        false => format!("{line}\n"),
    };
    fs::write(&zsh, text.lines().map(with_jobs).collect::<String>())?;
    command = command.mut_subcommands(|subcommand| subcommand.version(env!("CARGO_PKG_VERSION")));
    clap_mangen::generate_to(command.disable_help_subcommand(true), directory)?;
    let main = directory.join("mayfly.1");
    fs::write(&main, fs::read_to_string(&main)? + MORE)
}

#[test]
fn bash_completes_job_names() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path()).expect("write the file");
    let script = "mayfly() { printf '%s\\n' build 'build: [a, b]' test:unit test:all; }\n. ./mayfly.bash\n\
                  read -ra COMP_WORDS <<<\"${1//:/ : }\"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n\
                  COMP_LINE=$1 COMP_POINT=${#1}\n\
                  _mayfly_with_jobs mayfly \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"\n\
                  printf '%s\\n' \"${COMPREPLY[@]}\"";
    let complete = |line: &str| {
        let mut bash = std::process::Command::new("bash");
        let output = bash.args(["-c", script, "bash", line]).current_dir(directory.path()).output();
        String::from_utf8_lossy(&output.expect("run bash").stdout).into_owned()
    };
    assert_eq!(complete("mayfly exec bu"), "build\nbuild:\\ \\[a\\,\\ b\\]\n");
    // Bash replaces only the part after the last colon.
    assert_eq!(complete("mayfly exec -j 2 test:u"), "unit\n");
    assert_eq!(complete("mayfly exec --manual te"), "test:unit\ntest:all\n");
    assert!(!complete("mayfly exec --report te").contains("test:unit"), "the value is a file");
    assert!(complete("mayfly exec --sta").contains("--stage"));
    // Zsh completes the names for these arguments.
    let zsh = fs::read_to_string(directory.path().join("_mayfly")).expect("read the file");
    assert_eq!(zsh.matches(":_mayfly_jobs'").count(), 3);
}
