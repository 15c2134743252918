//! Pipelines of other projects (`trigger:project`): run from checkouts that the user maps with `--map-project`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::checkout::{Checkout, FileSet};
use super::facts::{self, RepositoryFacts, RequestedPipeline};
use super::guard;
use super::objects;
use super::project::LocalProject;
use super::sources::{Fetcher, LocalSources, Maps, SourcePlaces};
use super::state;
use crate::pipeline::request::CommitFacts;

/// The mapped projects of a run. Each is opened when a job triggers its pipeline.
pub struct MappedProjects {
    maps: Maps,
    fetcher: Fetcher,
    file_set: FileSet,
    scratch: PathBuf,
    /// In the order of [`Maps::projects`].
    opened: Vec<OnceLock<Result<MappedCheckout, String>>>,
}

/// A checkout of another project.
pub struct MappedCheckout {
    pub project: Arc<LocalProject>,
    pub sources: LocalSources,
    pub facts: CommitFacts,
}

impl MappedProjects {
    /// The projects of `maps`. `scratch` is the directory of the run.
    pub fn new(maps: Maps, fetcher: Fetcher, file_set: FileSet, scratch: &Path) -> Self {
        let opened = maps.projects.iter().map(|_| OnceLock::new()).collect();
        Self { maps, fetcher, file_set, scratch: scratch.to_owned(), opened }
    }

    /// The checkout that `--map-project` names for this project and branch; `None` if no mapping applies. Fails if the
    /// mapped directory is not a usable checkout.
    pub fn checkout(&self, project: &str, branch: Option<&str>) -> Option<Result<&MappedCheckout, String>> {
        let position = self.maps.position(project, branch)?;
        let opened = self.opened[position].get_or_init(|| self.open(&self.maps.projects[position].directory));
        Some(opened.as_ref().map_err(Clone::clone))
    }

    /// The object directories of all mapped checkouts; jobs in containers read them.
    pub fn objects(&self) -> Vec<PathBuf> {
        let objects_of = |directory: &Path| {
            let (checkout, state) = find_checkout(directory)?;
            objects::directories(&checkout, &checkout.files(FileSet::Tracked)?, &state)
        };
        let found = self.maps.projects.iter().filter_map(|mapped| objects_of(&mapped.directory).ok());
        found.flatten().collect()
    }

    fn open(&self, directory: &Path) -> Result<MappedCheckout, String> {
        let (checkout, state) = find_checkout(directory)?;
        let repository_facts = RepositoryFacts::read(&checkout.root)?;
        let listed = checkout.files(self.file_set)?;
        let facts = repository_facts.commit_facts(&checkout, &RequestedPipeline::default(), 1)?;
        self.record_state(&state)?;
        let sources = LocalSources::new(SourcePlaces {
            checkout: checkout.clone(),
            commit: facts.sha.clone(),
            project: facts::project_path(&facts),
            file_set: self.file_set,
            maps: self.maps.clone(),
            fetcher: Fetcher { origin: facts.remote.clone(), ..self.fetcher.clone() },
            scratch: self.scratch.join(format!("mapped-{}", facts.sha)),
        });
        let name = facts::project_name(&facts);
        let project = Arc::new(LocalProject::new(&checkout, &listed, &repository_facts, &name, &state)?);
        Ok(MappedCheckout { project, sources: sources.with_listing(&listed), facts })
    }

    /// Records the state directory for the guard process, which removes the secrets of its trees if this process is
    /// killed.
    fn record_state(&self, state: &Path) -> Result<(), String> {
        let path = self.scratch.join(guard::MAPPED_STATES);
        let written = File::options().create(true).append(true).open(&path);
        let written = written.and_then(|mut file| writeln!(file, "{}", state.display()));
        written.map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The checkout whose top is this directory, and the directory of its state.
fn find_checkout(directory: &Path) -> Result<(Checkout, PathBuf), String> {
    let place = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
    let checkout = Checkout::find(&place).ok().filter(|checkout| checkout.root == place);
    let checkout =
        checkout.ok_or_else(|| format!("{} is not the top directory of a git checkout", directory.display()))?;
    let state = state::project_directory(&checkout.root)?;
    Ok((objects::with_mountable_objects(&checkout, &state)?, state))
}
