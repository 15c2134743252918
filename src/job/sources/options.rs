//! Options that a job passes to git (`GIT_FETCH_EXTRA_FLAGS`, `GIT_CLEAN_FLAGS`, `GIT_SUBMODULE_UPDATE_FLAGS`).
//!
//! Each command has a list of the options that it takes from a job. An option that is not on it (`--upload-pack`,
//! `--recurse-submodules`, `-c`, `--template`, `--reference`, ...) could start a program, read or write a file outside
//! of the checkout, or use resources without bound: the job fails and the message names the option. Git accepts any
//! unambiguous beginning of a long option; only whole names are accepted here, so that nothing slips past the list.

use crate::failure::JobError;

/// Transfers at the same time, at most.
const JOBS_MAX: u32 = 64;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// Nothing.
    None,
    /// A number of commits.
    Depth,
    /// A number of transfers at the same time.
    Jobs,
    /// A filter of a partial clone.
    Filter,
    /// A date, a revision or an option for the server: text that git only compares or sends.
    Text,
    /// Nothing, or `no` behind an equals sign.
    No,
}

/// A command of git and what it takes from a job.
pub struct Command {
    /// The variable of the job.
    variable: &'static str,
    /// Options without a dash: one letter or a word.
    options: &'static [(&'static str, Value)],
    /// Whether words that are no options are allowed, and which.
    words: Words,
}

/// Words that are not options.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    None,
    Refspecs,
    Paths,
}

/// `git fetch`.
pub const FETCH: Command = Command {
    variable: "GIT_FETCH_EXTRA_FLAGS",
    words: Words::Refspecs,
    options: &[
        ("4", Value::None),
        ("6", Value::None),
        ("atomic", Value::None),
        ("auto-gc", Value::None),
        ("auto-maintenance", Value::None),
        ("deepen", Value::Depth),
        ("depth", Value::Depth),
        ("f", Value::None),
        ("filter", Value::Filter),
        ("force", Value::None),
        ("ipv4", Value::None),
        ("ipv6", Value::None),
        ("j", Value::Jobs),
        ("jobs", Value::Jobs),
        ("n", Value::None),
        ("negotiation-tip", Value::Text),
        ("no-auto-gc", Value::None),
        ("no-auto-maintenance", Value::None),
        ("no-filter", Value::None),
        ("no-force", Value::None),
        ("no-progress", Value::None),
        ("no-prune", Value::None),
        ("no-prune-tags", Value::None),
        ("no-recurse-submodules", Value::None),
        ("no-show-forced-updates", Value::None),
        ("no-tags", Value::None),
        ("no-write-commit-graph", Value::None),
        ("no-write-fetch-head", Value::None),
        ("o", Value::Text),
        ("p", Value::None),
        ("P", Value::None),
        ("progress", Value::None),
        ("prune", Value::None),
        ("prune-tags", Value::None),
        ("q", Value::None),
        ("quiet", Value::None),
        ("recurse-submodules", Value::No),
        ("refetch", Value::None),
        ("server-option", Value::Text),
        ("shallow-exclude", Value::Text),
        ("shallow-since", Value::Text),
        ("show-forced-updates", Value::None),
        ("t", Value::None),
        ("tags", Value::None),
        ("unshallow", Value::None),
        ("update-shallow", Value::None),
        ("v", Value::None),
        ("verbose", Value::None),
        ("write-fetch-head", Value::None),
    ],
};

/// `git clean`.
pub const CLEAN: Command = Command {
    variable: "GIT_CLEAN_FLAGS",
    words: Words::Paths,
    options: &[
        ("d", Value::None),
        ("dry-run", Value::None),
        ("e", Value::Text),
        ("exclude", Value::Text),
        ("f", Value::None),
        ("force", Value::None),
        ("n", Value::None),
        ("q", Value::None),
        ("quiet", Value::None),
        ("x", Value::None),
        ("X", Value::None),
    ],
};

