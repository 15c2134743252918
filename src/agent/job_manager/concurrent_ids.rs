//! Assigns `CI_CONCURRENT_ID` and `CI_CONCURRENT_PROJECT_ID`: the smallest numbers that no running job has.

use std::collections::HashMap;

use crate::executor::ConcurrentIds;
use crate::job::context::RunnerContext;
use crate::payload::Payload;

/// The jobs among which the ids of a job are unique.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdScope {
    /// The short token of the runner.
    runner: String,
    project: i64,
}

impl IdScope {
    /// The scope of a job of this runner.
    pub fn new(context: &RunnerContext, payload: &Payload) -> Self {
        Self { runner: context.runner.token.short(), project: payload.job_info.project_id }
    }
}

/// The ids of the running jobs.
#[derive(Default)]
pub struct ConcurrentIdPool {
    /// The ids in use, by runner.
    of_runners: HashMap<String, Vec<u32>>,
    /// The ids in use, by runner and project.
    of_projects: HashMap<IdScope, Vec<u32>>,
}

impl ConcurrentIdPool {
    /// Assigns the smallest free ids, or the `earlier` ids of a resumed job.
    pub fn assign(&mut self, scope: &IdScope, earlier: Option<ConcurrentIds>) -> ConcurrentIds {
        let take = |used: &mut Vec<u32>, earlier: Option<u32>| {
            let id = earlier.unwrap_or_else(|| (0..).find(|id| !used.contains(id)).unwrap_or(0));
            used.push(id);
            id
        };
        let of_runner = self.of_runners.entry(scope.runner.clone()).or_default();
        let of_project = self.of_projects.entry(scope.clone()).or_default();
        ConcurrentIds {
            of_runner: take(of_runner, earlier.map(|ids| ids.of_runner)),
            of_project: take(of_project, earlier.map(|ids| ids.of_project)),
        }
    }

    /// Releases the ids of a job that has ended.
    pub fn release(&mut self, scope: &IdScope, ids: ConcurrentIds) {
        let of_runner = (self.of_runners.get_mut(&scope.runner), ids.of_runner);
        let of_project = (self.of_projects.get_mut(scope), ids.of_project);
        for (used, id) in [of_runner, of_project] {
            if let Some(used) = used {
                used.retain(|used| *used != id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assigns_the_smallest_free_ids() {
        let mut pool = ConcurrentIdPool::default();
        let scope = |runner: &str, project| IdScope { runner: runner.to_owned(), project };
        let ids = |of_runner, of_project| ConcurrentIds { of_runner, of_project };
        assert_eq!(pool.assign(&scope("a", 1), None), ids(0, 0));
        assert_eq!(pool.assign(&scope("a", 2), None), ids(1, 0));
        assert_eq!(pool.assign(&scope("b", 1), None), ids(0, 0));
        assert_eq!(pool.assign(&scope("a", 1), Some(ids(5, 3))), ids(5, 3), "a resumed job keeps its ids");
        assert_eq!(pool.assign(&scope("a", 1), None), ids(2, 1));
        pool.release(&scope("a", 2), ids(1, 0));
        assert_eq!(pool.assign(&scope("a", 1), None), ids(1, 2));
    }
}
