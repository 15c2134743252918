//! Identifies the EC2 instance. On other machines no request is sent.

use std::path::Path;
use std::time::Duration;

use super::detect::{is_instance_id, read_firmware};
use super::environment::variable;
use super::member::Ec2Instance;
use super::metadata::{Metadata, MetadataError};
use crate::config::aws::AwsConfig;
use crate::instance::Requirement;
use crate::sync;

/// How long the metadata service may need to respond while an instance boots.
const REQUIRED_TIMEOUT: Duration = Duration::from_secs(60);
/// The same if the agent can work without EC2 features.
const OPTIONAL_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Whether to ask the metadata service again if it does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// For as long as an instance may need to boot.
    WhileBooting,
    /// Never.
    None,
}

/// The EC2 instance; `None` on another machine. `settings` is `[mayfly.aws]`. Errors: the agent needs Auto Scaling, but
/// the instance cannot be identified.
pub fn ec2_instance(
    settings: Option<&AwsConfig>,
    requirement: Requirement,
    retries: Retries,
) -> Result<Option<Ec2Instance>, String> {
    let firmware = read_firmware(Path::new("/sys"));
    let is_configured = settings.is_some() || variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").is_some();
    if requirement != Requirement::AutoScaling && !is_configured && !firmware.is_ec2 {
        return Ok(None);
    }
    let metadata = Metadata::of_process();
    let timeout = match requirement {
        _ if firmware.instance.is_some() || retries == Retries::None => Duration::ZERO,
        Requirement::AutoScaling => REQUIRED_TIMEOUT,
        Requirement::Nothing | Requirement::GroupIfMember => OPTIONAL_TIMEOUT,
    };
    let settings = settings.cloned().unwrap_or_default();
    let member = |id| Ok(Some(Ec2Instance::new(id, metadata, &settings, requirement)));
    match (instance_id(metadata, timeout), firmware.instance) {
        (Ok(id), _) => member(id),
        (Err(error), Some(id)) => {
            log::warn!(
                "the metadata service did not answer; the instance id comes from the firmware, and spot and rebalance notices are not seen instance={id} error={error}"
            );
            member(id)
        }
        (Err(error), None) if requirement == Requirement::AutoScaling => Err(format!(
            "`leave = \"aws-asg\"` needs an EC2 instance, but {error}; correct that, or set another \
             `leave` below [mayfly]"
        )),
        (Err(MetadataError::Disabled), None) => Ok(None),
        (Err(error), None) => {
            log::warn!(
                "[mayfly.aws] is set, but the metadata service did not answer; EC2 features are off error={error}"
            );
            Ok(None)
        }
    }
}

fn instance_id(metadata: &Metadata, timeout: Duration) -> Result<String, MetadataError> {
    let mut outcome = Err(MetadataError::Unusable("no request was sent".to_owned()));
    sync::try_until(timeout, RETRY_INTERVAL, || {
        outcome = match metadata.get("meta-data/instance-id") {
            Ok(item) if is_instance_id(&item.text) => Ok(item.text),
            Ok(_) => Err(MetadataError::Unusable("it returned an invalid instance id".to_owned())),
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(_) | Err(MetadataError::Disabled | MetadataError::Absent) => Some(()),
            Err(error) => {
                log::debug!("the metadata service did not return the instance id; retrying error={error}");
                None
            }
        }
    });
    outcome
}
