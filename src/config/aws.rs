//! `[mayfly.aws]`: settings of the instance in AWS that the agent otherwise detects.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// `[mayfly.aws]`; the agent detects each missing value.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AwsConfig {
    pub region: Option<String>,
    pub auto_scaling_group: Option<String>,
    /// The terminating lifecycle hooks of the group.
    pub lifecycle_hooks: Option<Vec<String>>,
    /// Whether to set scale-in protection while a job runs; on by default if the agent terminates through the group.
    pub protect_while_busy: Option<bool>,
    /// Raises the desired capacity when jobs start; off if the table is missing.
    pub raise_on_job: Option<RaiseSettings>,
}

/// The number of idle instances to keep beside busy ones: the keys of autoscaler policies, counted in instances.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct RaiseSettings {
    /// The minimum number of idle instances.
    pub idle_count: u32,
    /// The number of idle instances for each busy instance.
    #[serde(deserialize_with = "scale_factor")]
    pub scale_factor: f64,
    /// The maximum number of idle instances due to `scale_factor`; 0 for no limit.
    pub scale_factor_limit: u32,
}

impl Default for RaiseSettings {
    fn default() -> Self {
        Self { idle_count: 1, scale_factor: 0.0, scale_factor_limit: 0 }
    }
}

fn scale_factor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let factor = f64::deserialize(deserializer)?;
    match (0.0..=1000.0).contains(&factor) {
        true => Ok(factor),
        false => Err(D::Error::custom(format!("`scale_factor = {factor}`: write a number from 0 to 1000"))),
    }
}

impl RaiseSettings {
    /// The number of idle instances to keep beside `busy` busy instances.
    pub fn idle(&self, busy: u32) -> u32 {
        let limit = if self.scale_factor_limit == 0 { u32::MAX } else { self.scale_factor_limit };
        // The conversion saturates.
        let by_factor = (f64::from(busy) * self.scale_factor).ceil() as u32;
        self.idle_count.max(by_factor.min(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_idle_instances_as_policies_do() {
        let raise = |text: &str| toml::from_str::<RaiseSettings>(text).map_err(|error| error.to_string());
        let idle = |text: &str, busy| raise(text).expect("a table").idle(busy);
        assert_eq!([idle("", 0), idle("", 9)], [1, 1]);
        let factor = "idle_count = 2\nscale_factor = 1.5\nscale_factor_limit = 10";
        assert_eq!([0, 1, 2, 3, 7].map(|busy| idle(factor, busy)), [2, 2, 3, 5, 10]);
        assert_eq!(idle("idle_count = 0", 5), 0);
        assert_eq!(idle("scale_factor = 1000", u32::MAX), u32::MAX);
        for wrong in ["-1.0", "nan", "inf", "1e9"] {
            assert!(
                raise(&format!("scale_factor = {wrong}")).is_err_and(|why| why.contains("from 0 to 1000")),
                "{wrong}"
            );
        }
    }
}
