//! File tasks: work on a job's files by the agent's own program, in a child of a shim and with the permissions of the
//! job's user.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::sources::environment::PROXIES;
use super::task_report::TaskReport;
use super::{artifacts, cache, sources};
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
    /// Remove everything in a directory of jobs that have ended.
    EmptyDirectory(PathBuf),
    /// Remove a directory of jobs that have ended, and the files beside it.
    RemoveBelow { root: PathBuf, below: PathBuf },
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

    /// Runs the task.
    pub fn run(&self) -> TaskResult {
        let code = match self {
            Self::Sources(plan) => sources::run(plan),
            Self::CleanUp(plan) => sources::clean_up(plan),
            Self::RestoreCache(plan) => cache::restore(plan),
            Self::DownloadArtifacts(plan) => artifacts::download(plan),
            Self::SaveCache(plan) => cache::save(plan),
            Self::UploadArtifacts(plan) => {
                let (code, bytes) = artifacts::upload(plan);
                return TaskResult { code, report: TaskReport::Uploaded(bytes).to_text() };
            }
            Self::EmptyDirectory(directory) => removal_status(sources::remove::empty(directory)),
            Self::RemoveBelow { root, below } => removal_status(sources::remove::remove_below(root, below)),
        };
        TaskResult { code, report: String::new() }
    }
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
