//! The repository of a job's tree: its own references, index and configuration; objects are read from the developer's
//! repository. No git command of a job can change the developer's repository.
//!
//! A repository that no job has changed is kept for the next job: creating files takes longer than a look at them.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest::{Context, SHA256};

use super::stamp::Stamp;
use crate::job::sources::remove::remove;
use crate::local::checkout::Checkout;
use crate::local::facts::Answers;

/// The files and directories of a repository, for a comparison of stamps.
const ENTRIES: [&str; 9] =
    ["", "HEAD", "config", "index", "objects", "objects/info", "objects/info/alternates", "packed-refs", "refs"];
/// A repository also has this file if the developer's repository is a shallow clone.
const SHALLOW: &str = "shallow";

/// The sources of such a repository.
pub struct Repository {
    commit: String,
    references: Vec<u8>,
    objects: PathBuf,
    index: PathBuf,
    shallow: PathBuf,
    config: String,
    /// Identifies the content; `None`: a source has just changed, so that its stamp does not identify it.
    identity: Option<Vec<u8>>,
}

impl Repository {
    /// Takes paths from the checkout and references from git's answers.
    pub fn new(checkout: &Checkout, answers: &Answers) -> Self {
        let mut repository = Self {
            commit: answers.commit().to_owned(),
            references: answers.packed.clone(),
            objects: checkout.objects.clone(),
            index: checkout.index.clone(),
            shallow: checkout.shallow.clone(),
            config: config(answers),
            identity: None,
        };
        repository.identity = repository.identify();
        repository
    }

    fn identify(&self) -> Option<Vec<u8>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut digest = Context::new(&SHA256);
        let objects = self.objects.as_os_str().as_bytes();
        for part in [self.commit.as_bytes(), &self.references, objects, self.config.as_bytes()] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        for copied in [&self.index, &self.shallow] {
            let stamp = copied.metadata().map(|metadata| Stamp::of(&metadata)).unwrap_or_default();
            if stamp.is_recent(now) {
                return None;
            }
            digest.update(&stamp.to_bytes());
        }
        Some(digest.finish().as_ref().to_vec())
    }

    /// Creates the repository in place of what exists at that path, unless `record` shows that it is there, unchanged.
    pub fn write(&self, place: &Path, record: &Path) -> io::Result<()> {
        if fs::read(record).is_ok_and(|known| self.record(place) == Some(known)) {
            return Ok(());
        }
        remove(place)?;
        fs::create_dir_all(place.join("objects/info"))?;
        fs::create_dir(place.join("refs"))?;
        let mut alternates = self.objects.clone().into_os_string();
        alternates.push("\n");
        fs::write(place.join("objects/info/alternates"), alternates.as_bytes())?;
        fs::write(place.join("HEAD"), format!("{}\n", self.commit))?;
        fs::write(place.join("packed-refs"), &self.references)?;
        fs::write(place.join("config"), &self.config)?;
        for (original, name) in [(&self.index, "index"), (&self.shallow, SHALLOW)] {
            if original.is_file() {
                fs::copy(original, place.join(name))?;
            }
        }
        match self.record(place) {
            Some(text) => fs::write(record, text),
            None => remove(record),
        }
    }

    /// The identity, and the stamps of all files in the repository at `place`. `None`: it contains other files.
    fn record(&self, place: &Path) -> Option<Vec<u8>> {
        let mut record = self.identity.clone()?;
        let mut expected = 0;
        for name in ENTRIES.into_iter().chain([SHALLOW]) {
            let Ok(metadata) = place.join(name).symlink_metadata() else { continue };
            expected += usize::from(!name.is_empty());
            record.extend_from_slice(&Stamp::of(&metadata).to_bytes());
        }
        let found = ["", "objects", "objects/info", "refs"]
            .map(|directory| fs::read_dir(place.join(directory)).map_or(usize::MAX / 8, |entries| entries.count()));
        (found.iter().sum::<usize>() == expected).then_some(record)
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
