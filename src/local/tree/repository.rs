//! The repository of a job's tree: its own references, index and configuration, and the objects of the developer's
//! repository to read. Whatever a job does with git there, the developer's repository stays as it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::job::sources::remove::remove;
use crate::local::checkout::Checkout;
use crate::local::facts::Answers;

/// What such a repository is made of.
pub struct Repository {
    commit: String,
    references: Vec<u8>,
    objects: PathBuf,
    index: PathBuf,
    shallow: PathBuf,
    config: String,
}

impl Repository {
    /// The developer's, with what git said of it.
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

    /// Makes the repository in place of whatever is there. Errors: the disk.
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

/// The configuration: the copies have the times of the originals, but other inodes, and git is not to read them all for
/// that.
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
