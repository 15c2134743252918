//! A checkout whose jobs run here: the files for its trees, and where its trees and caches are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::checkout::{Checkout, Listed};
use super::facts::Answers;
use super::objects;
use super::tree::{TreeSource, Trees};

/// What the jobs of one project share.
pub struct LocalProject {
    /// The last part of the project's path.
    pub name: String,
    /// Clean copies of the checkout.
    pub trees: Trees,
    /// The files that trees are copied from.
    source: TreeSource,
    /// The same with submodules; read when a job wants them.
    with_submodules: OnceLock<Result<TreeSource, String>>,
    /// The caches of the project.
    pub caches: PathBuf,
    /// The object directories that the repositories of trees refer to.
    pub objects: Vec<PathBuf>,
    checkout: Checkout,
    answers: Answers,
    /// The files of the checkout; empty if it has no submodules.
    listed: Vec<Listed>,
    state: PathBuf,
}

impl LocalProject {
    /// The project of a checkout with these files. `state` is the directory for its trees and caches.
    pub fn new(
        checkout: &Checkout,
        listed: &[Listed],
        answers: &Answers,
        name: &str,
        state: &Path,
    ) -> Result<Self, String> {
        let has_submodules = listed.iter().any(|file| file.is_submodule);
        Ok(Self {
            name: name.to_owned(),
            trees: Trees::new(state.join("trees"), name),
            source: TreeSource::new(checkout, listed, answers)?,
            with_submodules: OnceLock::new(),
            caches: state.join("cache"),
            objects: objects::directories(checkout, listed, state)?,
            checkout: checkout.clone(),
            answers: answers.clone(),
            listed: if has_submodules { listed.to_vec() } else { Vec::new() },
            state: state.to_owned(),
        })
    }

    /// The files for the tree of a job; with the files and repositories of submodules if the job wants them.
    pub fn source(&self, wants_submodules: bool) -> io::Result<&TreeSource> {
        if !wants_submodules || self.listed.is_empty() {
            return Ok(&self.source);
        }
        let source = self.with_submodules.get_or_init(|| {
            let mut source = TreeSource::new(&self.checkout, &self.listed, &self.answers)?;
            source.add_submodules(&self.listed, &self.state)?;
            Ok(source)
        });
        source.as_ref().map_err(|why| io::Error::other(why.clone()))
    }
}
