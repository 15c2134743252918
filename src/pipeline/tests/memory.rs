//! An in-memory implementation of `Sources`, for tests that need no repository.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::pipeline::request::{
    Base, CommitFacts, ComponentVersion, ConfigurationStart, PipelineSource, PlanRequest, SourceError, SourceTree,
    Sources, UnknownKeywords,
};

/// Trees by name; the empty name is the project.
#[derive(Default)]
pub struct Memory {
    pub files: BTreeMap<String, Vec<u8>>,
    pub changed: Option<Vec<String>>,
}

impl Memory {
    pub fn new(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
        Self { files, changed: None }
    }

    /// The request for a push to the default branch.
    pub fn request(&self) -> PlanRequest<'_> {
        PlanRequest {
            start: ConfigurationStart::File(".gitlab-ci.yml".to_owned()),
            source: PipelineSource { name: "push".to_owned(), merge_request: None },
            facts: CommitFacts {
                sha: "0123456789abcdef0123456789abcdef01234567".to_owned(),
                branch: Some("main".to_owned()),
                default_branch: "main".to_owned(),
                remote: Some("https://git.example.test/team/app.git".to_owned()),
                pipeline_id: 1,
                ..CommitFacts::default()
            },
            pipeline_variables: vec![],
            project_variables: vec![],
            predefined: vec![],
            inputs: vec![],
            unknown_keywords: UnknownKeywords::AreErrors,
            explains: true,
            sources: self,
        }
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, SourceError> {
        self.files.get(path).cloned().ok_or_else(|| SourceError::Missing("no such file".to_owned()))
    }
}

impl Sources for Memory {
    fn read(&self, tree: &SourceTree, path: &str) -> Result<Vec<u8>, SourceError> {
        match tree {
            SourceTree::Project => self.get(path),
            SourceTree::Commit { project, sha } => self.get(&format!("{project}@{sha}/{path}")),
        }
    }

    fn files(&self, _tree: &SourceTree) -> Result<Arc<Vec<String>>, SourceError> {
        Ok(Arc::new(self.files.keys().cloned().collect()))
    }

    fn project(&self, project: &str, reference: Option<&str>) -> Result<SourceTree, SourceError> {
        Ok(SourceTree::Commit { project: project.into(), sha: reference.unwrap_or("HEAD").into() })
    }

    fn remote(&self, url: &str) -> Result<Vec<u8>, SourceError> {
        self.get(url)
    }

    fn template(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        self.get(&format!("template:{name}"))
    }

    fn component(&self, _host: &str, project: &str, reference: &str) -> Result<ComponentVersion, SourceError> {
        let tree = self.project(project, Some(reference))?;
        Ok(ComponentVersion { tree, sha: "c0ffee".to_owned(), version: "1.2.3".to_owned() })
    }

    fn artifact(&self, job: &str, path: &str) -> Result<Vec<u8>, SourceError> {
        self.get(&format!("{job}:{path}"))
    }

    fn changed(&self, base: &Base) -> Result<Arc<Vec<String>>, SourceError> {
        match (base, &self.changed) {
            (Base::MergeBase(reference), _) if reference == "no-such-ref" => {
                Err(SourceError::Missing("no such ref".to_owned()))
            }
            (_, changed) => Ok(Arc::new(changed.clone().unwrap_or_default())),
        }
    }

    fn content_id(&self, path: &str) -> Result<Option<String>, SourceError> {
        Ok(self.files.get(path).map(|bytes| format!("{bytes:?}")))
    }

    fn last_commit(&self, path: &str) -> Result<Option<String>, SourceError> {
        Ok(self.files.get(path).map(|_| "abc".to_owned()))
    }
}
