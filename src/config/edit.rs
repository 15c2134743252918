//! Changes of `config.toml` that keep its comments, its order and keys we do not know. Written whole, then renamed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::coordinator::Token;

/// The file, open for changes.
pub struct Editor {
    path: PathBuf,
    document: DocumentMut,
}

impl Editor {
    /// Reads the file; one that does not exist is empty. Errors: unreadable, or not TOML.
    pub fn open(path: &Path) -> Result<Self, String> {
        let describe = |why: String| format!("{}: {why}", path.display());
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(describe(error.to_string())),
        };
        let document = text.parse().map_err(|error: toml_edit::TomlError| describe(error.to_string()))?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// True for a file without any key yet.
    pub fn is_empty(&self) -> bool {
        self.document.as_table().is_empty()
    }

    /// Sets a key at the top level.
    pub fn set_global(&mut self, key: &str, number: i64) {
        self.document[key] = value(number);
    }

    /// Adds a runner at the end.
    pub fn add_runner(&mut self, runner: Table) -> Result<(), String> {
        let runners = self.document.entry("runners").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let runners = runners.as_array_of_tables_mut();
        runners.ok_or("`runners` is not a list of [[runners]] tables")?.push(runner);
        Ok(())
    }

    /// Removes the runners with these tokens.
    pub fn remove_runners(&mut self, tokens: &[&Token]) {
        if let Some(runners) = self.document.get_mut("runners").and_then(Item::as_array_of_tables_mut) {
            runners.retain(|table| {
                let token = table.get("token").and_then(Item::as_str).unwrap_or_default();
                !tokens.iter().any(|gone| gone.reveal() == token)
            });
        }
    }

    /// Replaces a runner's token, with when it was obtained and when it dies (RFC 3339).
    pub fn replace_token(&mut self, old: &Token, new: &Token, obtained: &str, expires: Option<&str>) {
        let Some(runners) = self.document.get_mut("runners").and_then(Item::as_array_of_tables_mut) else { return };
        for table in runners.iter_mut().filter(|table| table.get("token").and_then(Item::as_str) == Some(old.reveal()))
        {
            put(table, "token", value(new.reveal()));
            put(table, "token_obtained_at", time(obtained));
            put(table, "token_expires_at", time(expires.unwrap_or("0001-01-01T00:00:00Z")));
        }
    }

    /// Writes the file, mode 0600, by rename; a link stays a link. Errors: the directory cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        if let Some(directory) = target.parent().filter(|directory| !directory.as_os_str().is_empty())
            && !directory.exists()
        {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        let draft = target.with_extension(format!("toml.{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        let written = file.write_all(self.document.to_string().as_bytes()).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&draft, &target)) {
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        Ok(())
    }
}

/// Sets a key; what stands around the old value stays.
fn put(table: &mut Table, key: &str, mut new: Item) {
    if let (Some(old), Some(new)) = (table.get(key).and_then(Item::as_value), new.as_value_mut()) {
        *new.decor_mut() = old.decor().clone();
    }
    table[key] = new;
}

/// A time, as a time where it is one.
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
        let text = "# ours\nconcurrent = 2 # two\n\n[[runners]]\n  name = \"a\"\n  \
                    token = \"old\" # secret\n  odd = 1\n\n\
                    # the other\n[[runners]]\n  name = \"b\"\n  token = \"other\"\n";
        fs::write(&path, text).expect("written");
        let mut editor = Editor::open(&path).expect("opened");
        editor.replace_token(&Token::new("old"), &Token::new("new"), "2030-01-02T03:04:05Z", None);
        editor.save().expect("saved");
        let changed = fs::read_to_string(&path).expect("text");
        assert!(changed.starts_with(
            "# ours\nconcurrent = 2 # two\n\n[[runners]]\n  name = \"a\"\n  token = \"new\" # secret\n  odd = 1\n"
        ));
        assert!(changed.contains("token_obtained_at = 2030-01-02T03:04:05Z"));
        assert!(changed.ends_with("# the other\n[[runners]]\n  name = \"b\"\n  token = \"other\"\n"));
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        let mut editor = Editor::open(&path).expect("opened");
        editor.remove_runners(&[&Token::new("new")]);
        editor.save().expect("saved");
        assert!(!fs::read_to_string(&path).expect("text").contains("\"a\""));
    }
}
