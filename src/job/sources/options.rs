//! Options that a job passes to git (`GIT_FETCH_EXTRA_FLAGS`, `GIT_CLEAN_FLAGS`, `GIT_SUBMODULE_UPDATE_FLAGS`).
//!
//! Each command has a list of allowed options. Any other option (`--upload-pack`, `--recurse-submodules`, `-c`,
//! `--template`, `--reference`, ...) could start a program, read or write a file outside the checkout, or use unlimited
//! resources: the job fails with a message that names the option. Git accepts unambiguous abbreviations of long
//! options; the agent accepts only complete names, so that an abbreviation cannot bypass the list.

use crate::failure::JobError;

/// Limit for parallel transfers.
const MAX_JOBS: u32 = 64;

/// The value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OptionValue {
    /// No value.
    None,
    /// A number of commits.
    Depth,
    /// A number of parallel transfers.
    Jobs,
    /// A filter of a partial clone.
    Filter,
    /// A date, a revision or an option for the server: git only compares or sends the text.
    Text,
    /// No value, or `=no`.
    No,
}

/// A git command and the options that a job may pass to it.
pub struct GitCommand {
    /// The variable of the job.
    variable: &'static str,
    /// The options, without dashes: a letter or a word.
    options: &'static [(&'static str, OptionValue)],
    /// Which words that are not options are allowed.
    positionals: Positionals,
}

/// Words that are not options.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Positionals {
    None,
    Refspecs,
    Paths,
}

/// `git fetch`.
pub const FETCH: GitCommand = GitCommand {
    variable: "GIT_FETCH_EXTRA_FLAGS",
    positionals: Positionals::Refspecs,
    options: &[
        ("4", OptionValue::None),
        ("6", OptionValue::None),
        ("atomic", OptionValue::None),
        ("auto-gc", OptionValue::None),
        ("auto-maintenance", OptionValue::None),
        ("deepen", OptionValue::Depth),
        ("depth", OptionValue::Depth),
        ("f", OptionValue::None),
        ("filter", OptionValue::Filter),
        ("force", OptionValue::None),
        ("ipv4", OptionValue::None),
        ("ipv6", OptionValue::None),
        ("j", OptionValue::Jobs),
        ("jobs", OptionValue::Jobs),
        ("n", OptionValue::None),
        ("negotiation-tip", OptionValue::Text),
        ("no-auto-gc", OptionValue::None),
        ("no-auto-maintenance", OptionValue::None),
        ("no-filter", OptionValue::None),
        ("no-force", OptionValue::None),
        ("no-progress", OptionValue::None),
        ("no-prune", OptionValue::None),
        ("no-prune-tags", OptionValue::None),
        ("no-recurse-submodules", OptionValue::None),
        ("no-show-forced-updates", OptionValue::None),
        ("no-tags", OptionValue::None),
        ("no-write-commit-graph", OptionValue::None),
        ("no-write-fetch-head", OptionValue::None),
        ("o", OptionValue::Text),
        ("p", OptionValue::None),
        ("P", OptionValue::None),
        ("progress", OptionValue::None),
        ("prune", OptionValue::None),
        ("prune-tags", OptionValue::None),
        ("q", OptionValue::None),
        ("quiet", OptionValue::None),
        ("recurse-submodules", OptionValue::No),
        ("refetch", OptionValue::None),
        ("server-option", OptionValue::Text),
        ("shallow-exclude", OptionValue::Text),
        ("shallow-since", OptionValue::Text),
        ("show-forced-updates", OptionValue::None),
        ("t", OptionValue::None),
        ("tags", OptionValue::None),
        ("unshallow", OptionValue::None),
        ("update-shallow", OptionValue::None),
        ("v", OptionValue::None),
        ("verbose", OptionValue::None),
        ("write-fetch-head", OptionValue::None),
    ],
};

/// `git clean`.
pub const CLEAN: GitCommand = GitCommand {
    variable: "GIT_CLEAN_FLAGS",
    positionals: Positionals::Paths,
    options: &[
        ("d", OptionValue::None),
        ("dry-run", OptionValue::None),
        ("e", OptionValue::Text),
        ("exclude", OptionValue::Text),
        ("f", OptionValue::None),
        ("force", OptionValue::None),
        ("n", OptionValue::None),
        ("q", OptionValue::None),
        ("quiet", OptionValue::None),
        ("x", OptionValue::None),
        ("X", OptionValue::None),
    ],
};

/// `git submodule update`.
pub const SUBMODULE_UPDATE: GitCommand = GitCommand {
    variable: "GIT_SUBMODULE_UPDATE_FLAGS",
    positionals: Positionals::None,
    options: &[
        ("checkout", OptionValue::None),
        ("depth", OptionValue::Depth),
        ("f", OptionValue::None),
        ("filter", OptionValue::Filter),
        ("force", OptionValue::None),
        ("init", OptionValue::None),
        ("j", OptionValue::Jobs),
        ("jobs", OptionValue::Jobs),
        ("merge", OptionValue::None),
        ("N", OptionValue::None),
        ("no-fetch", OptionValue::None),
        ("no-recommend-shallow", OptionValue::None),
        ("no-single-branch", OptionValue::None),
        ("progress", OptionValue::None),
        ("q", OptionValue::None),
        ("quiet", OptionValue::None),
        ("rebase", OptionValue::None),
        ("recommend-shallow", OptionValue::None),
        ("recursive", OptionValue::None),
        ("remote", OptionValue::None),
        ("single-branch", OptionValue::None),
    ],
};

