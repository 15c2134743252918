//! Turns jobs as written into the jobs of a pipeline: expands `parallel`, then resolves `needs` and `dependencies` to
//! full names.

use std::collections::HashSet;
use std::sync::Arc;

use super::context::Context;
use super::draft::Draft;
use super::draft::needs::{Needs, WrittenNeed};
use super::draft::parallel::{Combination, Matrix, Parallel, combination_name, combinations};
use super::hash::{Index, Map, Set};
use super::plan::{Need, ParallelIndex, Trigger, Variable};
use super::problem::Class;
use super::suggest::did_you_mean;
use super::syntax::Origin;

/// The number of jobs that one job may need, as on GitLab.
const MAX_NEEDS: usize = 50;

/// The longest job name, as on GitLab.
const MAX_NAME_LENGTH: usize = 255;

/// One job of the pipeline. A draft with `parallel` gives several.
#[derive(Debug)]
pub struct Expanded {
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
    pub all: Index<Arc<str>, Expanded>,
    /// Full names by the name in the file.
    groups: Map<Arc<str>, Vec<Arc<str>>>,
    /// Names of jobs with reported problems; later checks skip them.
    pub broken: HashSet<Arc<str>>,
    /// The index of each stage.
    pub stages: Map<Arc<str>, usize>,
}

impl<'d> ExpandedJobs<'d> {
    /// Expands `parallel`.
    pub fn new(drafts: &'d [Draft], broken: HashSet<Arc<str>>, stages: &[Arc<str>], context: &mut Context<'_>) -> Self {
        let stages = stages.iter().enumerate().map(|(index, name)| (Arc::clone(name), index)).collect();
        let mut jobs = Self {
            drafts,
            all: Index::with_capacity_and_hasher(drafts.len(), Default::default()),
            groups: Map::with_capacity_and_hasher(drafts.len(), Default::default()),
            broken,
            stages,
        };
        for (index, draft) in drafts.iter().enumerate() {
            jobs.add(index, draft, context);
        }
        jobs
    }

    fn add(&mut self, index: usize, draft: &Draft, context: &mut Context<'_>) {
        let group = &draft.job.name;
        let single = |name: Arc<str>, instance, combination| Expanded {
            name,
            draft: index,
            instance,
            combination,
            needs: None,
            dependencies: None,
        };
        let expanded: Vec<Expanded> = match &draft.parallel {
            None => vec![single(Arc::clone(group), None, vec![])],
            Some(Parallel::Count(total)) => (1..=*total)
                .map(|index| {
                    single(
                        format!("{group} {index}/{total}").into(),
                        Some(ParallelIndex { index, total: *total }),
                        vec![],
                    )
                })
                .collect(),
            Some(Parallel::Matrix(matrix)) => {
                let combinations = combinations(matrix);
                let total = combinations.len();
                let numbered = combinations.into_iter().zip(1..);
                numbered
                    .map(|(combination, index)| {
                        let name = combination_name(group, &combination).into();
                        single(name, Some(ParallelIndex { index, total }), combination)
                    })
                    .collect()
            }
        };
        let mut names = Vec::with_capacity(expanded.len());
        for job in expanded {
            if job.name.chars().count() > MAX_NAME_LENGTH {
                let message =
                    format!("the name is longer than {MAX_NAME_LENGTH} characters after `parallel` is expanded");
                context.error(Class::JobName, draft.job.at, Some(group), message);
                continue;
            }
            names.push(Arc::clone(&job.name));
            self.all.insert(Arc::clone(&job.name), job);
        }
        self.groups.insert(Arc::clone(group), names);
    }

