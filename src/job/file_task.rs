//! File tasks: work on a job's files by the agent's own program, in a child of a shim and with the permissions of the
//! job's user.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::sources::environment::PROXIES;
use super::{artifacts, cache, sources};
use crate::decode;
use crate::executor::docker::prepared::PreparedContainer;
use crate::executor::docker::{prepare, script};
use crate::failure::JobError;
use crate::shim::spec::{NetworkAccess, TaskResult};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FileTask {
    /// Fetch the sources into the project directory.
    Sources(sources::SourcesPlan),
    /// Clean the project directory after the job.
    CleanUp(sources::SourcesPlan),
    /// Restore caches.
    RestoreCache(cache::RestorePlan),
    /// Download artifacts of other jobs.
    DownloadArtifacts(artifacts::DownloadPlan),
    /// Save caches.
    SaveCache(cache::SavePlan),
    /// Upload artifacts.
    UploadArtifacts(artifacts::UploadPlan),
    /// Prepare a container.
    PrepareContainer(Box<prepare::PrepareTask>),
    /// Remove everything in a directory of jobs that have ended.
    EmptyDirectory(PathBuf),
    /// Remove a directory of jobs that have ended, and the files beside it.
    RemoveBelow { root: PathBuf, below: PathBuf },
    /// Run a script in a container.
    ContainerScript(Box<script::ContainerScript>),
}

/// The report of a file task, in addition to its exit status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TaskReport {
    /// The failure with its reason.
    Failed(JobError),
    /// The prepared container.
    Prepared(Box<PreparedContainer>),
    /// Bytes of artifacts that GitLab accepted.
    Uploaded(u64),
}

impl TaskReport {
    /// Serialises the report for [`TaskReport::parse`]; empty if that fails.
    fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses the report of a finished task; `None` if the task wrote no report.
    pub fn parse(text: &str) -> Option<Self> {
        decode::json(text.as_bytes()).ok()
    }
}

impl FileTask {
    /// The servers that the sandbox may reach; `None` if the task needs none. `servers`: URLs from the configuration.
    pub fn network(&self, servers: &[&str]) -> Option<NetworkAccess> {
        let own: Vec<&str> = match self {
            Self::Sources(plan) => match plan.strategy {
                sources::GitStrategy::Clone | sources::GitStrategy::Fetch => vec![plan.url.as_str()],
                sources::GitStrategy::None | sources::GitStrategy::Empty => return None,
            },
            Self::CleanUp(_) | Self::EmptyDirectory(_) | Self::RemoveBelow { .. } => return None,
            Self::RestoreCache(plan) => plan.remotes().map(|remote| remote.get.as_str()).collect(),
            Self::SaveCache(plan) => plan.remotes().map(|remote| remote.put.as_str()).collect(),
            Self::DownloadArtifacts(_) | Self::UploadArtifacts(_) => Vec::new(),
            Self::PrepareContainer(_) | Self::ContainerScript(_) => return None,
        };
        if own.is_empty() && matches!(self, Self::RestoreCache(_) | Self::SaveCache(_)) {
            return None;
        }
        // The agent's own requests use the proxies of its environment, which the operator configured.
        let environment: Vec<(String, String)> =
            PROXIES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
        let of_operator = environment.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("no_proxy"));
        let of_operator: Vec<&str> = of_operator.map(|(_, value)| value.as_str()).collect();
        let allowed = own.iter().chain(servers).chain(&of_operator).filter_map(|url| host_and_port(url)).collect();
        let variables = match self {
            Self::Sources(plan) => plan.environment.as_slice(),
            _ => &[],
        };
        let proxies = variables.iter().filter(|(name, _)| PROXIES.contains(&name.as_str())).cloned().collect();
        Some(NetworkAccess { allowed, proxies })
    }

    /// Whether programs that the task starts can access files that containers created, which may belong to any user.
    pub fn reuses_files(&self) -> bool {
        match self {
            Self::Sources(plan) => plan.strategy == sources::GitStrategy::Fetch,
            Self::CleanUp(_) => true,
            _ => false,
        }
    }

    /// Serialises the task for the shim.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// Runs a serialised task. A panic in the agent's own code is not blamed on the job.
pub fn run(task: &str) -> TaskResult {
    std::panic::catch_unwind(|| run_task(task)).unwrap_or_else(|_| {
        let why = "the agent's file task for this job panicked; report this as a bug of mayfly";
        result_with_report(Err(JobError::system(why)))
    })
}

fn run_task(task: &str) -> TaskResult {
    let code = match decode::json(task.as_bytes()) {
        Ok(FileTask::Sources(plan)) => sources::run(&plan),
        Ok(FileTask::CleanUp(plan)) => sources::clean_up(&plan),
        Ok(FileTask::RestoreCache(plan)) => cache::restore(&plan),
        Ok(FileTask::DownloadArtifacts(plan)) => artifacts::download(&plan),
        Ok(FileTask::SaveCache(plan)) => cache::save(&plan),
        Ok(FileTask::UploadArtifacts(plan)) => {
            let (code, bytes) = artifacts::upload(&plan);
            return TaskResult { code, report: TaskReport::Uploaded(bytes).to_text() };
        }
        Ok(FileTask::PrepareContainer(plan)) => {
            return result_with_report(prepare::run(&plan).map(|made| Some(Box::new(made))));
        }
        Ok(FileTask::EmptyDirectory(directory)) => removal_status(sources::remove::empty(&directory)),
        Ok(FileTask::RemoveBelow { root, below }) => removal_status(sources::remove::remove_below(&root, &below)),
        Ok(FileTask::ContainerScript(plan)) => return result_with_report(script::run(&plan).map(|()| None)),
        Err(error) => {
            eprintln!("cannot read the task of this step: {error}");
            1
        }
    };
    TaskResult { code, report: String::new() }
}

/// The exit status of a removal.
fn removal_status(removed: io::Result<()>) -> i32 {
    match removed {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

fn result_with_report(outcome: Result<Option<Box<PreparedContainer>>, JobError>) -> TaskResult {
    let (code, report) = match outcome {
        Ok(None) => return TaskResult::default(),
        Ok(Some(prepared)) => (0, TaskReport::Prepared(prepared)),
        Err(error) => (1, TaskReport::Failed(error)),
    };
    match serde_json::to_string(&report) {
        Ok(report) => TaskResult { code, report },
        Err(error) => {
            eprintln!("cannot report the result of this step: {error}");
            TaskResult { code: 1, report: String::new() }
        }
    }
}

/// The host and port of a URL.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let origin = crate::http::origin(url);
    let (scheme, authority) = origin.split_once("://").unwrap_or(("http", &origin));
    let default_port = match scheme {
        "https" => 443,
        "ssh" => 22,
        _ => 80,
    };
    let (host, port) = match authority.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']')) {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, default_port),
    };
    let host = host.trim_matches(['[', ']']);
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extracts_host_and_port_of_a_url() {
        for (url, host, port) in [
            ("https://GitLab.test/a/b.git", "gitlab.test", 443),
            ("http://u:p@127.0.0.1:8080/x", "127.0.0.1", 8080),
            ("http://[::1]:81/x", "::1", 81),
            ("https://[::1]/x", "::1", 443),
            ("ssh://git@h/x", "h", 22),
            ("proxy.test:3128", "proxy.test", 3128),
        ] {
            assert_eq!(host_and_port(url), Some((host.to_owned(), port)), "{url}");
        }
        assert_eq!(host_and_port("http://h:99999/"), None);
        assert_eq!(host_and_port(""), None);
    }
}