impl GitCommand {
    /// The variable of the job.
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    /// Checks the options of a job for this command. Errors: an option is not on the list, or its value is out of
    /// range.
    pub fn check(&self, words: &[String]) -> Result<(), JobError> {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" && self.positionals == Positionals::Paths {
                return Ok(());
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                // `--x` with a single letter is not a long option.
                let kind = self.find(name).filter(|_| name.chars().count() > 1).ok_or_else(|| self.refusal(word))?;
                let value = match value {
                    None if !matches!(kind, OptionValue::None | OptionValue::No) => words.next().map(String::as_str),
                    value => value,
                };
                self.check_value(word, kind, value)?;
            } else if let Some(letters) = word.strip_prefix('-') {
                self.check_letters(word, letters, &mut words)?;
            } else if !self.accepts_positional(word) {
                return Err(self.refusal(word));
            }
        }
        Ok(())
    }

    /// Checks short options in one word: `-ffdx`, `-j4`.
    fn check_letters<'a>(
        &self,
        word: &str,
        letters: &str,
        words: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), JobError> {
        if letters.is_empty() {
            return Err(self.refusal(word));
        }
        for (at, letter) in letters.char_indices() {
            let kind = self.find(letter.encode_utf8(&mut [0; 4])).ok_or_else(|| self.refusal(word))?;
            if kind != OptionValue::None {
                // The value is the rest of the word or the next word.
                let rest = &letters[at + letter.len_utf8()..];
                let value = if rest.is_empty() { words.next().map(String::as_str) } else { Some(rest) };
                return self.check_value(word, kind, value);
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<OptionValue> {
        self.options.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn check_value(&self, word: &str, kind: OptionValue, value: Option<&str>) -> Result<(), JobError> {
        let is_number =
            |most: u32| value.and_then(|text| text.parse().ok()).is_some_and(|number| (1..=most).contains(&number));
        let wanted = match kind {
            OptionValue::None if value.is_none() => return Ok(()),
            OptionValue::None => "no value",
            OptionValue::No if value == Some("no") => return Ok(()),
            OptionValue::No => "the value `no`",
            OptionValue::Depth if is_number(i32::MAX.unsigned_abs()) => return Ok(()),
            OptionValue::Depth => "a number of commits from 1",
            OptionValue::Jobs if is_number(MAX_JOBS) => return Ok(()),
            OptionValue::Jobs => "a number from 1 to 64",
            OptionValue::Filter if value.is_some_and(is_filter) => return Ok(()),
            OptionValue::Filter => "a filter such as `blob:none`, `blob:limit=1m` or `tree:0`",
            OptionValue::Text if value.is_some_and(|text| !text.is_empty() && !text.starts_with('-')) => return Ok(()),
            OptionValue::Text => "a value that does not begin with a dash",
        };
        Err(JobError::configuration(format!("{}: `{word}` takes {wanted}", self.variable)))
    }

    fn accepts_positional(&self, word: &str) -> bool {
        match self.positionals {
            Positionals::None => false,
            Positionals::Paths => true,
            Positionals::Refspecs => is_refspec(word),
        }
    }

    fn refusal(&self, word: &str) -> JobError {
        JobError::configuration(format!(
            "{}: `{word}` is not an option that jobs may pass to git; remove it, or write it in full if it is an \
             abbreviation (the options that are allowed: docs/reference/configuration.md, \"Options for git\")",
            self.variable
        ))
    }
}

/// Accepts `blob:none`, `blob:limit=1m`, `tree:0`, `object:type=commit` and combinations (`combine:`).
fn is_filter(text: &str) -> bool {
    let kinds = ["blob:none", "blob:limit=", "tree:", "object:type=", "combine:"];
    kinds.iter().any(|kind| text.starts_with(kind))
        && !text.contains("sparse")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":=+%-".contains(&byte))
}

/// Accepts refspecs such as `+refs/heads/*:refs/remotes/origin/*`: the target is a branch, a tag or a remote ref.
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

    fn check(command: &GitCommand, text: &str) -> Result<(), String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        command.check(&words).map_err(|error| error.message)
    }

    #[test]
    fn accepts_common_options() {
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
    fn refuses_options_that_run_programs_read_files_or_have_no_limit() {
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
        let why = check(&FETCH, "--prune --upload-pack=evil").expect_err("must be refused");
        assert!(why.contains("GIT_FETCH_EXTRA_FLAGS") && why.contains("`--upload-pack=evil`"), "{why}");
    }
}
