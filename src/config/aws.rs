//! `[mayfly.aws]`: what the agent is told of its instance in Amazon Web Services instead of finding it out.

use serde::Deserialize;

/// The table; each key that is not there is found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Aws {
    /// The region.
    pub region: Option<String>,
    /// The Auto Scaling group.
    pub auto_scaling_group: Option<String>,
    /// The hooks of the group that hold an instance before it ends.
    pub lifecycle_hooks: Option<Vec<String>>,
    /// Scale-in protection while a job runs; on where the agent leaves through the group.
    pub protect_while_busy: Option<bool>,
}
