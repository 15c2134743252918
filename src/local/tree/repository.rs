//! The repository of a job's tree: its own references, index and configuration; objects are read from the developer's
//! repository. No git command of a job can change the developer's repository.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::job::sources::remove::remove;
use crate::local::checkout::Checkout;
use crate::local::facts::Answers;

/// The sources of such a repository.
pub struct Repository {
    commit: String,
    references: Vec<u8>,
    objects: PathBuf,
    index: PathBuf,
    shallow: PathBuf,
    config: String,
}

impl Repository {
    /// Takes paths from the checkout and references from git's answers.
    pub fn new(checkout: &Checkout, answers: &Answers) -> Self {
        Self {
            commit: answers.commit().to_owned(),
            references: answers.packed.clone(),
            objects: checkout.objects.clone(),
            index: checkout.index.clone(),
            shallow: checkout.shallow.clone(),
            config: config(answers),
        }
    }

    /// Creates the repository; replaces what exists at that path.
    pub fn write(&self, place: &Path) -> io::Result<()> {
        remove(place)?;
        fs::create_dir_all(place.join("objects/info"))?;
        fs::create_dir(place.join("refs"))?;
        let mut alternates = self.objects.clone().into_os_string();
        alternates.push("\n");
        fs::write(place.join("objects/info/alternates"), std::os::unix::ffi::OsStrExt::as_bytes(&*alternates))?;
        fs::write(place.join("HEAD"), format!("{}\n", self.commit))?;
        fs::write(place.join("packed-refs"), &self.references)?;
        fs::write(place.join("config"), &self.config)?;
        for (original, name) in [(&self.index, "index"), (&self.shallow, "shallow")] {
            if original.is_file() {
                fs::copy(original, place.join(name))?;
            }
        }
        Ok(())
    }
}

/// The git configuration. The copies have the time stamps of the originals but other inodes; these settings keep git
/// from reading all files because of that.
fn config(answers: &Answers) -> String {
    let value = |key: &str| answers.setting(key).map(|value| value.replace('\\', "\\\\").replace('"', "\\\""));
    let format = value("extensions.objectformat");
    let version = if format.is_some() { 1 } else { 0 };
    let mut text = format!(
        "[core]\n\trepositoryformatversion = {version}\n\tbare = false\n\ttrustctime = false\n\tcheckStat = minimal\n"
    );
    if let Some(format) = format {
        text.push_str(&format!("[extensions]\n\tobjectformat = \"{format}\"\n"));
    }
    if let Some(url) = value("remote.origin.url") {
        text.push_str(&format!(
            "[remote \"origin\"]\n\turl = \"{url}\"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
        ));
    }
    text
}
