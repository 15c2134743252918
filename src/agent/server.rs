//! The server of a runner: GitLab or a manager.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::coordinator::JobId;
use crate::coordinator::gitlab::{ApiError, GitLab, Registration};
use crate::coordinator::manager::ManagerClient;
use crate::coordinator::manager::protocol::Offer;
use crate::coordinator::source::{AcceptOutcome, JobRequest, JobSource, PollOutcome, PollResponse};
use crate::token::Token;

/// Creates the client of a manager. Errors: the URL or a certificate file is not usable.
pub type MakeManager = Box<dyn Fn() -> Result<ManagerClient, String> + Send + Sync>;

/// The server of a runner.
pub struct RunnerServer {
    /// The client for a GitLab at this URL.
    pub gitlab: Arc<GitLab>,
    manager: OnceLock<Arc<ManagerClient>>,
    make: MakeManager,
    kind: ServerKind,
}

/// What the configuration of a runner says about its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// The first response shows whether the server is GitLab or a manager.
    Unknown,
    /// The runner has no executor of its own, so its server is a manager, which sends an executor with each job.
    Manager,
}

impl RunnerServer {
    /// The server of a runner that has not polled yet.
    pub fn new(gitlab: Arc<GitLab>, make: MakeManager, kind: ServerKind) -> Self {
        Self { gitlab, manager: OnceLock::new(), make, kind }
    }

    /// The client of the manager; `None` until a response has shown that the server is a manager.
    pub fn manager(&self) -> Option<&Arc<ManagerClient>> {
        self.manager.get()
    }

    fn source(&self) -> &dyn JobSource {
        match self.manager.get() {
            Some(manager) => manager,
            None => &*self.gitlab,
        }
    }

    /// Creates the client of the manager, unless it exists. Errors: the URL or a certificate file is not usable.
    pub fn become_manager(&self) -> Result<(), String> {
        if self.manager.get().is_none() {
            let made = (self.make)()?;
            log::info!("the server is a mayfly manager url={}", made.url());
            let _ = self.manager.set(Arc::new(made));
        }
        Ok(())
    }
}

impl JobSource for RunnerServer {
    fn request_job(&self, request: &JobRequest<'_>) -> PollResponse {
        let misconfigured = |why| PollResponse {
            outcome: PollOutcome::Misconfigured(why),
            server_overloaded: false,
            wait: Duration::ZERO,
        };
        if self.kind == ServerKind::Manager
            && let Err(why) = self.become_manager()
        {
            return misconfigured(why);
        }
        let polled = self.source().request_job(request);
        if !matches!(polled.outcome, PollOutcome::IsManager) {
            return polled;
        }
        match self.become_manager() {
            Ok(()) => self.source().request_job(request),
            Err(why) => misconfigured(why),
        }
    }

    fn accept(&self, job: &JobId, offer: &Offer) -> AcceptOutcome {
        self.source().accept(job, offer)
    }

    fn unregister(&self, token: &Token, system_id: &str, timeout: Duration) -> Result<(), ApiError> {
        // An earlier agent may have registered with the manager, so this one unregisters even if it never polled.
        if self.kind == ServerKind::Manager {
            self.become_manager().map_err(ApiError::Unreachable)?;
        }
        self.source().unregister(token, system_id, timeout)
    }

    fn reset_token(&self, token: &Token) -> Result<Registration, ApiError> {
        self.source().reset_token(token)
    }

    fn stop_waiting(&self) {
        self.gitlab.stop_waiting();
        if let Some(manager) = self.manager.get() {
            manager.stop_waiting();
        }
    }

    fn silence(&self) -> Option<Duration> {
        match self.manager.get() {
            // The agent has not sent its first request, so the manager is not silent.
            None if self.kind == ServerKind::Manager => Some(Duration::ZERO),
            _ => self.source().silence(),
        }
    }

    fn abandon_polls(&self) -> bool {
        self.source().abandon_polls()
    }
}
