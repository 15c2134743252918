//! The `security_opt` of a container.

use std::fs;

use crate::decode;
use crate::failure::JobError;

/// Replaces the path of a seccomp profile by its content, because the engine cannot read files of the agent's machine.
/// The error names the profile.
pub fn inline_profiles(options: &[String]) -> Result<Vec<String>, JobError> {
    let inlined = |option: &String| {
        let Some(path) = option.strip_prefix("seccomp=").filter(|profile| !is_built_in(profile)) else {
            return Ok(option.clone());
        };
        let unusable = |why: String| {
            JobError::configuration(format!("`security_opt` below [runners.docker] names the profile {path}: {why}"))
        };
        let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        let profile: Box<serde_json::value::RawValue> =
            decode::json(text.as_bytes()).map_err(|error| unusable(format!("it is not JSON: {error}")))?;
        Ok(format!("seccomp={}", profile.get()))
    };
    options.iter().map(inlined).collect()
}

fn is_built_in(profile: &str) -> bool {
    matches!(profile, "unconfined" | "builtin") || profile.starts_with('{')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureReason;

    #[test]
    fn sends_the_content_of_a_profile() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("profile.json");
        fs::write(&path, "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}\n").expect("write the file");
        let options = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            inline_profiles(&texts)
        };
        let named = format!("seccomp={}", path.display());
        let inlined =
            options(&["no-new-privileges:true", "seccomp=unconfined", &named]).expect("the options must be valid");
        assert_eq!(inlined[..2], ["no-new-privileges:true", "seccomp=unconfined"]);
        assert_eq!(inlined[2], "seccomp={\"defaultAction\": \"SCMP_ACT_ALLOW\"}");
        fs::write(&path, "no JSON").expect("write the file");
        for broken in [named.as_str(), "seccomp=/no/such/file"] {
            let error = options(&[broken]).expect_err("must be refused");
            assert_eq!(error.reason, FailureReason::RunnerConfigurationError);
            assert!(error.message.contains("security_opt"), "{error}");
        }
    }
}
