//! Turns jobs as written into the jobs of a pipeline: expands `parallel`.

use std::collections::HashSet;
use std::sync::Arc;

use super::configuration::{Configuration, MAX_JOB_NAME_LENGTH};
use super::context::Context;
use super::draft::Draft;
use super::draft::parallel::{Combination, Parallel, combination_name, combinations};
use super::hash::{Index, Map};
use super::plan::{Need, ParallelIndex, Variable, VariableLevel};
use super::problem::Class;
use super::suggest::did_you_mean;
use super::syntax::Origin;

/// One job of the pipeline. A draft with `parallel` gives several.
#[derive(Debug)]
pub struct ExpandedJob {
    /// The full name, such as `build 1/3`.
    pub name: Arc<str>,
    /// The index of its draft.
    pub draft: usize,
    /// The position of the job among the jobs of a `parallel`.
    pub instance: Option<ParallelIndex>,
    /// The matrix values of the job.
    pub combination: Combination,
    /// The needs of the job, unless a rule overrides them.
    pub needs: Option<Vec<Need>>,
    pub dependencies: Option<Vec<Arc<str>>>,
}

/// All jobs that the configuration defines.
#[derive(Debug)]
pub struct ExpandedJobs<'d> {
    pub drafts: &'d [Draft],
    /// By full name, in the order of the file.
    pub all: Index<Arc<str>, ExpandedJob>,
    /// Full names by the name in the file.
    groups: Map<Arc<str>, Vec<Arc<str>>>,
    /// Names of jobs with reported problems; later checks skip them.
    pub broken: &'d HashSet<Arc<str>>,
    /// The index of each stage.
    pub stages: Map<Arc<str>, usize>,
}

impl<'d> ExpandedJobs<'d> {
    /// Expands `parallel`.
    pub fn new(configuration: &'d Configuration, context: &mut Context<'_>) -> Self {
        let drafts = &configuration.drafts;
        let stages = configuration.stages.iter().enumerate().map(|(index, name)| (Arc::clone(name), index)).collect();
        let mut jobs = Self {
            drafts,
            all: Index::with_capacity_and_hasher(drafts.len(), Default::default()),
            groups: Map::with_capacity_and_hasher(drafts.len(), Default::default()),
            broken: &configuration.broken,
            stages,
        };
        for (index, draft) in drafts.iter().enumerate() {
            jobs.add(index, draft, context);
        }
        jobs
    }

    fn add(&mut self, index: usize, draft: &Draft, context: &mut Context<'_>) {
        let group = &draft.job.name;
        let mut names = Vec::new();
        for job in expand(index, draft) {
            if job.name.chars().count() > MAX_JOB_NAME_LENGTH {
                let message =
                    format!("the name is longer than {MAX_JOB_NAME_LENGTH} characters after `parallel` is expanded");
                context.error(Class::JobName, draft.job.at, Some(group), message);
                continue;
            }
            names.push(Arc::clone(&job.name));
            self.all.insert(Arc::clone(&job.name), job);
        }
        self.groups.insert(Arc::clone(group), names);
    }

    pub fn draft(&self, job: &ExpandedJob) -> &'d Draft {
        &self.drafts[job.draft]
    }

    /// The index of the job's stage.
    pub fn stage(&self, job: &ExpandedJob) -> usize {
        self.stages.get(&self.draft(job).job.stage).copied().unwrap_or(usize::MAX)
    }

    /// The full names that a name stands for: all jobs of a `parallel`, or one of them.
    pub fn full_names(&self, name: &str) -> Option<Vec<Arc<str>>> {
        let group = self.groups.get(name).cloned();
        group.or_else(|| self.all.get_key_value(name).map(|(name, _)| vec![Arc::clone(name)]))
    }

    /// The suggestion for a message about an unknown job name.
    pub fn name_hint(&self, name: &str) -> String {
        let names: Vec<&str> = self.groups.keys().map(|name| &**name).collect();
        did_you_mean(name, &names)
    }
}

/// The jobs of a draft, which has this index.
fn expand(index: usize, draft: &Draft) -> Vec<ExpandedJob> {
    let group = &draft.job.name;
    let job = |name: Arc<str>, instance, combination| ExpandedJob {
        name,
        draft: index,
        instance,
        combination,
        needs: None,
        dependencies: None,
    };
    match &draft.parallel {
        None => vec![job(Arc::clone(group), None, vec![])],
        Some(Parallel::Count(total)) => {
            let instances = (1..=*total).map(|index| ParallelIndex { index, total: *total });
            let name = |instance: ParallelIndex| format!("{group} {}/{total}", instance.index).into();
            instances.map(|instance| job(name(instance), Some(instance), vec![])).collect()
        }
        Some(Parallel::Matrix(matrix)) => {
            let combinations = combinations(matrix);
            let total = combinations.len();
            let numbered = combinations.into_iter().zip(1..);
            let expanded = numbered.map(|(combination, index)| {
                let name = combination_name(group, &combination).into();
                job(name, Some(ParallelIndex { index, total }), combination)
            });
            expanded.collect()
        }
    }
}

/// Matrix values as variables.
pub fn matrix_variables(combination: &Combination, at: Origin) -> Vec<Variable> {
    let variable = |(key, value): &(Arc<str>, Arc<str>)| Variable {
        key: Arc::clone(key),
        value: Arc::clone(value),
        raw: false,
        at,
        level: VariableLevel::Matrix,
    };
    combination.iter().map(variable).collect()
}
