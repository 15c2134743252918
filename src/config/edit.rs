//! Edits `config.toml` and keeps its comments, its order and unknown keys. The file is replaced atomically by rename.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, value};

use super::Runner;
use super::expand::expand;
use super::location::show_error;
use crate::token::Token;

pub struct Editor {
    path: PathBuf,
    document: DocumentMut,
    /// Why an earlier change failed; [`Editor::save`] then refuses to write the file.
    problem: Option<String>,
}

impl Editor {
    /// Opens the file; a missing one counts as empty. Fails if it is unreadable or not TOML.
    pub fn open(path: &Path) -> Result<Self, String> {
        let describe = |why: String| format!("{}: {why}", path.display());
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(describe(error.to_string())),
        };
        let document = text
            .parse()
            .map_err(|error: toml_edit::TomlError| describe(show_error(&text, error.span(), error.message())))?;
        Ok(Self { path: path.to_owned(), document, problem: None })
    }

    /// Whether the file has no key.
    pub fn is_empty(&self) -> bool {
        self.document.as_table().is_empty()
    }

    /// Sets a top-level key.
    pub fn set_global(&mut self, key: &str, number: i64) {
        self.document[key] = value(number);
    }

    /// Appends a runner.
    pub fn add_runner(&mut self, runner: Table) -> Result<(), String> {
        let runners = self.document.entry("runners").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let runners = runners.as_array_of_tables_mut();
        runners.ok_or("`runners` is not a list of [[runners]] tables")?.push(runner);
        Ok(())
    }

    /// Whether the file has a runner with this token and server.
    pub fn has_runner(&self, url: &str, token: &Token) -> bool {
        let inline = self.document.get("runners").and_then(Item::as_array);
        let inline = inline.into_iter().flatten().filter_map(toml_edit::Value::as_inline_table);
        let mut tables = inline.map(|table| table as &dyn TableLike).chain(
            self.document
                .get("runners")
                .and_then(Item::as_array_of_tables)
                .into_iter()
                .flatten()
                .map(|table| table as _),
        );
        tables.any(|table| has_value(table, "token", token.reveal()) && has_value(table, "url", url))
    }

    /// Removes runners; those that are no longer in the file are ignored.
    pub fn remove_runners(&mut self, gone: &[&Runner]) {
        let fits = |table: &dyn TableLike| {
            gone.iter()
                .any(|gone| has_value(table, "token", &gone.written_token()) && has_value(table, "url", &gone.url))
        };
        match self.document.get_mut("runners") {
            Some(Item::ArrayOfTables(tables)) => tables.retain(|table| !fits(table)),
            Some(Item::Value(toml_edit::Value::Array(inline))) => {
                inline.retain(|item| !item.as_inline_table().is_some_and(|table| fits(table)));
            }
            _ => {}
        }
    }

    /// Replaces a runner's token, with the times when it was obtained and expires (RFC 3339). If the old token is not
    /// in the file, saving will fail, because the new one would be lost.
    pub fn replace_token(&mut self, old: &Token, new: &Token, obtained: &str, expires: Option<&str>) {
        let mut replaced = false;
        let mut replace = |table: &mut dyn TableLike| {
            if has_value(table, "token", old.reveal()) {
                set_value(table, "token", value(new.reveal()));
                set_value(table, "token_obtained_at", time(obtained));
                set_value(table, "token_expires_at", time(expires.unwrap_or("0001-01-01T00:00:00Z")));
                replaced = true;
            }
        };
        match self.document.get_mut("runners") {
            Some(Item::ArrayOfTables(tables)) => tables.iter_mut().for_each(|table| replace(table)),
            Some(Item::Value(toml_edit::Value::Array(inline))) => {
                let tables = inline.iter_mut().filter_map(toml_edit::Value::as_inline_table_mut);
                tables.for_each(|table| replace(table));
            }
            _ => {}
        }
        if !replaced {
            self.problem = Some("the runner whose token was replaced is no longer in the file".to_owned());
        }
    }

    /// Writes the file by rename, with mode 0600. A link stays a link, and the owner is kept. Fails if the directory is
    /// not writable or an earlier change failed.
    pub fn save(&self) -> io::Result<()> {
        if let Some(problem) = &self.problem {
            return Err(io::Error::other(problem.clone()));
        }
        let target = resolve_links(&self.path)?;
        let directory = target.parent().filter(|directory| !directory.as_os_str().is_empty());
        if let Some(directory) = directory.filter(|directory| !directory.exists()) {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        let draft = target.with_extension(format!("toml.{}", std::process::id()));
        let written = self.write(&draft, &target).and_then(|()| fs::rename(&draft, &target));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }

    fn write(&self, draft: &Path, target: &Path) -> io::Result<()> {
        // `create_new` fails if a killed process with the same pid left a draft.
        let _ = fs::remove_file(draft);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
        if let Ok(old) = fs::metadata(target) {
            // Only root can change the owner, and only root needs to.
            let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
        }
        file.write_all(self.document.to_string().as_bytes())?;
        file.sync_all()
    }
}

/// The target of a path after links are followed; the target need not exist.
fn resolve_links(path: &Path) -> io::Result<PathBuf> {
    // The kernel has the same limit (path_resolution(7)).
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::other("too many links"))
}

