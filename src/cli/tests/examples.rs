//! Compares the commands in the documentation with the command line.

use std::fs;
use std::path::{Path, PathBuf};

use super::command;

/// All pages in the root directory and below `docs`, and the user data.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    let mut directories = vec![root.join("docs"), root.join("cloud-init")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("list the directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { directories.push(path) } else { pages.push(path) }
        }
    }
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root.join(name)));
    pages
}

/// The words after each `mayfly ` of a text, up to the end of the code or of the command.
fn calls(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let call = |rest: &str| {
        let code = rest.split(['`', '\n', '|', ';', ')', '#', '&']).next().unwrap_or_default();
        code.split_whitespace().map(str::to_owned).collect()
    };
    text.split("mayfly ").skip(1).map(call).collect()
}

/// Whether a command has a flag, also as an alias.
fn has_flag(command: &clap::Command, flag: &str) -> bool {
    let is_it = |arg: &clap::Arg| {
        arg.get_long() == Some(flag) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&flag))
    };
    flag == "help" || command.get_arguments().any(is_it)
}

#[test]
fn commands_in_the_documentation_exist() {
    let mut command = command();
    command.build();
    let mut count = 0;
    for page in pages() {
        let Ok(text) = fs::read_to_string(&page) else { continue };
        for words in calls(&text) {
            let Some(mut called) = words.first().and_then(|word| command.find_subcommand(word)) else { continue };
            called = words.get(1).and_then(|word| called.find_subcommand(word)).unwrap_or(called);
            for word in &words {
                let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else { continue };
                let flag = flag.split(['=', ',', '.', '[']).next().unwrap_or_default();
                count += 1;
                assert!(has_flag(called, flag), "{}: `mayfly {}` has no --{flag}", page.display(), called.get_name());
            }
        }
    }
    assert!(count > 30, "the documentation shows few flags: {count}");
}
