//! Provides images: applies pull policies and logins, and retries after network failures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::console::JobConsole;
use super::credentials::{Login, RegistryLogins};
use super::engine::images::{EngineImage, ImageConfig};
use super::engine::{DockerEngine, DockerError};
use super::policy::{self, PullFailure, RegistryAccess};
use super::pulled::UsedImage;
use super::reference::ImageReference;
use super::resolved_image::ResolvedImage;
use crate::backoff::Backoff;
use crate::config::docker::PullPolicy;
use crate::failure::JobError;
use crate::sync;

/// The maximum number of attempts of a pull that cannot reach the registry.
const PULL_ATTEMPTS: u32 = 3;
/// The delay between two attempts of a pull.
const PULL_RETRY: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(10)).with_jitter(0.8);
/// How often a running pull reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(30);

/// An image on the machine.
#[derive(Clone)]
pub struct LocalImage {
    /// The image as containers reference it: by digest or id, because a tag may move meanwhile.
    pub pinned: String,
    /// The defaults for its containers.
    pub config: ImageConfig,
}

/// Provides the images of one job.
pub struct ImageProvider<'a> {
    engine: &'a Arc<DockerEngine>,
    logins: &'a RegistryLogins<'a>,
    console: &'a dyn JobConsole,
    /// Images that were pulled for this job, by name and platform; they are not pulled again.
    provided: RefCell<BTreeMap<(String, String), LocalImage>>,
    /// The images of the job's containers, and whether a pull of this job downloaded them.
    used: RefCell<Vec<UsedImage>>,
}

impl<'a> ImageProvider<'a> {
    pub fn new(engine: &'a Arc<DockerEngine>, logins: &'a RegistryLogins<'a>, console: &'a dyn JobConsole) -> Self {
        Self { engine, logins, console, provided: RefCell::default(), used: RefCell::default() }
    }

    /// The images that were provided so far.
    pub fn used(&self) -> Vec<UsedImage> {
        self.used.borrow().clone()
    }

    /// Provides an image with the first pull policy that succeeds. If none succeeds, returns the error of the last
    /// policy.
    pub fn provide(&self, resolved: &ResolvedImage) -> Result<LocalImage, JobError> {
        let name = &resolved.name;
        let policies = policy::policy_list(&resolved.policies);
        self.console.line(&format!("Using effective pull policy of {policies} for container {name}"));
        let key = (resolved.reference.full(), resolved.platform.clone());
        if let Some(image) = self.provided.borrow().get(&key) {
            return Ok(image.clone());
        }
        // A pull does not download an image that the machine already has; only downloaded images are recorded as
        // pulled.
        let before_pull = self.engine.image(&resolved.reference.full(), platform(resolved)).ok().map(|image| image.id);
        let mut failure = JobError::system(format!("no pull policy applies to `{name}`"));
        for (index, policy) in resolved.policies.iter().enumerate() {
            let word = policy.as_str();
            if index > 0 {
                self.console.warning(&format!(
                    "Failed to pull image with policy \"{}\": {failure}",
                    previous_policy(resolved, index)
                ));
                self.console.line(&format!("Attempt #{}: Trying \"{word}\" pull policy", index + 1));
            }
            match self.try_policy(resolved, *policy)? {
                Ok(image) => {
                    let pulled = before_pull.as_ref().is_none_or(|before| *before != image.id);
                    self.used.borrow_mut().push(UsedImage { id: image.id.clone(), pulled });
                    let obtained = self.report_image(resolved, image);
                    self.provided.borrow_mut().insert(key, obtained.clone());
                    return Ok(obtained);
                }
                Err(error) => failure = error,
            }
        }
        let what = format!("failed to pull image \"{name}\" with policies {policies}: {failure}");
        Err(JobError { message: what, ..failure })
    }

    /// Tries one policy. The outer error means that the job must stop or the engine is unreachable; the inner error
    /// means that the policy failed.
    fn try_policy(
        &self,
        resolved: &ResolvedImage,
        policy: PullPolicy,
    ) -> Result<Result<EngineImage, JobError>, JobError> {
        let is_id = matches!(resolved.reference, ImageReference::Id(_));
        if policy != PullPolicy::Always || is_id {
            match self.engine.image(&resolved.reference.full(), platform(resolved)) {
                Ok(image) => {
                    if policy == PullPolicy::IfNotPresent {
                        self.console.line(&format!(
                            "Using locally found image version due to \"{}\" pull policy",
                            policy.as_str()
                        ));
                    }
                    return Ok(Ok(image));
                }
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(JobError::system(error.to_string())),
            }
        }
        if policy == PullPolicy::Never || is_id {
            let why = "the machine does not have it; load it there, or use another pull policy";
            return Ok(Err(JobError::system(why)));
        }
        self.pull(resolved)
    }

