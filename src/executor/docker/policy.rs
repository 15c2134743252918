//! Selects the pull policies for an image, and classifies failed pulls.

use crate::config::docker::{DockerConfig, PullPolicy};
use crate::failure::{FailureReason, JobError};

/// The policies for an image that requests `wanted`, in the order of attempts. Fails if a requested policy does not
/// exist, or if the configuration allows none of them.
pub fn policies_for_image(wanted: &[String], docker: &DockerConfig) -> Result<Vec<PullPolicy>, JobError> {
    let (requested, source) = match wanted.is_empty() {
        true => (docker.default_policies(), "of the runner (`pull_policy`)"),
        false => {
            let parsed: Result<Vec<PullPolicy>, String> = wanted.iter().map(|text| text.parse()).collect();
            (parsed.map_err(JobError::configuration)?, "of the job (`pull_policy`)")
        }
    };
    let permitted = docker.permitted_policies();
    let left: Vec<PullPolicy> = requested.iter().copied().filter(|policy| permitted.contains(policy)).collect();
    if left.is_empty() {
        return Err(JobError::configuration(format!(
            "no pull policy is left: {source} is {}, and the runner allows {}: choose one of these, or add to \
             `allowed_pull_policies` below [runners.docker]",
            policy_list(&requested),
            policy_list(&permitted)
        )));
    }
    Ok(left)
}

/// `[always if-not-present]`
pub fn policy_list(policies: &[PullPolicy]) -> String {
    let words: Vec<&str> = policies.iter().map(|policy| policy.as_str()).collect();
    format!("[{}]", words.join(" "))
}

/// The cause of a failed pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// The registry cannot be reached; another attempt may succeed.
    Network,
    /// The registry does not have the image or denies access.
    Refused,
    /// The image does not exist for this platform.
    Platform,
    /// Another cause.
    Other,
}

/// Whether a pull sent a login to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryAccess {
    Anonymous,
    LoggedIn,
}

/// Parts of the engine's messages for network failures (gitlab-runner uses the same).
const NETWORK_MESSAGES: [&str; 10] = [
    "dial tcp",
    "connection refused",
    "no such host",
    "i/o timeout",
    "tls handshake",
    "client.timeout exceeded",
    "request canceled",
    "connection reset",
    "unexpected eof",
    "toomanyrequests",
];
/// Parts of the engine's messages if the registry refuses the image.
const REFUSED_MESSAGES: [&str; 8] = [
    "not found",
    "manifest unknown",
    "pull access denied",
    "access to the resource is denied",
    "no basic auth credentials",
    "repository does not exist or may require",
    "unauthorized",
    "authentication required",
];
const PLATFORM_MESSAGES: [&str; 2] = ["no matching manifest", "no match for platform"];

impl PullFailure {
    /// The cause according to the engine's message: the engine returns status 500 for most causes.
    pub fn classify(message: &str) -> Self {
        let text = message.to_ascii_lowercase();
        let contains_any = |words: &[&str]| words.iter().any(|word| text.contains(word));
        match () {
            () if contains_any(&PLATFORM_MESSAGES) => Self::Platform,
            () if contains_any(&NETWORK_MESSAGES) => Self::Network,
            () if contains_any(&REFUSED_MESSAGES) => Self::Refused,
            () => Self::Other,
        }
    }

