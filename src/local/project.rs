//! A checkout whose jobs run here: the files for its trees, and where its trees and caches are.

use std::path::{Path, PathBuf};

use super::checkout::{Checkout, Listed};
use super::facts::Answers;
use super::tree::{TreeSource, Trees};

/// What the jobs of one project share.
pub struct LocalProject {
    /// The last part of the project's path.
    pub name: String,
    /// Clean copies of the checkout.
    pub trees: Trees,
    /// The files that trees are copied from.
    pub source: TreeSource,
    /// The same with the files of submodules, if the project has submodules.
    pub with_submodules: Option<TreeSource>,
    /// The caches of the project.
    pub caches: PathBuf,
    /// The object directory of the developer's repository.
    pub objects: PathBuf,
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
        let source = || TreeSource::new(checkout, listed, answers);
        let has_submodules = listed.iter().any(|file| file.is_submodule);
        let with_submodules = has_submodules.then(|| {
            let mut source = source();
            source.add_submodules(listed).map(|()| source)
        });
        Ok(Self {
            name: name.to_owned(),
            trees: Trees::new(state.join("trees"), name),
            source: source(),
            with_submodules: with_submodules.transpose()?,
            caches: state.join("cache"),
            objects: checkout.objects.clone(),
        })
    }
}
