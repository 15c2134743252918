//! The repository of a job's tree: its own references, index and configuration; objects are read from the developer's
//! repository. No git command of a job can change the developer's repository.
//!
//! A repository that no job has changed is kept for the next job, because creating its files takes longer than
//! comparing their stamps.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest::{Context, SHA256};

use super::stamp::Stamp;
use crate::job::sources::remove::remove;
use crate::local::checkout::{Checkout, git, output};
use crate::local::facts::RepositoryFacts;

/// The files and directories of a new repository, except the copied files.
const ENTRIES: [&str; 8] =
    ["", "HEAD", "config", "objects", "objects/info", "objects/info/alternates", "packed-refs", "refs"];

/// The content of a repository for trees.
pub struct Repository {
    commit: String,
    references: Vec<u8>,
    objects: PathBuf,
    /// Files of the developer's repository that are copied, and their names in the repository of the tree.
    copied: Vec<(PathBuf, OsString)>,
    config: String,
    /// A digest of the content. `None`: a copied file has changed so recently that its stamp does not identify its
    /// content.
    identity: Option<Vec<u8>>,
}

impl Repository {
    /// The repository for trees of this checkout.
    pub fn new(checkout: &Checkout, repository_facts: &RepositoryFacts) -> Self {
        let mut repository = Self {
            commit: repository_facts.commit().to_owned(),
            references: repository_facts.packed.clone(),
            objects: checkout.objects.clone(),
            copied: copied_files(checkout),
            config: config(repository_facts),
            identity: None,
        };
        repository.identity = repository.identify();
        repository
    }

    /// Adds the settings `submodule.*.url` and `submodule.*.active` of the work tree at `root`, without which git
    /// ignores the submodules.
    pub fn add_settings_of_submodules(&mut self, root: &Path) {
        let mut command = git(root);
        command.args(["config", "-z", "--get-regexp", r"^submodule\..*\.(url|active)$"]);
        // Git fails if there are no such settings.
        let settings = output(command).unwrap_or_default();
        for setting in String::from_utf8_lossy(&settings).split('\0') {
            let Some((name, value)) = setting.split_once('\n') else { continue };
            let Some((name, key)) = name.strip_prefix("submodule.").and_then(|name| name.rsplit_once('.')) else {
                continue;
            };
            let (name, value) = (escaped(name), escaped(value));
            self.config.push_str(&format!("[submodule \"{name}\"]\n\t{key} = \"{value}\"\n"));
        }
        self.identity = self.identify();
    }

    /// Computes [`Repository::identity`].
    fn identify(&self) -> Option<Vec<u8>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut digest = Context::new(&SHA256);
        let objects = self.objects.as_os_str().as_bytes();
        for part in [self.commit.as_bytes(), &self.references, objects, self.config.as_bytes()] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        for (copied, _) in &self.copied {
            let stamp = copied.metadata().map(|metadata| Stamp::of_metadata(&metadata)).unwrap_or_default();
            if stamp.is_recent(now) {
                return None;
            }
            digest.update(&stamp.to_bytes());
        }
        Some(digest.finish().as_ref().to_vec())
    }

    /// Creates the repository of the tree at `project` and writes its record to a file. An existing
    /// repository stays if it still equals its record. `adapt` changes a new repository before it is recorded.
    pub fn write(&self, project: &Path, record_file: &Path, adapt: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let place = &project.join(".git");
        if fs::read(record_file).is_ok_and(|known| self.current_record(place) == Some(known)) {
            return Ok(());
        }
        remove(place)?;
        fs::create_dir_all(place.join("objects/info"))?;
        fs::create_dir(place.join("refs"))?;
        // `objects::with_mountable_objects` chose a path without a line feed.
        let mut alternates = self.objects.clone().into_os_string();
        alternates.push("\n");
        fs::write(place.join("objects/info/alternates"), alternates.as_bytes())?;
        fs::write(place.join("HEAD"), format!("{}\n", self.commit))?;
        fs::write(place.join("packed-refs"), &self.references)?;
        fs::write(place.join("config"), &self.config)?;
        for (original, name) in self.copied.iter().filter(|(original, _)| original.is_file()) {
            fs::copy(original, place.join(name))?;
        }
        adapt(project)?;
        match self.current_record(place) {
            Some(record) => fs::write(record_file, record),
            None => remove(record_file),
        }
    }

    /// The identity of the content and the stamps of all files in the repository at `place`. `None`: the content has no
    /// identity, or the repository contains other files.
    fn current_record(&self, place: &Path) -> Option<Vec<u8>> {
        let mut record = self.identity.clone()?;
        let mut expected = 0;
        let copied = self.copied.iter().map(|(_, name)| name.as_os_str());
        for name in ENTRIES.into_iter().map(OsStr::new).chain(copied) {
            let Ok(metadata) = place.join(name).symlink_metadata() else { continue };
            expected += usize::from(!name.is_empty());
            record.extend_from_slice(&Stamp::of_metadata(&metadata).to_bytes());
        }
        // A directory that cannot be read makes the sum unequal.
        let found = ["", "objects", "objects/info", "refs"]
            .map(|directory| fs::read_dir(place.join(directory)).map_or(usize::MAX / 8, |entries| entries.count()));
        (found.iter().sum::<usize>() == expected).then_some(record)
    }
}

/// The files to copy from a repository: its index, the parts that a split index refers to, and the list of commits at
/// which a shallow clone ends.
fn copied_files(checkout: &Checkout) -> Vec<(PathBuf, OsString)> {
    let mut copied = vec![(checkout.index.clone(), "index".into()), (checkout.shallow.clone(), "shallow".into())];
    let directory = checkout.index.parent().unwrap_or(Path::new(""));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(b"sharedindex.") {
            copied.push((entry.path(), entry.file_name()));
        }
    }
    copied.sort_unstable();
    copied
}

/// A value for git's configuration, to be written in quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The git configuration. The copied files have the modification times of the originals but other inodes and change
/// times. Without `trustctime` and `checkStat`, git would read all of them to detect changes.
fn config(repository_facts: &RepositoryFacts) -> String {
    let value = |key: &str| repository_facts.setting(key).map(escaped);
    let format = value("extensions.objectformat");
    let version = if format.is_some() { 1 } else { 0 };
    let mut text = format!(
        "[core]\n\trepositoryformatversion = {version}\n\tbare = false\n\ttrustctime = false\n\tcheckStat = minimal\n\t\
         untrackedCache = false\n"
    );
    if let Some(format) = format {
        text.push_str(&format!("[extensions]\n\tobjectformat = \"{format}\"\n"));
    }
    if let Some(url) = value("remote.origin.url") {
        text.push_str(&format!(
            "[remote \"origin\"]\n\turl = \"{url}\"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
        ));
        // From this remote, git fetches missing objects of a partial clone.
        if repository_facts.is_partial_clone() {
            let filter = value("remote.origin.partialclonefilter").unwrap_or_else(|| "blob:none".to_owned());
            text.push_str(&format!("\tpromisor = true\n\tpartialCloneFilter = \"{filter}\"\n"));
        }
    }
    text
}
