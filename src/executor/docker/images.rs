//! Getting images onto the machine: by which policy, with which login, again when the network was at fault.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::console::JobConsole;
use super::credentials::{Login, RegistryLogins};
use super::engine::images::{Image, ImageConfig};
use super::engine::{Engine, Error};
use super::policy::{self, PullFailure};
use super::reference::Reference;
use super::resolved_image::ResolvedImage;
use crate::config::docker::PullPolicy;
use crate::failure::JobError;

/// Tries of a pull that fails on the way to the registry.
const PULL_ATTEMPTS: u32 = 3;
/// Between them.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// A pull that goes on says so this often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(30);

/// An image that is here.
#[derive(Clone)]
pub struct LocalImage {
    /// What containers are made of: no tag that may move meanwhile.
    pub pinned: String,
    /// What its containers are by default.
    pub config: ImageConfig,
}

/// Gets the images of one job.
pub struct ImageProvider<'a> {
    engine: &'a Arc<Engine>,
    logins: &'a RegistryLogins<'a>,
    console: &'a dyn JobConsole,
    /// What was pulled for this job, by name and platform: it is not pulled again.
    provided: RefCell<BTreeMap<(String, String), LocalImage>>,
}

impl<'a> ImageProvider<'a> {
    /// Images of an engine, with these logins.
    pub fn new(engine: &'a Arc<Engine>, logins: &'a RegistryLogins<'a>, console: &'a dyn JobConsole) -> Self {
        Self { engine, logins, console, provided: RefCell::default() }
    }

    /// Gets an image by the first of its policies that can. Errors: none can; why the last one could not.
    pub fn provide(&self, resolved: &ResolvedImage) -> Result<LocalImage, JobError> {
        let name = &resolved.name;
        let policies = policy::in_words(&resolved.policies);
        self.console.line(&format!("Using effective pull policy of {policies} for container {name}"));
        let key = (resolved.reference.full(), resolved.platform.clone());
        if let Some(had) = self.provided.borrow().get(&key) {
            return Ok(had.clone());
        }
        let mut failure = JobError::system(format!("there is no pull policy for `{name}`"));
        for (index, policy) in resolved.policies.iter().enumerate() {
            let word = policy.as_str();
            if index > 0 {
                self.console
                    .warning(&format!("Failed to pull image with policy \"{}\": {failure}", before(resolved, index)));
                self.console.line(&format!("Attempt #{}: Trying \"{word}\" pull policy", index + 1));
            }
            match self.by_policy(resolved, *policy)? {
                Ok(image) => {
                    let obtained = self.tell(resolved, image);
                    self.provided.borrow_mut().insert(key, obtained.clone());
                    return Ok(obtained);
                }
                Err(error) => failure = error,
            }
        }
        let what = format!("failed to pull image \"{name}\" with policies {policies}: {failure}");
        Err(JobError { message: what, ..failure })
    }

