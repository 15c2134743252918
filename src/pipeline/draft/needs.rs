//! Reads the keywords `needs` and `dependencies`, as written.

use std::sync::Arc;

use super::parallel::Matrix;
use super::reader::KeywordReader;
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Node, Origin};

/// The maximum length of a name in `needs`, in characters. As on GitLab, a job may have a longer name.
const MAX_NAME_LENGTH: usize = 128;

const NEED_KEYS: [&str; 7] = ["job", "artifacts", "optional", "parallel", "project", "ref", "pipeline"];

/// The maximum length of a project's path in characters, as on GitLab.
const MAX_PATH_LENGTH: usize = 1024;

/// Keyword `needs`.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub jobs: Vec<WrittenNeed>,
    /// All needs refer to jobs of other pipelines.
    pub only_other_pipelines: bool,
}

/// A need as written: its name can stand for several jobs.
#[derive(Clone, Debug)]
pub struct WrittenNeed {
    /// A job name in the file, or the full name of one job of a `parallel`.
    pub job: Arc<str>,
    /// Whether the job downloads the artifacts of the needed job.
    pub artifacts: bool,
    /// Whether the pipeline may lack the needed job.
    pub optional: bool,
    /// The jobs of a matrix that this need selects.
    pub matrix: Option<Matrix>,
    pub at: Origin,
}

/// A name and its position.
pub type WrittenName = (Arc<str>, Origin);

impl KeywordReader<'_, '_> {
    /// Reads `needs`. `keyword` is used in messages.
    pub fn needs(&mut self, node: &Node, keyword: &str) -> Option<Needs> {
        if node.list().is_none() && node.mapping().is_none() {
            return self.bad_value(node, keyword, "a list of jobs");
        }
        let items = self.context.flatten(node, keyword, self.job)?;
        let mut needs = Needs::default();
        for item in &items {
            if let Some(name) = item.text().or_else(|| item.get("job").and_then(Node::text)) {
                self.check_length(item, keyword, name, MAX_NAME_LENGTH)?;
            }
            if let Some(job) = item.text() {
                let job = Arc::clone(job);
                needs.jobs.push(WrittenNeed { job, artifacts: true, optional: false, matrix: None, at: item.at });
                continue;
            }
            self.check_mapping(item, keyword, &NEED_KEYS)?;
            if item.get("project").is_some() || item.get("pipeline").is_some() {
                self.skip_other_pipeline(item, keyword)?;
                continue;
            }
            needs.jobs.push(self.need(item, keyword)?);
        }
        needs.only_other_pipelines = !items.is_empty() && needs.jobs.is_empty();
        Some(needs)
    }

    /// Checks a need of another pipeline or project, and warns that a local run ignores it.
    fn skip_other_pipeline(&mut self, item: &Node, keyword: &str) -> Option<()> {
        if item.get("project").is_some() && item.get("job").is_none() {
            return self.error(Class::BadValue, item.at, format!("`{keyword}:project` needs `job`"));
        }
        for key in ["project", "pipeline"] {
            if let Some(value) = item.get(key) {
                self.short_text(value, &format!("{keyword}:{key}"), MAX_PATH_LENGTH)?;
            }
        }
        let message = format!("`{keyword}`: a local run has no jobs of other pipelines and projects; ignored");
        self.context.report.warn(item.at, self.job, message);
        Some(())
    }

    fn need(&mut self, item: &Node, keyword: &str) -> Option<WrittenNeed> {
        let Some(job) = item.get("job") else {
            let message = format!("an entry of `{keyword}` must contain `job`");
            return self.error(Class::BadValue, item.at, message);
        };
        let job = self.text(job, &format!("{keyword}:job"))?;
        let mut flag = |key: &str, default: bool| match item.get(key) {
            Some(value) => self.boolean(value, &format!("{keyword}:{key}")),
            None => Some(default),
        };
        let artifacts = flag("artifacts", true)?;
        let optional = flag("optional", false)?;
        let matrix = match item.get("parallel") {
            None => None,
            Some(parallel) => {
                let keyword_path = format!("{keyword}:parallel");
                self.check_mapping(parallel, &keyword_path, &["matrix"])?;
                match parallel.get("matrix") {
                    Some(matrix) => Some(self.matrix(matrix, &format!("{keyword_path}:matrix"))?),
                    None => return self.missing_key(parallel, &keyword_path, "`matrix`"),
                }
            }
        };
        Some(WrittenNeed { job, artifacts, optional, matrix, at: item.at })
    }

    /// Reads `dependencies`: names with their positions.
    pub fn dependencies(&mut self, node: &Node) -> Option<Vec<WrittenName>> {
        let names = self.flat_texts(node, "dependencies")?;
        Some(names.into_iter().zip(node.list()?.iter().map(|item| item.at)).collect())
    }
}