/// `git submodule update`.
pub const SUBMODULE_UPDATE: Command = Command {
    variable: "GIT_SUBMODULE_UPDATE_FLAGS",
    words: Words::None,
    options: &[
        ("checkout", Value::None),
        ("depth", Value::Depth),
        ("f", Value::None),
        ("filter", Value::Filter),
        ("force", Value::None),
        ("init", Value::None),
        ("j", Value::Jobs),
        ("jobs", Value::Jobs),
        ("merge", Value::None),
        ("N", Value::None),
        ("no-fetch", Value::None),
        ("no-recommend-shallow", Value::None),
        ("no-single-branch", Value::None),
        ("progress", Value::None),
        ("q", Value::None),
        ("quiet", Value::None),
        ("rebase", Value::None),
        ("recommend-shallow", Value::None),
        ("recursive", Value::None),
        ("remote", Value::None),
        ("single-branch", Value::None),
    ],
};

impl Command {
    /// The variable of the job.
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    /// Checks the words of a job for this command. Errors: one of them is not on the list, or has a value that is out of
    /// bounds.
    pub fn check(&self, words: &[String]) -> Result<(), JobError> {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" && self.words == Words::Paths {
                return Ok(());
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                // A single letter is no long option.
                let kind = self.find(name).filter(|_| name.chars().count() > 1).ok_or_else(|| self.refuse(word))?;
                let value = match value {
                    None if !matches!(kind, Value::None | Value::No) => words.next().map(String::as_str),
                    value => value,
                };
                self.check_value(word, kind, value)?;
            } else if let Some(letters) = word.strip_prefix('-') {
                self.check_letters(word, letters, &mut words)?;
            } else if !self.takes(word) {
                return Err(self.refuse(word));
            }
        }
        Ok(())
    }

    /// Short options in one word: `-ffdx`, `-j4`.
    fn check_letters<'a>(
        &self,
        word: &str,
        letters: &str,
        words: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), JobError> {
        if letters.is_empty() {
            return Err(self.refuse(word));
        }
        for (at, letter) in letters.char_indices() {
            let kind = self.find(letter.encode_utf8(&mut [0; 4])).ok_or_else(|| self.refuse(word))?;
            if kind != Value::None {
                // The rest of the word is its value, or the next word is.
                let rest = &letters[at + letter.len_utf8()..];
                let value = if rest.is_empty() { words.next().map(String::as_str) } else { Some(rest) };
                return self.check_value(word, kind, value);
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Value> {
        self.options.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn check_value(&self, word: &str, kind: Value, value: Option<&str>) -> Result<(), JobError> {
        let number = |most: u32| value.and_then(|text| text.parse().ok()).is_some_and(|it| (1..=most).contains(&it));
        let wanted = match kind {
            Value::None if value.is_none() => return Ok(()),
            Value::None => "no value",
            Value::No if value == Some("no") => return Ok(()),
            Value::No => "the value `no`",
            Value::Depth if number(i32::MAX.unsigned_abs()) => return Ok(()),
            Value::Depth => "a number of commits from 1",
            Value::Jobs if number(JOBS_MAX) => return Ok(()),
            Value::Jobs => "a number from 1 to 64",
            Value::Filter if value.is_some_and(is_filter) => return Ok(()),
            Value::Filter => "a filter such as `blob:none`, `blob:limit=1m` or `tree:0`",
            Value::Text if value.is_some_and(|text| !text.is_empty() && !text.starts_with('-')) => return Ok(()),
            Value::Text => "a value that does not begin with a dash",
        };
        Err(JobError::configuration(format!("{}: `{word}` takes {wanted}", self.variable)))
    }

    fn takes(&self, word: &str) -> bool {
        match self.words {
            Words::None => false,
            Words::Paths => true,
            Words::Refspecs => is_refspec(word),
        }
    }

    fn refuse(&self, word: &str) -> JobError {
        JobError::configuration(format!(
            "{}: `{word}` is not an option that jobs may pass to git; remove it, or write it in full if it is an \
             abbreviation (the options that are allowed: docs/reference/configuration.md, \"Options for git\")",
            self.variable
        ))
    }
}

/// `blob:none`, `blob:limit=1m`, `tree:0`, `object:type=commit`, and several of them (`combine:`).
fn is_filter(text: &str) -> bool {
    let kinds = ["blob:none", "blob:limit=", "tree:", "object:type=", "combine:"];
    kinds.iter().any(|kind| text.starts_with(kind))
        && !text.contains("sparse")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":=+%-".contains(&byte))
}

/// `+refs/heads/*:refs/remotes/origin/*`: what is fetched goes where refs of the server are.
fn is_refspec(text: &str) -> bool {
    let text = text.strip_prefix('+').unwrap_or(text);
    let plain = |name: &str| {
        name.starts_with("refs/") && !name.contains("..") && !name.contains(|c: char| c.is_control() || c == '\\')
    };
    match text.split_once(':') {
        None => plain(text),
        Some((from, to)) => {
            plain(from)
                && plain(to)
                && ["refs/remotes/", "refs/tags/", "refs/heads/"].iter().any(|at| to.starts_with(at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: &Command, text: &str) -> Result<(), String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        command.check(&words).map_err(|error| error.message)
    }

    #[test]
    fn takes_what_authors_use() {
        for flags in [
            "--prune --quiet",
            "--prune --tags",
            "--no-tags --force --verbose",
            "-pq -j 8",
            "-j8",
            "--jobs=4",
            "--filter=blob:none --no-recurse-submodules",
            "--filter tree:0",
            "--depth 5 --shallow-since=2024-01-01",
            "--recurse-submodules=no",
            "+refs/heads/*:refs/remotes/origin/*",
            "--unshallow --progress",
        ] {
            assert_eq!(check(&FETCH, flags), Ok(()), "{flags}");
        }
        for flags in ["-ffdx", "-ffdx -e cache/ --exclude=*.o", "-ffd -enode_modules", "-fdx -- src", "-ffdXq"] {
            assert_eq!(check(&CLEAN, flags), Ok(()), "{flags}");
        }
        for flags in ["--remote", "--jobs 4 --recommend-shallow", "--remote --force --depth=1", "--filter=blob:none"] {
            assert_eq!(check(&SUBMODULE_UPDATE, flags), Ok(()), "{flags}");
        }
    }

    #[test]
    fn refuses_what_runs_programs_reads_files_or_has_no_bound() {
        for flags in [
            "--upload-pack=evil",
            "--upload-pac evil",
            "-q --upl=x",
            "--recurse-submodules",
            "--recurse-submodules=yes",
            "--recurse-submodules-default=yes",
            "--no-recurse-submodules=x",
            "-c core.sshCommand=evil",
            "--config=x",
            "--stdin",
            "--multiple",
            "--all",
            "--refmap=x",
            "--output=/etc/x",
            "-j 20000000",
            "-j0",
            "--jobs",
            "--depth=-1",
            "--depth x",
            "--filter=sparse:oid=x",
            "--filter=../x",
            "--shallow-exclude -x",
            "/some/repository",
            "origin",
            "refs/heads/x:refs/replace/y",
            "-",
            "--",
            "--f",
        ] {
            assert!(check(&FETCH, flags).is_err(), "{flags}");
        }
        for flags in ["-i", "--interactive", "-ffdxi", "-e", "--excl=x", "--quiet=x"] {
            assert!(check(&CLEAN, flags).is_err(), "{flags}");
        }
        for flags in ["-j 20000000", "--reference /x", "--reference=/x", "--separate-git-dir=x", "-- x", "--template=x"]
        {
            assert!(check(&SUBMODULE_UPDATE, flags).is_err(), "{flags}");
        }
        let why = check(&FETCH, "--prune --upload-pack=evil").expect_err("refused");
        assert!(why.contains("GIT_FETCH_EXTRA_FLAGS") && why.contains("`--upload-pack=evil`"), "{why}");
    }
}