    /// One try of a policy. Errors: the job is to stop, or the engine is away; inside, the policy does not do.
    fn by_policy(&self, resolved: &ResolvedImage, policy: PullPolicy) -> Result<Result<Image, JobError>, JobError> {
        let is_id = matches!(resolved.reference, Reference::Id(_));
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
            let why = "it is not on this machine: load it there, or let it be pulled by another policy";
            return Ok(Err(JobError::system(why)));
        }
        self.pull(resolved)
    }

    /// Pulls, up to [`PULL_ATTEMPTS`] times where the network is at fault.
    fn pull(&self, resolved: &ResolvedImage) -> Result<Result<Image, JobError>, JobError> {
        let login = match &resolved.reference {
            Reference::Named(name) => self.logins.find(name, &mut |trouble| self.console.warning(&trouble)),
            Reference::Id(_) => None,
        };
        if let Some(login) = &login {
            self.console.line(&format!("Authenticating with credentials from {}", login.source));
        }
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
            let cause = PullFailure::of(&error);
            if cause != PullFailure::Network || tried == PULL_ATTEMPTS {
                return Ok(Err(cause.error(&error, login.is_some())));
            }
            let delay = RETRY_DELAY.0 + (RETRY_DELAY.1 - RETRY_DELAY.0).mul_f64(crate::random::fraction());
            let text = format!("{} is not pulled yet: {}; again in {} s", resolved.name, error.trim(), delay.as_secs());
            self.console.warning(&text);
            self.console.wait(None, delay)?;
        }
    }

    /// One pull, in a thread of its own, so that the end of the job need not wait for it: the engine goes on alone then,
    /// and the next job finds the image. Errors: the job is to stop.
    fn pull_once(&self, resolved: &ResolvedImage, login: Option<&Login>) -> Result<Result<(), Error>, JobError> {
        let system = |error: io::Error| JobError::system(format!("cannot pull {}: {error}", resolved.name));
        let pulling = Arc::new(Pulling::new().map_err(system)?);
        let (shared, engine) = (Arc::clone(&pulling), Arc::clone(self.engine));
        let (reference, platform) = (resolved.reference.full(), resolved.platform.clone());
        let header = login.map(Login::header);
        let work = move || {
            let platform = Some(platform.as_str()).filter(|platform| !platform.is_empty());
            let header = header.as_ref().map(|header| header.reveal());
            shared.finish(shared.run(&engine, &reference, platform, header));
        };
        thread::Builder::new().name("pull".to_owned()).stack_size(256 * 1024).spawn(work).map_err(system)?;
        loop {
            if self.console.wait(Some(pulling.bell.as_fd()), PROGRESS_INTERVAL)? {
                if let Some(outcome) = pulling.outcome() {
                    return Ok(outcome);
                }
            } else {
                self.console.line(&format!("Still pulling {}: {}", resolved.name, pulling.progress()));
            }
        }
    }

    fn tell(&self, resolved: &ResolvedImage, image: Image) -> LocalImage {
        let digest = image.repo_digests.into_iter().find(|digest| is_of(digest, &resolved.reference));
        let with_digest = digest.as_ref().map(|digest| format!(" with digest {digest}")).unwrap_or_default();
        self.console.line(&format!("Using docker image {} for {}{with_digest} ...", image.id, resolved.name));
        LocalImage { pinned: digest.unwrap_or(image.id), config: image.config }
    }
}

/// Whether a digest is one of the image that was asked for: an engine knows an image by all names it ever had.
fn is_of(digest: &str, reference: &Reference) -> bool {
    match (Reference::parse(digest), reference) {
        (Ok(Reference::Named(one)), Reference::Named(other)) => one.normalized() == other.normalized(),
        _ => false,
    }
}

fn platform(resolved: &ResolvedImage) -> Option<&str> {
    Some(resolved.platform.as_str()).filter(|platform| !platform.is_empty())
}

/// The policy that was tried before.
fn before(resolved: &ResolvedImage, index: usize) -> &'static str {
    resolved.policies.get(index - 1).map_or("", |policy| policy.as_str())
}

/// A pull that goes on in its thread.
struct Pulling {
    /// Rings at its end.
    bell: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Layers, and whether they are done.
    layers: BTreeMap<String, bool>,
    outcome: Option<Result<(), Error>>,
}

impl Pulling {
    fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { bell, state: Mutex::default() })
    }

    fn run(&self, engine: &Engine, reference: &str, platform: Option<&str>, header: Option<&str>) -> Result<(), Error> {
        let mut pull = engine.pull(reference, platform, header)?;
        while let Some(progress) = pull.next_progress()? {
            // Lines without a layer, or about the tag itself, are of no interest.
            if let Some(done) = layer_is_done(&progress.status) {
                self.state().layers.insert(progress.id, done);
            }
        }
        Ok(())
    }

    fn finish(&self, outcome: Result<(), Error>) {
        self.state().outcome = Some(outcome);
        let _ = self.bell.write(1);
    }

    fn outcome(&self) -> Option<Result<(), Error>> {
        self.state().outcome.take()
    }

    fn progress(&self) -> String {
        let state = self.state();
        let done = state.layers.values().filter(|done| **done).count();
        match state.layers.len() {
            0 => "the registry has not answered yet".to_owned(),
            all => format!("{done} of {all} layers are here"),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a status says of its layer, if it is about one.
fn layer_is_done(status: &str) -> Option<bool> {
    match status {
        "Pull complete" | "Already exists" => Some(true),
        "Pulling fs layer" | "Waiting" | "Downloading" | "Verifying Checksum" | "Download complete" | "Extracting" => {
            Some(false)
        }
        _ => None,
    }
}