    pub fn draft(&self, job: &Expanded) -> &'d Draft {
        &self.drafts[job.draft]
    }

    /// The index of the job's stage.
    pub fn stage(&self, job: &Expanded) -> usize {
        self.stages.get(&self.draft(job).job.stage).copied().unwrap_or(usize::MAX)
    }

    /// The full names that a name stands for: all permutations of a job in the file, or one of them.
    fn full_names(&self, name: &str) -> Option<Vec<Arc<str>>> {
        let group = self.groups.get(name).cloned();
        group.or_else(|| self.all.get_key_value(name).map(|(name, _)| vec![Arc::clone(name)]))
    }

    fn hint(&self, name: &str) -> String {
        let names: Vec<&str> = self.groups.keys().map(|name| &**name).collect();
        did_you_mean(name, &names)
    }

    /// Resolves and checks the needs and dependencies of all jobs as written, including needs in rules.
    pub fn resolve(&mut self, context: &mut Context<'_>) {
        let mut resolved = Vec::with_capacity(self.all.len());
        for job in self.all.values() {
            let draft = self.draft(job);
            let needs = draft.needs.as_ref().and_then(|needs| self.needs(job, needs, context));
            for rule in draft.rules.iter().flat_map(|rules| rules.iter()) {
                if let Some(needs) = &rule.needs {
                    self.needs(job, needs, context);
                }
            }
            resolved.push((needs, self.dependencies(job, context)));
        }
        self.check_trigger_artifacts(context);
        for (job, (needs, dependencies)) in self.all.values_mut().zip(resolved) {
            job.needs = needs;
            job.dependencies = dependencies;
        }
    }

    /// Resolves needs to full names. `None`: the job runs in stage order, or there is a reported problem.
    pub fn needs(&self, job: &Expanded, needs: &Needs, context: &mut Context<'_>) -> Option<Vec<Need>> {
        if needs.only_other_pipelines {
            return None;
        }
        let group = &self.draft(job).job.name;
        let mut out: Vec<Need> = Vec::with_capacity(needs.jobs.len());
        for need in &needs.jobs {
            let Some(names) = self.names_of(job, need, context)? else { continue };
            for name in names {
                if out.iter().any(|present| present.job == name) {
                    let message = format!("`needs` names `{}` twice", need.job);
                    context.error(Class::NeedsDuplicate, need.at, Some(group), message);
                    return None;
                }
                let later = self.all.get(&name).is_some_and(|needed| self.stage(needed) > self.stage(job));
                if later {
                    let stage = &self.draft(&self.all[&name]).job.stage;
                    let message = format!(
                        "`needs` names `{name}`, whose stage `{stage}` comes after the job's own stage `{}`",
                        self.draft(job).job.stage
                    );
                    context.error(Class::NeedsLaterStage, need.at, Some(group), message);
                    return None;
                }
                out.push(Need { job: name, artifacts: need.artifacts, optional: need.optional });
            }
        }
        if out.len() > MAX_NEEDS {
            let message = format!("`needs` names {} jobs; up to {MAX_NEEDS} are allowed", out.len());
            context.error(Class::NeedsLimit, needs.jobs[0].at, Some(group), message);
            return None;
        }
        Some(out)
    }

    /// The full names of a need. Outer `None`: there is a problem, which is already reported. Inner `None`: an optional
    /// need that does not exist.
    fn names_of(&self, job: &Expanded, need: &WrittenNeed, context: &mut Context<'_>) -> Option<Option<Vec<Arc<str>>>> {
        let group = &self.draft(job).job.name;
        if self.broken.contains(&need.job) {
            return Some(None);
        }
        let Some(names) = self.full_names(&need.job) else {
            if need.optional {
                return Some(None);
            }
            let message = format!("`needs` names `{}`, which does not exist{}", need.job, self.hint(&need.job));
            context.error(Class::NeedsUnknown, need.at, Some(group), message);
            return None;
        };
        let Some(matrix) = &need.matrix else { return Some(Some(names)) };
        let matrix = match filled(matrix, &job.combination) {
            Ok(matrix) => matrix,
            Err(name) => {
                let message = format!("`needs`: `$[[ matrix.{name} ]]` is not a value of the job's own matrix");
                context.error(Class::NeedsUnknown, need.at, Some(group), message);
                return None;
            }
        };
        let mut chosen = Vec::new();
        for combination in combinations(&matrix) {
            let name: Arc<str> = combination_name(&need.job, &combination).into();
            if !names.contains(&name) && need.optional {
                continue;
            }
            if !names.contains(&name) {
                let message = format!("`needs` names `{name}`, which is not among the jobs of `{}`", need.job);
                context.error(Class::NeedsUnknown, need.at, Some(group), message);
                return None;
            }
            chosen.push(name);
        }
        Some(Some(chosen))
    }

    /// Checks that the jobs whose artifacts trigger jobs include exist, in the same stage or an earlier one.
    fn check_trigger_artifacts(&self, context: &mut Context<'_>) {
        for draft in self.drafts {
            let Some(Trigger::Child { include, .. }) = &draft.job.trigger else { continue };
            let stage_of = |draft: &Draft| self.stages.get(&draft.job.stage).copied();
            for (name, at) in include.list().unwrap_or_default().iter().filter_map(|item| {
                let job = item.get("artifact").and(item.get("job"))?;
                Some((job.text()?, job.at))
            }) {
                let producer = self.full_names(name).and_then(|names| self.all.get(names.first()?));
                let (class, why) = match producer {
                    None if self.broken.contains(name) => continue,
                    None => (Class::DependenciesUnknown, format!("which does not exist{}", self.hint(name))),
                    Some(producer) if stage_of(self.draft(producer)) > stage_of(draft) => {
                        (Class::DependenciesLaterStage, "whose stage comes after the job's own".to_owned())
                    }
                    Some(_) => continue,
                };
                let message = format!("`trigger:include:job` names `{name}`, {why}");
                context.error(class, at, Some(&draft.job.name), message);
            }
        }
    }

    fn dependencies(&self, job: &Expanded, context: &mut Context<'_>) -> Option<Vec<Arc<str>>> {
        let draft = self.draft(job);
        let group = &draft.job.name;
        let written = draft.dependencies.as_ref()?;
        let needed: Option<Set<Arc<str>>> =
            // As on GitLab, the artifacts of any job are available to a job with `needs: []`.
            draft.needs.as_ref().filter(|needs| !needs.jobs.is_empty()).map(|needs| {
                let names = needs.jobs.iter().flat_map(|need| self.full_names(&need.job).unwrap_or_default());
                names.collect()
            });
        let mut out = Vec::with_capacity(written.len());
        for (name, at) in written {
            if self.broken.contains(name) {
                continue;
            }
            let Some(names) = self.full_names(name) else {
                let message = format!("`dependencies` names `{name}`, which does not exist{}", self.hint(name));
                context.error(Class::DependenciesUnknown, *at, Some(group), message);
                continue;
            };
            if self.all.get(&names[0]).is_some_and(|producer| self.stage(producer) > self.stage(job)) {
                let message = format!("`dependencies` names `{name}`, whose stage comes after the job's own");
                context.error(Class::DependenciesLaterStage, *at, Some(group), message);
                continue;
            }
            if needed.as_ref().is_some_and(|needed| !names.iter().all(|name| needed.contains(name))) {
                let message = format!("`dependencies` names `{name}`, which is not in the job's `needs`");
                context.error(Class::DependenciesNotNeeded, *at, Some(group), message);
                continue;
            }
            out.extend(names);
        }
        Some(out)
    }
}