/// Whether a key has this value, after environment variables are replaced.
fn has_value(table: &dyn TableLike, key: &str, wanted: &str) -> bool {
    table.get(key).and_then(Item::as_str).is_some_and(|text| text == wanted || expand(text) == wanted)
}

/// Sets a key; comments and spaces around the old value are kept.
fn set_value(table: &mut dyn TableLike, key: &str, mut new: Item) {
    if let (Some(old), Some(new)) = (table.get(key).and_then(Item::as_value), new.as_value_mut()) {
        *new.decor_mut() = old.decor().clone();
    }
    match table.get_mut(key) {
        Some(item) => *item = new,
        None => {
            table.insert(key, new);
        }
    }
}

/// A TOML datetime, or text if it cannot be parsed.
pub fn time(text: &str) -> Item {
    text.parse::<toml_edit::Datetime>().map_or_else(|_| value(text), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_comments_order_and_unknown_keys() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        let text = "# ours\nconcurrent = 2 # two\n\n[[runners]]\n  name = \"a\"\n  url = \"https://h\"\n  \
                    token = \"old\" # secret\n  odd = 1\n\n\
                    # the other\n[[runners]]\n  name = \"b\"\n  token = \"other\"\n";
        fs::write(&path, text).expect("write the file");
        let mut editor = Editor::open(&path).expect("open the file");
        editor.replace_token(&Token::new("old"), &Token::new("new"), "2030-01-02T03:04:05Z", None);
        editor.save().expect("save the file");
        let changed = fs::read_to_string(&path).expect("read the file");
        assert!(changed.starts_with(
            "# ours\nconcurrent = 2 # two\n\n[[runners]]\n  name = \"a\"\n  url = \"https://h\"\n  \
             token = \"new\" # secret\n  odd = 1\n"
        ));
        assert!(changed.contains("token_obtained_at = 2030-01-02T03:04:05Z"));
        assert!(changed.ends_with("# the other\n[[runners]]\n  name = \"b\"\n  token = \"other\"\n"));
        assert_eq!(fs::metadata(&path).expect("the file must exist").permissions().mode() & 0o777, 0o600);
        let mut editor = Editor::open(&path).expect("open the file");
        editor.remove_runners(&[&Runner::with_defaults("https://h", Token::new("new"))]);
        editor.save().expect("save the file");
        assert!(!fs::read_to_string(&path).expect("read the file").contains("\"a\""));
    }
    fn edited(text: &str, change: impl FnOnce(&mut Editor)) -> io::Result<String> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("config.toml");
        fs::write(&path, text)?;
        let mut editor = Editor::open(&path).map_err(io::Error::other)?;
        change(&mut editor);
        editor.save()?;
        fs::read_to_string(&path)
    }

    #[test]
    fn finds_a_token_from_the_environment() {
        let path = Token::new(std::env::var("PATH").expect("a path"));
        let text = "[[runners]]\nurl = \"https://h\"\ntoken = \"$PATH\"\n";
        let changed =
            edited(text, |editor| editor.replace_token(&path, &Token::new("new"), "2030-01-02T03:04:05Z", None));
        assert!(changed.expect("save the file").contains("token = \"new\""));
        let changed =
            edited(text, |editor| editor.remove_runners(&[&Runner::with_defaults("https://h", path.clone())]));
        assert!(!changed.expect("save the file").contains("https"));
    }

    #[test]
    fn keeps_the_same_token_of_another_server() {
        let text = "[[runners]]\nurl = \"https://a\"\ntoken = \"t\"\n[[runners]]\nurl = \"https://b\"\ntoken = \"t\"\n";
        let gone = Runner::with_defaults("https://a", Token::new("t"));
        let changed = edited(text, |editor| editor.remove_runners(&[&gone])).expect("save the file");
        assert!(changed.contains("https://b") && !changed.contains("https://a"), "{changed}");
    }

    #[test]
    fn edits_runners_in_an_inline_array() {
        let text = "runners = [{ url = \"https://h\", token = \"t\" }] # one\n";
        let changed = edited(text, |editor| {
            assert!(editor.has_runner("https://h", &Token::new("t")));
            editor.replace_token(&Token::new("t"), &Token::new("new"), "2030-01-02T03:04:05Z", None);
        });
        let changed = changed.expect("save the file");
        assert!(changed.contains("token = \"new\"") && changed.ends_with("# one\n"), "{changed}");
    }

    #[test]
    fn a_replaced_token_is_never_lost_silently() {
        let text = "[[runners]]\ntoken = \"t\"\n";
        let lost = edited(text, |editor| editor.replace_token(&Token::new("x"), &Token::new("new"), "", None));
        assert!(lost.expect_err("must be refused").to_string().contains("no longer in the file"));
    }

    #[test]
    fn writes_through_links_even_to_a_missing_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let (link, target) = (directory.path().join("config.toml"), directory.path().join("real.toml"));
        std::os::unix::fs::symlink("real.toml", &link).expect("create the link");
        for limit in [1, 2] {
            let mut editor = Editor::open(&link).expect("open the file");
            editor.set_global("concurrent", limit);
            editor.save().expect("save the file");
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&target).expect("read the file"), format!("concurrent = {limit}\n"));
        }
    }
}
