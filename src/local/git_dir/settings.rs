//! Git's configuration files (git-config(1)), without files that they include.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::Chars;

use super::GitDir;

/// Environment variables that make git read other files.
const REDIRECTIONS: [&str; 3] = ["GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_SYSTEM"];

impl GitDir {
    /// All settings with these names, in the order in which git reads them; `None` if only git can read them.
    pub fn settings(&self, names: &[&str]) -> Option<Vec<(String, String)>> {
        if REDIRECTIONS.iter().any(|name| std::env::var_os(name).is_some()) {
            return None;
        }
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let of_user = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let of_user = of_user.or_else(|| home.as_ref().map(|home| home.join(".config")));
        let files = [
            Some(PathBuf::from("/etc/gitconfig")),
            of_user.map(|directory| directory.join("git/config")),
            home.map(|home| home.join(".gitconfig")),
            Some(self.path.join("config")),
        ];
        let mut settings = Vec::new();
        for file in files.into_iter().flatten() {
            settings.extend(read(&file)?.into_iter().filter(|(name, _)| names.contains(&name.as_str())));
        }
        Some(settings)
    }
}

fn read(file: &Path) -> Option<Vec<(String, String)>> {
    match fs::read_to_string(file) {
        Ok(text) => parse(&text),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Some(Vec::new())
        }
        Err(_) => None,
    }
}

/// The settings of a file as `section.key` or `section.subsection.key`.
fn parse(text: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut section = String::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '#' | ';' => drop(rest.find(|character| *character == '\n')),
            '[' => section = self::section(&mut rest)?,
            character if character.is_ascii_whitespace() => {}
            character if character.is_ascii_alphabetic() && !section.is_empty() => {
                let (key, value) = setting(character, &mut rest)?;
                settings.push((format!("{section}.{key}"), value));
            }
            _ => return None,
        }
    }
    Some(settings)
}

/// `key = value`, or `key` without a value, after the first character of the key.
fn setting(first: char, rest: &mut Peekable<Chars<'_>>) -> Option<(String, String)> {
    let mut key = first.to_ascii_lowercase().to_string();
    while let Some(next) = rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '-') {
        key.push(next.to_ascii_lowercase());
    }
    while rest.next_if(|next| matches!(next, ' ' | '\t')).is_some() {}
    let value = match rest.peek() {
        Some('=') => value(rest)?,
        None | Some('\n' | '\r' | '#' | ';') => String::new(),
        Some(_) => return None,
    };
    Some((key, value))
}

/// `section]` or `section "subsection"]`; `None` for a section that includes other files.
fn section(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut name = String::new();
    loop {
        match rest.next()? {
            ']' => break,
            next if next.is_ascii_alphanumeric() || matches!(next, '-' | '.') => name.push(next.to_ascii_lowercase()),
            ' ' | '\t' => {
                while rest.next_if(|next| matches!(next, ' ' | '\t')).is_some() {}
                (rest.next()? == '"').then_some(())?;
                name.push('.');
                loop {
                    match rest.next()? {
                        '"' => break,
                        '\n' => return None,
                        '\\' => name.push(rest.next()?),
                        next => name.push(next),
                    }
                }
                return (rest.next()? == ']' && !is_include(&name)).then_some(name);
            }
            _ => return None,
        }
    }
    (!name.is_empty() && !is_include(&name)).then_some(name)
}

fn is_include(section: &str) -> bool {
    section == "include" || section.starts_with("includeif")
}

/// The value after `=`, up to the end of the line or a comment.
fn value(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    // Skips `=` and the blanks after it.
    rest.next();
    while rest.next_if(|next| matches!(next, ' ' | '\t')).is_some() {}
    let (mut value, mut is_quoted) = (String::new(), false);
    // The length without trailing blanks that are not quoted.
    let mut length = 0;
    while let Some(next) = rest.next() {
        match next {
            '\n' if is_quoted => return None,
            '\n' => break,
            '\r' if rest.peek() == Some(&'\n') => continue,
            '"' => is_quoted = !is_quoted,
            '#' | ';' if !is_quoted => {
                rest.find(|character| *character == '\n');
                break;
            }
            '\\' => match rest.next()? {
                '\n' => continue,
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'b' => value.push('\u{8}'),
                escaped @ ('"' | '\\') => value.push(escaped),
                _ => return None,
            },
            next => value.push(next),
        }
        if is_quoted || !matches!(next, ' ' | '\t') {
            length = value.len();
        }
    }
    value.truncate(length);
    (!is_quoted).then_some(value)
}

/// The value of each setting that git uses: the last one; of several URLs the first, from which git fetches.
pub fn effective(settings: Vec<(String, String)>) -> BTreeMap<String, String> {
    let mut effective = BTreeMap::new();
    for (name, value) in settings {
        if name != "remote.origin.url" || !effective.contains_key(&name) {
            effective.insert(name, value);
        }
    }
    effective
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\u{feff}# comment\n[user] name = Dev # not this\n\temail=dev@example.test\n[Core]\n\tbare\n\
        [remote \"or\\\"igin\"]\n\turl = \"https://a b\" c  \n\turl = one\\\n two\\t\\\\;x\n[alias]\nx = \"a;b\" \"c \" \n\
        [a.B] key-1=\r\n[empty]";

    #[test]
    fn reads_the_values_that_git_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("config");
        fs::write(&file, TEXT).expect("write a file");
        let git = std::process::Command::new("git").args(["config", "-z", "--list", "-f"]).arg(&file).output();
        let expected = String::from_utf8(git.expect("run git").stdout).expect("the text must be UTF-8");
        let expected: Vec<(String, String)> = expected
            .split_terminator('\0')
            .map(|entry| entry.split_once('\n').unwrap_or((entry, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert_eq!(parse(TEXT), Some(expected));
    }

    #[test]
    fn leaves_includes_and_errors_to_git() {
        for text in
            ["[include]\npath = x", "[includeIf \"gitdir:x\"]\npath = x", "name = x", "[a", "[a] b c", "[a]\nb=\"x"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_causes_a_panic(text in "[\\[\\]a\"= \\\\\n#.]{0,40}") {
            let _ = parse(&text);
        }
    }
}
