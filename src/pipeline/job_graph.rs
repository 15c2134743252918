//! The links between jobs: resolves `needs` and `dependencies` to full names, and checks the names in `needs`,
//! `dependencies`, `trigger:include` and `environment:on_stop`.

use std::sync::Arc;

use super::context::Context;
use super::draft::Draft;
use super::draft::needs::{Needs, WrittenNeed};
use super::draft::parallel::{Combination, Matrix, combination_name, combinations};
use super::expand::{ExpandedJob, ExpandedJobs};
use super::hash::{Index, Set};
use super::plan::{Job, Need, Trigger};
use super::problem::Class;
use super::syntax::Origin;

/// The number of jobs that one job may need, as on GitLab.
const MAX_NEEDS: usize = 50;

impl ExpandedJobs<'_> {
    /// Resolves and checks the needs and dependencies of all jobs as written, including needs in rules.
    pub fn resolve(&mut self, context: &mut Context<'_>) {
        let mut resolved = Vec::with_capacity(self.all.len());
        for job in self.all.values() {
            let draft = self.draft(job);
            let needs = draft.needs.as_ref().and_then(|needs| self.resolve_needs(job, needs, context));
            for rule in draft.rules.iter().flat_map(|rules| rules.iter()) {
                if let Some(needs) = &rule.needs {
                    self.resolve_needs(job, needs, context);
                }
            }
            resolved.push((needs, self.resolve_dependencies(job, context)));
        }
        self.check_trigger_artifacts(context);
        for (job, (needs, dependencies)) in self.all.values_mut().zip(resolved) {
            job.needs = needs;
            job.dependencies = dependencies;
        }
    }

    /// Resolves needs to full names. `None`: the job runs in stage order, or there is a reported problem.
    pub fn resolve_needs(&self, job: &ExpandedJob, needs: &Needs, context: &mut Context<'_>) -> Option<Vec<Need>> {
        if needs.only_other_pipelines {
            return None;
        }
        let group = &self.draft(job).job.name;
        let mut out: Vec<Need> = Vec::with_capacity(needs.jobs.len());
        for need in &needs.jobs {
            for name in self.names_of_need(job, need, context)? {
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

    /// The full names of a need; empty for an optional need that does not exist. `None`: there is a problem, which is
    /// already reported.
    fn names_of_need(&self, job: &ExpandedJob, need: &WrittenNeed, context: &mut Context<'_>) -> Option<Vec<Arc<str>>> {
        let group = &self.draft(job).job.name;
        if self.broken.contains(&need.job) {
            return Some(Vec::new());
        }
        let Some(names) = self.full_names(&need.job) else {
            if need.optional {
                return Some(Vec::new());
            }
            let message = format!("`needs` names `{}`, which does not exist{}", need.job, self.name_hint(&need.job));
            context.error(Class::NeedsUnknown, need.at, Some(group), message);
            return None;
        };
        let Some(matrix) = &need.matrix else { return Some(names) };
        let matrix = match fill_matrix(matrix, &job.combination) {
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
        Some(chosen)
    }

    /// Checks each `trigger:include:artifact`: the job that produces the artifact must exist, and its stage must not
    /// come after the stage of the trigger job.
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
                    None => (Class::DependenciesUnknown, format!("which does not exist{}", self.name_hint(name))),
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

    /// Resolves `dependencies` to full names. Names with a problem are reported and left out.
    fn resolve_dependencies(&self, job: &ExpandedJob, context: &mut Context<'_>) -> Option<Vec<Arc<str>>> {
        let draft = self.draft(job);
        let group = &draft.job.name;
        let written = draft.dependencies.as_ref()?;
        let needed: Option<Set<Arc<str>>> =
            // As on GitLab, a job with `needs: []` can download the artifacts of any job.
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
                let message = format!("`dependencies` names `{name}`, which does not exist{}", self.name_hint(name));
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
fn fill_matrix(matrix: &Matrix, combination: &Combination) -> Result<Matrix, String> {
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

/// The names of the jobs in a cycle of needs, if there is one.
fn find_cycle(needs: &Index<Arc<str>, Vec<Arc<str>>>) -> Option<Vec<Arc<str>>> {
    // A chain of needs can be as long as the pipeline, so a recursive search could exhaust the stack.
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

/// Checks that the pipeline contains the needed jobs, drops optional needs that it lacks, and checks for cycles.
pub fn settle_needs(present: &mut [Job], jobs: &ExpandedJobs<'_>, context: &mut Context<'_>) {
    let names: Set<Arc<str>> = present.iter().map(|job| Arc::clone(&job.name)).collect();
    for job in present.iter_mut() {
        let Some(mut needs) = job.needs.take() else { continue };
        let missing = needs.iter().find(|need| !need.optional && !names.contains(&need.job));
        if let Some(missing) = missing.filter(|missing| jobs.all.contains_key(&missing.job)) {
            let message = format!(
                "`needs` names `{}`, which rules exclude from this pipeline; \
                 make the need `optional: true`, or give both jobs the same rules",
                missing.job
            );
            let at = position_of_need(jobs, job, &missing.job);
            context.error(Class::NeedsExcluded, at, Some(&job.group), message);
        }
        needs.retain(|need| names.contains(&need.job));
        job.needs = Some(needs);
    }
    let graph: Index<Arc<str>, Vec<Arc<str>>> = present
        .iter()
        .filter_map(|job| Some((Arc::clone(&job.name), job.needs.as_ref()?)))
        .map(|(name, needs)| (name, needs.iter().map(|need: &Need| Arc::clone(&need.job)).collect()))
        .collect();
    if let Some(cycle) = find_cycle(&graph) {
        let names: Vec<&str> = cycle.iter().chain(cycle.first()).map(|name| &**name).collect();
        let job = &jobs.draft(&jobs.all[&cycle[0]]).job;
        let message = format!("`needs` form a cycle: {}", names.join(" needs "));
        context.error(Class::NeedsCycle, position_of_need(jobs, job, ""), Some(&job.name), message);
    }
}

/// The position of the name of a need; the position of the `needs` keyword if the name comes from a `parallel`.
fn position_of_need(jobs: &ExpandedJobs<'_>, job: &Job, name: &str) -> Origin {
    let draft = jobs.all.get(&job.name).map(|expanded| jobs.draft(expanded));
    let needs = draft.and_then(|draft| draft.needs.as_ref());
    let at = needs.and_then(|needs| {
        let exact = needs.jobs.iter().find(|need| &*need.job == name);
        exact.or(needs.jobs.first()).map(|need| need.at)
    });
    at.unwrap_or(job.at)
}

/// Checks that the job of `environment:on_stop` exists and has `action: stop`.
pub fn check_on_stop(jobs: &ExpandedJobs<'_>, context: &mut Context<'_>) {
    for draft in jobs.drafts {
        let Some(on_stop) = draft.environment.as_ref().and_then(|node| node.get("on_stop")) else { continue };
        let name = on_stop.printed().unwrap_or_default();
        let target = jobs.drafts.iter().find(|draft| draft.job.name == name);
        let value = |draft: &Draft, key: &str| draft.environment.as_ref().and_then(|node| node.get(key)).cloned();
        let why = match target {
            None if jobs.broken.contains(&name) => continue,
            None => "does not exist",
            Some(target) if value(target, "name") != value(draft, "name") => "does not have the same `environment`",
            Some(target) if value(target, "action").and_then(|action| action.printed()).as_deref() != Some("stop") => {
                "has no `environment:action: stop`"
            }
            Some(_) => continue,
        };
        let message = format!("`environment:on_stop` names `{name}`, which {why}");
        context.error(Class::OnStop, on_stop.at, Some(&draft.job.name), message);
    }
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
        assert_eq!(find_cycle(&chain(50_000, 60_000)), None);
        let found = find_cycle(&chain(50_000, 49_998)).expect("a cycle");
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), ["49998", "49999"]);
        let own: Index<Arc<str>, Vec<Arc<str>>> = Index::from_iter([("a".into(), vec!["a".into()])]);
        assert_eq!(find_cycle(&own).map(|path| path.len()), Some(1));
        let diamond: Index<Arc<str>, Vec<Arc<str>>> = Index::from_iter([
            ("d".into(), vec!["b".into(), "c".into()]),
            ("b".into(), vec!["a".into()]),
            ("c".into(), vec!["a".into()]),
        ]);
        assert_eq!(find_cycle(&diamond), None);
    }
}