/// Replaces `$[[ matrix.NAME ]]` in a matrix by the values of the consuming job. The error is an unknown `NAME`.
fn filled(matrix: &Matrix, combination: &Combination) -> Result<Matrix, String> {
    let fill = |value: &Arc<str>| {
        let mut out = String::new();
        let mut rest: &str = value;
        while let Some((before, after)) = rest.split_once("$[[") {
            let Some((block, after)) = after.split_once("]]") else { break };
            let name = block.trim().strip_prefix("matrix.").unwrap_or(block.trim());
            let value = combination.iter().find(|(key, _)| &**key == name).ok_or_else(|| name.to_owned())?;
            out.push_str(before);
            out.push_str(&value.1);
            rest = after;
        }
        Ok::<Arc<str>, String>((out + rest).into())
    };
    let row = |row: &Vec<(Arc<str>, Vec<Arc<str>>)>| {
        let pairs = row.iter().map(|(key, values)| {
            let values: Result<Vec<Arc<str>>, String> = values.iter().map(fill).collect();
            values.map(|values| (Arc::clone(key), values))
        });
        pairs.collect()
    };
    matrix.iter().map(row).collect()
}

/// Returns a cycle among needs, if one exists.
pub fn cycle(needs: &Index<Arc<str>, Vec<Arc<str>>>) -> Option<Vec<Arc<str>>> {
    // Iterative, because a chain of needs can be as long as the pipeline.
    let mut done: Set<&str> = Set::with_capacity_and_hasher(needs.len(), Default::default());
    let mut on_path: Set<&str> = Set::default();
    for start in needs.keys() {
        let mut path: Vec<(&Arc<str>, usize)> = vec![(start, 0)];
        while let Some((name, next)) = path.last().copied() {
            if next == 0 && !done.insert(name) {
                path.pop();
                continue;
            }
            on_path.insert(name);
            match needs.get(name).and_then(|names| names.get(next)) {
                Some(needed) => {
                    if let Some(last) = path.last_mut() {
                        last.1 += 1;
                    }
                    if on_path.contains(&**needed) {
                        let from = path.iter().position(|(step, _)| *step == needed).unwrap_or(0);
                        return Some(path[from..].iter().map(|(step, _)| Arc::clone(step)).collect());
                    }
                    if !done.contains(&**needed) {
                        path.push((needed, 0));
                    }
                }
                None => {
                    on_path.remove(&**name);
                    path.pop();
                }
            }
        }
    }
    None
}

/// Matrix values as variables.
pub fn matrix_variables(combination: &Combination, at: Origin) -> Vec<Variable> {
    let variable = |(key, value): &(Arc<str>, Arc<str>)| Variable {
        key: Arc::clone(key),
        value: Arc::clone(value),
        raw: false,
        at,
        level: super::plan::VariableLevel::Matrix,
    };
    combination.iter().map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cycles_in_long_chains() {
        let chain = |length: usize, last: usize| -> Index<Arc<str>, Vec<Arc<str>>> {
            let target = |n: usize| if n + 1 < length { n + 1 } else { last };
            (0..length).map(|n| (n.to_string().into(), vec![target(n).to_string().into()])).collect()
        };
        assert_eq!(cycle(&chain(50_000, 60_000)), None);
        let found = cycle(&chain(50_000, 49_998)).expect("a cycle");
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), ["49998", "49999"]);
        let own: Index<Arc<str>, Vec<Arc<str>>> = Index::from_iter([("a".into(), vec!["a".into()])]);
        assert_eq!(cycle(&own).map(|path| path.len()), Some(1));
        let diamond: Index<Arc<str>, Vec<Arc<str>>> = Index::from_iter([
            ("d".into(), vec!["b".into(), "c".into()]),
            ("b".into(), vec!["a".into()]),
            ("c".into(), vec!["a".into()]),
        ]);
        assert_eq!(cycle(&diamond), None);
    }
}
