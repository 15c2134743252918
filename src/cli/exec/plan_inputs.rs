//! The input for planning: the state of the checkout and the values from the command line.

use std::path::Path;
use std::thread;

use super::args::ExecArgs;
use super::values;
use crate::local::checkout::{self, Checkout, FileSet, ListedFile};
use crate::local::facts::{self, RepositoryFacts};
use crate::local::sources::{Fetcher, LocalSources, SourcePlaces};
use crate::local::state;
use crate::pipeline::request::{CommitFacts, ConfigurationStart, PipelineSource, PlanRequest, UnknownKeywords};

/// The state of the checkout, from git.
pub struct GitState {
    repository_facts: RepositoryFacts,
    /// The tracked files; `None`: they are listed when they are needed.
    listed: Option<Vec<ListedFile>>,
}

impl GitState {
    /// The state without the list of files.
    pub fn read(directory: &Path) -> Result<Self, String> {
        Ok(Self { repository_facts: RepositoryFacts::read(directory)?, listed: None })
    }

    /// The state and the tracked files, both at the same time.
    pub fn read_with_files(directory: &Path) -> Result<Self, String> {
        let (repository_facts, listed) = thread::scope(|scope| {
            let listed = scope.spawn(|| checkout::list(directory, FileSet::Tracked));
            let repository_facts = RepositoryFacts::read(directory);
            let died = |_| Err("internal error: the thread that lists files panicked".to_owned());
            (repository_facts, listed.join().unwrap_or_else(died))
        });
        Ok(Self { repository_facts: repository_facts?, listed: Some(listed?) })
    }
}

/// The input for planning, from the command line.
pub struct PlanInputs {
    pub repository_facts: RepositoryFacts,
    /// The files of the work tree; `None` if no job will run.
    pub listed: Option<Vec<ListedFile>>,
    pub facts: CommitFacts,
}

impl PlanInputs {
    pub fn new(options: &ExecArgs, checkout: &Checkout, git: GitState, pipeline_id: u64) -> Result<Self, String> {
        let GitState { repository_facts, listed } = git;
        let listed = match (options.view().is_some(), options.file_set()) {
            (true, _) => None,
            (false, FileSet::Tracked) if listed.is_some() => listed,
            (false, set) => Some(checkout.files(set)?),
        };
        let facts = repository_facts.commit_facts(checkout, &values::requested_pipeline(options)?, pipeline_id)?;
        Ok(Self { repository_facts, listed, facts })
    }

    /// The files that the configuration can include. `scratch` is a directory for unpacked artifacts.
    pub fn sources(&self, options: &ExecArgs, checkout: &Checkout, scratch: &Path) -> Result<LocalSources, String> {
        let sources = LocalSources::new(SourcePlaces {
            checkout: checkout.clone(),
            commit: self.facts.sha.clone(),
            project: facts::project_path(&self.facts),
            file_set: options.file_set(),
            maps: values::maps(options)?,
            fetcher: self.fetcher(options)?,
            scratch: scratch.to_owned(),
        });
        Ok(match &self.listed {
            Some(files) => sources.with_listing(files),
            None => sources,
        })
    }

    /// The fetcher for includes from other servers.
    pub fn fetcher(&self, options: &ExecArgs) -> Result<Fetcher, String> {
        Ok(Fetcher {
            cache: state::cache_of_includes()?,
            origin: self.facts.remote.clone(),
            is_offline: options.offline,
        })
    }

    /// The request for the plan of the pipeline.
    pub fn request<'a>(
        &self,
        options: &ExecArgs,
        checkout: &Checkout,
        sources: &'a LocalSources,
    ) -> Result<PlanRequest<'a>, String> {
        let merge_request = self.repository_facts.merge_request(checkout, &values::requested_pipeline(options)?);
        let default_source = if merge_request.is_some() { "merge_request_event" } else { "push" };
        Ok(PlanRequest {
            start: ConfigurationStart::File(options.file.clone()),
            source: PipelineSource {
                name: options.source.clone().unwrap_or_else(|| default_source.to_owned()),
                merge_request,
            },
            facts: self.facts.clone(),
            pipeline_variables: values::pipeline_variables(options)?,
            project_variables: values::project_variables(options)?,
            predefined: Vec::new(),
            inputs: values::inputs(options)?,
            unknown_keywords: if options.lax { UnknownKeywords::AreWarnings } else { UnknownKeywords::AreErrors },
            explains: options.explain.is_some(),
            sources,
        })
    }
}
