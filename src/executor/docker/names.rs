//! Names and labels of a job's containers, networks and volumes: gitlab-runner's, which other tools use, and mayfly's
//! own, by which the agent finds objects of its jobs.

use std::collections::BTreeMap;

use crate::executor::ConcurrentIds;
use crate::payload::Payload;

/// The prefix of gitlab-runner's labels.
const GITLAB_RUNNER_PREFIX: &str = "com.gitlab.gitlab-runner";
/// The label with the id of the machine.
pub const INSTANCE: &str = "io.mayfly.instance";
/// The label with the agent's state directory: a machine may run several agents.
pub const STATE: &str = "io.mayfly.state";
/// The label that identifies the run of the agent process that took the job.
pub const AGENT_RUN: &str = "io.mayfly.life";
/// The label with the job id and its start time: different servers may use the same id.
pub const JOB: &str = "io.mayfly.job";
/// The label of a container whose anonymous volumes are kept (`volume_keep`).
pub const VOLUME_KEEP: &str = "io.mayfly.volume-keep";
/// The label of a volume with caches for later jobs, with the agent's state directory.
pub const CACHE_OF: &str = "io.mayfly.cache-of";
/// The label of objects that are removed with the job.
pub const TEMPORARY: &str = "io.mayfly.temporary";

/// The longest prefix of a container's name before its unique part, in characters.
const MAX_PREFIX_LENGTH: usize = 63;

/// The owner of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerOwner {
    /// See [`INSTANCE`].
    pub instance: String,
    /// See [`STATE`].
    pub state: String,
    /// See [`AGENT_RUN`].
    pub agent_run: String,
}

/// The job that an object belongs to.
pub struct JobNames<'a> {
    pub payload: &'a Payload,
    pub concurrent: ConcurrentIds,
    /// See [`JOB`].
    pub job: &'a str,
    /// The runner's short token.
    pub runner: &'a str,
    /// The machine's `system_id`.
    pub system_id: &'a str,
}

impl JobNames<'_> {
    /// The host name of the job's containers, and the prefix of all names.
    pub fn host_name(&self) -> String {
        let project = self.payload.job_info.project_id;
        let name = format!("runner-{}-project-{project}-concurrent-{}", self.runner, self.concurrent.of_project);
        let name = name.to_ascii_lowercase();
        name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(MAX_PREFIX_LENGTH).collect()
    }

    /// The prefix of the names of this job's containers: unique to the job, and the same for every agent that resumes
    /// the job.
    pub fn prefix(&self, owner: &ContainerOwner) -> String {
        let unique = digest(&format!("{}\0{}\0{}", self.job, owner.instance, owner.state));
        format!("{}-{}", self.host_name(), &unique[..16])
    }

    /// The labels of an object of the job; `kind` is `build`, `cache`, …
    pub fn labels(&self, owner: &ContainerOwner, kind: &str) -> BTreeMap<String, String> {
        let (git, job) = (&self.payload.git_info, &self.payload.job_info);
        let variable = |key: &str| {
            let found = self.payload.variables.iter().rev().find(|variable| variable.key == key);
            found.map(|variable| variable.value.clone()).unwrap_or_default()
        };
        let theirs = [
            ("managed", "true".to_owned()),
            ("type", kind.to_owned()),
            ("job.id", self.payload.id.to_string()),
            ("job.url", variable("CI_JOB_URL")),
            ("job.sha", git.sha.clone()),
            ("job.before_sha", git.before_sha.clone()),
            ("job.ref", git.reference.clone()),
            ("job.timeout", format!("{}s", self.payload.timeout_seconds())),
            ("project.id", job.project_id.to_string()),
            ("project.runner_id", self.concurrent.of_project.to_string()),
            ("pipeline.id", variable("CI_PIPELINE_ID")),
            ("runner.id", self.runner.to_owned()),
            ("runner.local_id", self.concurrent.of_runner.to_string()),
            ("runner.system_id", self.system_id.to_owned()),
        ];
        let ours = [
            (INSTANCE, owner.instance.clone()),
            (STATE, owner.state.clone()),
            (AGENT_RUN, owner.agent_run.clone()),
            (JOB, self.job.to_owned()),
        ];
        let theirs = theirs.into_iter().map(|(key, value)| (format!("{GITLAB_RUNNER_PREFIX}.{key}"), value));
        crate::ordered::map(theirs.chain(ours.map(|(key, value)| (key.to_owned(), value))))
    }
}

/// A short identifier for a text: hexadecimal digits of its SHA-256.
pub fn digest(text: &str) -> String {
    crate::digest::sha256(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_to_a_job_and_stable() {
        let mut payload = Payload { id: 7.into(), ..Payload::default() };
        payload.job_info.project_id = 9;
        let owner = ContainerOwner { instance: "i-1".into(), state: "/s".into(), agent_run: "1".into() };
        let of = |job: &str, state: &str| {
            let concurrent = ConcurrentIds { of_runner: 0, of_project: 2 };
            let facts = JobNames { payload: &payload, concurrent, job, runner: "Abc_D-1", system_id: "s_1" };
            facts.prefix(&ContainerOwner { state: state.into(), ..owner.clone() })
        };
        let name = of("7-1", "/s");
        assert!(name.starts_with("runner-abcd-1-project-9-concurrent-2-"), "{name}");
        assert_eq!(name, of("7-1", "/s"));
        assert!(name != of("7-2", "/s") && name != of("7-1", "/t"));
    }
}