    /// The error of the job. Its text says what to do.
    pub fn error(self, message: &str, login: RegistryAccess) -> JobError {
        let reason = match self {
            Self::Network => FailureReason::RunnerExternalDependencyFailure,
            Self::Refused => FailureReason::RunnerConfigurationError,
            Self::Platform | Self::Other => FailureReason::ImagePullFailure,
        };
        let advice = match (self, login) {
            (Self::Network, _) => "the container engine cannot reach the registry; check its network, proxy and DNS",
            (Self::Refused, RegistryAccess::LoggedIn) => {
                "check the name and the tag of the image, and the permissions of the login"
            }
            (Self::Refused, RegistryAccess::Anonymous) => {
                "check the name and the tag of the image; if it is private, give a login with DOCKER_AUTH_CONFIG or in \
                 the agent's ~/.docker/config.json"
            }
            (Self::Platform, _) => "the image does not exist for this platform; choose another image or `platform`",
            (Self::Other, _) => "see the container engine's log (journalctl -u docker)",
        };
        JobError::new(reason, format!("{}: {advice}", message.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PullPolicy::{Always, IfNotPresent, Never};

    fn docker(own: &[PullPolicy], allowed: &[PullPolicy]) -> DockerConfig {
        DockerConfig { pull_policy: own.to_vec(), allowed_pull_policies: allowed.to_vec(), ..DockerConfig::default() }
    }

    fn selected(wanted: &[&str], docker: &DockerConfig) -> Result<Vec<PullPolicy>, String> {
        let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
        policies_for_image(&wanted, docker).map_err(|error| {
            assert_eq!(error.reason, FailureReason::RunnerConfigurationError);
            error.message
        })
    }

    #[test]
    fn a_policy_of_the_job_is_used_even_if_the_default_is_not_allowed() {
        let text = "pull_policy = \"always\"\nallowed_pull_policies = [\"never\", \"if-not-present\"]";
        let docker: DockerConfig = toml::from_str(text).expect("a table");
        assert!(super::super::create::check(&docker).is_ok(), "jobs are not failed for the runner's default");
        assert_eq!(policies_for_image(&["never".to_owned()], &docker).expect("a policy"), [PullPolicy::Never]);
        let error = policies_for_image(&[], &docker).expect_err("must be refused").message;
        assert!(error.contains("the runner allows [never if-not-present]"), "{error}");
    }

    #[test]
    fn the_requested_policy_must_be_allowed() {
        assert_eq!(selected(&[], &docker(&[], &[])), Ok(vec![Always]));
        assert_eq!(selected(&[], &docker(&[Never, Always], &[])), Ok(vec![Never, Always]));
        assert_eq!(selected(&["if-not-present"], &docker(&[], &[Never, IfNotPresent])), Ok(vec![IfNotPresent]));
        let both = ["always", "never"];
        assert_eq!(selected(&both, &docker(&[], &[Never])), Ok(vec![Never]), "the rest of the list");
        let error = selected(&["never"], &docker(&[], &[])).expect_err("must be refused");
        assert!(error.contains("of the job") && error.contains("[never]") && error.contains("[always]"), "{error}");
        let error = selected(&[], &docker(&[Always], &[Never])).expect_err("must be refused");
        assert!(error.contains("of the runner"), "{error}");
        assert!(selected(&["sometimes"], &docker(&[], &[])).expect_err("must be refused").contains("`sometimes`"));
    }

    /// Messages of engines 20.10 to 28.
    #[test]
    fn classifies_causes_by_the_engines_message() {
        for (text, cause) in [
            ("Get \"https://r.test/v2/\": dial tcp: lookup r.test: no such host", PullFailure::Network),
            ("Get \"https://r.test/v2/\": net/http: TLS handshake timeout", PullFailure::Network),
            (
                "error pulling image configuration: download failed after attempts=6: unexpected EOF",
                PullFailure::Network,
            ),
            ("toomanyrequests: You have reached your pull rate limit", PullFailure::Network),
            ("manifest for r.test/a:9 not found: manifest unknown: manifest unknown", PullFailure::Refused),
            ("Head \"https://r.test/v2/a/manifests/1\": no basic auth credentials", PullFailure::Refused),
            ("unauthorized: authentication required", PullFailure::Refused),
            ("pull access denied for a, repository does not exist or may require 'docker login'", PullFailure::Refused),
            ("no matching manifest for linux/arm64/v8 in the manifest list entries: not found", PullFailure::Platform),
            ("write /var/lib/docker/tmp/x: no space left on device", PullFailure::Other),
        ] {
            assert_eq!(PullFailure::classify(text), cause, "{text}");
        }
    }

    #[test]
    fn a_failure_says_what_to_do() {
        let error = PullFailure::Refused.error("no basic auth credentials", RegistryAccess::Anonymous);
        assert!(error.message.contains("DOCKER_AUTH_CONFIG"), "{error}");
        assert_eq!(
            PullFailure::Network.error("x", RegistryAccess::LoggedIn).reason,
            FailureReason::RunnerExternalDependencyFailure
        );
        assert_eq!(PullFailure::Other.error("x", RegistryAccess::LoggedIn).reason, FailureReason::ImagePullFailure);
    }
}
