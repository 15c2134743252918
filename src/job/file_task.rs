//! File work of a job that the agent's program does itself, in a child of a shim and with the job user's rights.

use serde::{Deserialize, Serialize};

use super::sources::environment::PROXIES;
use super::{artifacts, cache, sources};
use crate::decode;
use crate::executor::docker::prepared::PreparedContainer;
use crate::executor::docker::{prepare, script};
use crate::failure::JobError;
use crate::shim::spec::{NetworkAccess, TaskResult};

/// Host and port that a URL means.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let origin = crate::http::origin(url);
    let (scheme, authority) = origin.split_once("://").unwrap_or(("http", &origin));
    let usual = match scheme {
        "https" => 443,
        "ssh" => 22,
        _ => 80,
    };
    let (host, port) = match authority.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']')) {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, usual),
    };
    let host = host.trim_matches(['[', ']']);
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FileTask {
    /// Bring the sources into the project directory.
    Sources(sources::SourcesPlan),
    /// Take away what the job left in the project directory.
    CleanUp(sources::SourcesPlan),
    /// Unpack what caches hold.
    RestoreCache(cache::RestorePlan),
    /// Fetch what other jobs made.
    DownloadArtifacts(artifacts::DownloadPlan),
    /// Keep files for later jobs.
    SaveCache(cache::SavePlan),
    /// Hand files to GitLab.
    UploadArtifacts(artifacts::UploadPlan),
    /// Get a container ready.
    PrepareContainer(Box<prepare::PrepareTask>),
    /// Run a script in it.
    ContainerScript(Box<script::ContainerScript>),
}

/// What is to be told of work beside its exit status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TaskReport {
    /// Whose fault it is that it failed.
    Failed(JobError),
    /// The container that is ready.
    Prepared(Box<PreparedContainer>),
    /// Bytes of artifacts that GitLab accepted.
    Uploaded(u64),
}

impl TaskReport {
    /// The text that [`TaskReport::parse`] reads; empty where there can be none.
    fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The report of work that has ended; `None` where there is none.
    pub fn parse(text: &str) -> Option<Self> {
        decode::json(text.as_bytes()).ok()
    }
}

impl FileTask {
    /// How confined work reaches servers; `None` where it needs none. `servers`: URLs of the configuration.
    pub fn network(&self, servers: &[&str]) -> Option<NetworkAccess> {
        let own: Vec<&str> = match self {
            Self::Sources(plan) => match plan.strategy {
                sources::Strategy::Clone | sources::Strategy::Fetch => vec![plan.url.as_str()],
                sources::Strategy::None | sources::Strategy::Empty => return None,
            },
            Self::CleanUp(_) => return None,
            Self::RestoreCache(plan) => plan.remotes().map(|remote| remote.get.as_str()).collect(),
            Self::SaveCache(plan) => plan.remotes().map(|remote| remote.put.as_str()).collect(),
            Self::DownloadArtifacts(_) | Self::UploadArtifacts(_) => Vec::new(),
            Self::PrepareContainer(_) | Self::ContainerScript(_) => return None,
        };
        if own.is_empty() && matches!(self, Self::RestoreCache(_) | Self::SaveCache(_)) {
            return None;
        }
        // The agent's own requests take the proxies of its environment by themselves; they are the operator's.
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

    /// Whether the programs that the work starts meet files that a container has made, for whomever it ran as.
    pub fn reuses_files(&self) -> bool {
        match self {
            Self::Sources(plan) => plan.strategy == sources::Strategy::Fetch,
            Self::CleanUp(_) => true,
            _ => false,
        }
    }

    /// The form in which a shim hands it on.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// Does a plan in its written form. A panic of the agent's own code is not blamed on the job.
pub fn run(plan: &str) -> TaskResult {
    std::panic::catch_unwind(|| run_plan(plan)).unwrap_or_else(|_| {
        let why = "the agent's own work for this job panicked; report this as a bug of mayfly";
        result_with_report(Err(JobError::system(why)))
    })
}

fn run_plan(plan: &str) -> TaskResult {
    let code = match decode::json(plan.as_bytes()) {
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
        Ok(FileTask::ContainerScript(plan)) => return result_with_report(script::run(&plan).map(|()| None)),
        Err(error) => {
            eprintln!("the plan of this step cannot be read: {error}");
            1
        }
    };
    TaskResult { code, report: String::new() }
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
            eprintln!("the outcome of this step cannot be told: {error}");
            TaskResult { code: 1, report: String::new() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_means_one_port_of_one_host() {
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
