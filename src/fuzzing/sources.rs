//! Targets for pipeline configurations, planned without any other file.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use crate::pipeline::listing::Listing;
use crate::pipeline::request::{
    Base, CommitFacts, ComponentVersion, ConfigurationStart, PipelineSource, PlanRequest, SourceError, SourceTree,
    Sources, UnknownKeywords,
};
use crate::pipeline::{self, JobRun};

/// The maximum size of a file. Larger files only take longer.
const MAX_INPUT_SIZE: usize = 64 << 10;

/// Plans the input as a `.gitlab-ci.yml`.
pub fn pipeline(text: &[u8]) {
    if text.len() > MAX_INPUT_SIZE {
        return;
    }
    let sources = FixedFiles(BTreeMap::from([
        (".gitlab-ci.yml", text.to_vec()),
        ("base.yml", b".base: {script: x, variables: {A: a}}\n".to_vec()),
    ]));
    match pipeline::plan(&sources.request()) {
        Ok(plan) => {
            let listing = Listing { plan: &plan, run: &|_, _| JobRun::default() };
            assert!(serde_json::to_string(&listing).is_ok());
        }
        Err(problems) => assert!(!problems.is_empty(), "there is no plan, and nothing is wrong"),
    }
}

/// Evaluates an expression of `rules:if` and a pattern of `rules:exists`.
pub fn rules(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let file = json!({
        "a": {"script": "x", "rules": [{"if": text}]},
        "b": {"script": "x", "rules": [{"exists": [text]}, {"changes": [text], "when": "manual"}]},
    });
    pipeline(file.to_string().as_bytes());
}

/// A project that consists only of these files.
struct FixedFiles(BTreeMap<&'static str, Vec<u8>>);

impl FixedFiles {
    fn request(&self) -> PlanRequest<'_> {
        PlanRequest {
            start: ConfigurationStart::File(".gitlab-ci.yml".to_owned()),
            source: PipelineSource { name: "push".to_owned(), merge_request: None },
            facts: CommitFacts {
                sha: "0123456789abcdef0123456789abcdef01234567".to_owned(),
                branch: Some("main".to_owned()),
                default_branch: "main".to_owned(),
                before: Some("89abcdef0123456789abcdef0123456789abcdef".to_owned()),
                pipeline_id: 1,
                ..CommitFacts::default()
            },
            pipeline_variables: vec![],
            project_variables: vec![],
            predefined: vec![("A".to_owned(), "a/b".to_owned())],
            inputs: vec![],
            unknown_keywords: UnknownKeywords::AreErrors,
            explains: true,
            sources: self,
        }
    }
}

fn missing<T>() -> Result<T, SourceError> {
    Err(SourceError::Missing("there is none".to_owned()))
}

impl Sources for FixedFiles {
    fn read(&self, _tree: &SourceTree, path: &str) -> Result<Vec<u8>, SourceError> {
        self.0.get(path).cloned().map_or_else(missing, Ok)
    }

    fn files(&self, _tree: &SourceTree) -> Result<Arc<Vec<String>>, SourceError> {
        let files = self.0.keys().copied().chain(["src/a/b/c.rs", "docs/read me.md"]);
        Ok(Arc::new(files.map(str::to_owned).collect()))
    }

    fn project(&self, _project: &str, _reference: Option<&str>) -> Result<SourceTree, SourceError> {
        Ok(SourceTree::Project)
    }

    fn remote(&self, _url: &str) -> Result<Vec<u8>, SourceError> {
        missing()
    }

    fn template(&self, _name: &str) -> Result<Vec<u8>, SourceError> {
        missing()
    }

    fn component(&self, _host: &str, _project: &str, _reference: &str) -> Result<ComponentVersion, SourceError> {
        missing()
    }

    fn artifact(&self, _job: &str, _path: &str) -> Result<Vec<u8>, SourceError> {
        missing()
    }

    fn changed(&self, _base: &Base) -> Result<Arc<Vec<String>>, SourceError> {
        self.files(&SourceTree::Project)
    }

    fn content_id(&self, path: &str) -> Result<Option<String>, SourceError> {
        Ok(self.0.contains_key(path).then(|| "1234".to_owned()))
    }

    fn last_commit(&self, path: &str) -> Result<Option<String>, SourceError> {
        self.content_id(path)
    }
}
