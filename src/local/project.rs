//! A project whose jobs run here: the files of its checkout, and the directories of its trees and caches.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::checkout::{Checkout, ListedFile};
use super::facts::RepositoryFacts;
use super::objects;
use super::tree::{TreeSource, Trees};

/// Whether the tree of a job contains submodules (`GIT_SUBMODULE_STRATEGY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submodules {
    Included,
    Excluded,
}

/// The data that the jobs of one project share.
pub struct LocalProject {
    /// The last part of the project's path.
    pub name: String,
    /// Clean copies of the checkout.
    pub trees: Trees,
    /// The files that trees are copied from.
    source: TreeSource,
    /// The files with those of submodules; read when the first job needs them.
    with_submodules: OnceLock<Result<TreeSource, String>>,
    /// The caches of the project.
    pub caches: PathBuf,
    /// The object directories that the repositories of trees refer to.
    pub objects: Vec<PathBuf>,
    checkout: Checkout,
    repository_facts: RepositoryFacts,
    /// The files of the checkout; empty if it has no submodules.
    listed: Vec<ListedFile>,
    state: PathBuf,
}

impl LocalProject {
    /// The project of a checkout with these files. `state` is the directory for its trees and caches.
    pub fn new(
        checkout: &Checkout,
        listed: &[ListedFile],
        repository_facts: &RepositoryFacts,
        name: &str,
        state: &Path,
    ) -> Result<Self, String> {
        let has_submodules = listed.iter().any(|file| file.is_submodule);
        Ok(Self {
            name: name.to_owned(),
            trees: Trees::new(state.join("trees"), name),
            source: TreeSource::new(checkout, listed, repository_facts)?,
            with_submodules: OnceLock::new(),
            caches: state.join("cache"),
            objects: objects::directories(checkout, listed, state)?,
            checkout: checkout.clone(),
            repository_facts: repository_facts.clone(),
            listed: if has_submodules { listed.to_vec() } else { Vec::new() },
            state: state.to_owned(),
        })
    }

    /// The files for the tree of a job.
    pub fn source(&self, submodules: Submodules) -> io::Result<&TreeSource> {
        if submodules == Submodules::Excluded || self.listed.is_empty() {
            return Ok(&self.source);
        }
        let source = self.with_submodules.get_or_init(|| {
            let mut source = TreeSource::new(&self.checkout, &self.listed, &self.repository_facts)?;
            source.add_submodules(&self.listed, &self.state)?;
            Ok(source)
        });
        source.as_ref().map_err(|why| io::Error::other(why.clone()))
    }
}
