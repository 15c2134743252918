//! Resolves the AWS region of this process.

use std::sync::OnceLock;

use super::environment::variable;
use super::metadata::Metadata;
use super::profile::Profiles;

/// The region: from the configuration, the environment, the shared files or the instance. Errors: none of them has one.
pub fn find(configured: Option<&str>) -> Result<String, String> {
    find_with(configured, &variable)
}

/// The same with another environment.
pub fn find_with(configured: Option<&str>, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let wanted = configured.map(str::to_owned).filter(|region| !region.is_empty());
    let wanted = wanted.or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    let wanted = wanted.or_else(|| Profiles::read(variable).value("region"));
    wanted.map_or_else(of_instance, check)
}

fn of_instance() -> Result<String, String> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let item = Metadata::of_process().get("meta-data/placement/region");
    let item = item.map_err(|error| format!("no AWS region is configured, and {error}; set AWS_REGION"))?;
    check(item.text).map(|region| KNOWN.get_or_init(|| region).clone())
}

/// Checks the name, because it becomes part of host names.
fn check(region: String) -> Result<String, String> {
    match !region.is_empty() && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        true => Ok(region),
        false => Err("the AWS region is not valid; write for example eu-central-1".to_owned()),
    }
}