    /// Pulls an image, up to [`PULL_ATTEMPTS`] times if the network fails.
    fn pull(&self, resolved: &ResolvedImage) -> Result<Result<EngineImage, JobError>, JobError> {
        let login = match &resolved.reference {
            ImageReference::Named(name) => self.logins.find(name, &mut |warning| self.console.warning(&warning)),
            ImageReference::Id(_) => None,
        };
        if let Some(login) = &login {
            self.console.line(&format!("Authenticating with credentials from {}", login.source));
        }
        let access = if login.is_some() { RegistryAccess::LoggedIn } else { RegistryAccess::Anonymous };
        let of_platform = platform(resolved).map(|platform| format!(" for platform {platform}")).unwrap_or_default();
        let mut tried = 0;
        loop {
            self.console.line(&format!("Pulling docker image {}{of_platform} ...", resolved.name));
            tried += 1;
            let outcome = self.pull_once(resolved, login.as_ref())?;
            let error = match outcome.and_then(|()| self.engine.image(&resolved.reference.full(), platform(resolved))) {
                Ok(image) => return Ok(Ok(image)),
                Err(error) if error.is_unreachable() => return Err(JobError::system(error.to_string())),
                Err(error) => error.to_string(),
            };
            let cause = PullFailure::classify(&error);
            if cause != PullFailure::Network || tried == PULL_ATTEMPTS {
                return Ok(Err(cause.error(&error, access)));
            }
            let delay = PULL_RETRY.delay(0);
            let text = format!("cannot pull {}: {}; retrying in {} s", resolved.name, error.trim(), delay.as_secs());
            self.console.warning(&text);
            self.console.wait(None, delay)?;
        }
    }

    /// Pulls once, in a separate thread, so that a job that must stop does not wait for the pull. The engine then
    /// finishes the pull, and the next job finds the image. Fails if the job must stop.
    fn pull_once(&self, resolved: &ResolvedImage, login: Option<&Login>) -> Result<Result<(), DockerError>, JobError> {
        let system = |error: io::Error| JobError::system(format!("cannot pull {}: {error}", resolved.name));
        let pulling = Arc::new(PullThread::new().map_err(system)?);
        let (shared, engine) = (Arc::clone(&pulling), Arc::clone(self.engine));
        let (reference, platform) = (resolved.reference.full(), resolved.platform.clone());
        let header = login.map(Login::header);
        let work = move || {
            let platform = Some(platform.as_str()).filter(|platform| !platform.is_empty());
            let header = header.as_ref().map(|header| header.reveal());
            shared.finish(shared.run(&engine, &reference, platform, header));
        };
        sync::spawn("pull", 256 * 1024, work).map_err(system)?;
        loop {
            if self.console.wait(Some(pulling.ended.as_fd()), PROGRESS_INTERVAL)? {
                if let Some(outcome) = pulling.outcome() {
                    return Ok(outcome);
                }
            } else {
                self.console.line(&format!("Still pulling {}: {}", resolved.name, pulling.progress()));
            }
        }
    }

    /// Writes the id and the digest of a provided image to the log.
    fn report_image(&self, resolved: &ResolvedImage, image: EngineImage) -> LocalImage {
        let digest = image.repo_digests.into_iter().find(|digest| is_of_repository(digest, &resolved.reference));
        let with_digest = digest.as_ref().map(|digest| format!(" with digest {digest}")).unwrap_or_default();
        self.console.line(&format!("Using docker image {} for {}{with_digest} ...", image.id, resolved.name));
        LocalImage { pinned: digest.unwrap_or(image.id), config: image.config }
    }
}

/// Whether a digest belongs to the repository of the requested image: one image may have digests in several
/// repositories.
fn is_of_repository(digest: &str, reference: &ImageReference) -> bool {
    match (ImageReference::parse(digest), reference) {
        (Ok(ImageReference::Named(one)), ImageReference::Named(other)) => one.normalized() == other.normalized(),
        _ => false,
    }
}

fn platform(resolved: &ResolvedImage) -> Option<&str> {
    Some(resolved.platform.as_str()).filter(|platform| !platform.is_empty())
}

/// The policy of the previous attempt.
fn previous_policy(resolved: &ResolvedImage, index: usize) -> &'static str {
    resolved.policies.get(index - 1).map_or("", |policy| policy.as_str())
}

/// A pull that runs in a separate thread.
struct PullThread {
    /// Becomes readable when the pull ends.
    ended: EventFd,
    state: Mutex<PullState>,
}

#[derive(Default)]
struct PullState {
    /// The layers, and whether each is complete.
    layers: BTreeMap<String, bool>,
    outcome: Option<Result<(), DockerError>>,
}

impl PullThread {
    fn new() -> io::Result<Self> {
        let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { ended, state: Mutex::default() })
    }

    fn run(
        &self,
        engine: &DockerEngine,
        reference: &str,
        platform: Option<&str>,
        header: Option<&str>,
    ) -> Result<(), DockerError> {
        let mut pull = engine.pull(reference, platform, header)?;
        while let Some(progress) = pull.next_progress()? {
            // Only messages about layers count as progress.
            if let Some(done) = layer_is_done(&progress.status) {
                self.state().layers.insert(progress.id, done);
            }
        }
        Ok(())
    }

    fn finish(&self, outcome: Result<(), DockerError>) {
        self.state().outcome = Some(outcome);
        let _ = self.ended.write(1);
    }

    fn outcome(&self) -> Option<Result<(), DockerError>> {
        self.state().outcome.take()
    }

    fn progress(&self) -> String {
        let state = self.state();
        let done = state.layers.values().filter(|done| **done).count();
        match state.layers.len() {
            0 => "waiting for the registry".to_owned(),
            all => format!("{done} of {all} layers pulled"),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, PullState> {
        sync::lock(&self.state)
    }
}

/// Whether a status means that its layer is complete; `None` if it is not about a layer.
fn layer_is_done(status: &str) -> Option<bool> {
    match status {
        "Pull complete" | "Already exists" => Some(true),
        "Pulling fs layer" | "Waiting" | "Downloading" | "Verifying Checksum" | "Download complete" | "Extracting" => {
            Some(false)
        }
        _ => None,
    }
}
