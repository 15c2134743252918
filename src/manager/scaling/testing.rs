//! Pools and policies for tests.

use std::path::Path;
use std::sync::Arc;

use super::policy::Policies;
use crate::config::{Config, Role, fleet};
use crate::manager::pool::PoolSettings;

/// The fleet with three regimes of the reference (worked example 1.4).
pub const DYNAMIC: &str = "IdleCount = 10\nIdleCountMin = 1\nIdleScaleFactor = 1.0\nIdleTime = 600\nMaxBuilds = 250\n\
    [[autoscaling]]\nPeriods = [\"* * 9-17 * * mon-fri *\"]\nTimezone = \"Europe/Amsterdam\"\nIdleCount = 20\n\
    IdleCountMin = 5\nIdleScaleFactor = 1.5\nIdleTime = 3600\n\
    [[autoscaling]]\nPeriods = [\"* * * * * sat,sun *\"]\nTimezone = \"UTC\"\nIdleCount = 0\nIdleTime = 120\n";

/// The policies of `[runners.autoscaler]`.
pub fn autoscaler(text: &str) -> Policies {
    Policies::from_table(&fleet::FleetTable::Autoscaler(Box::new(toml::from_str(text).expect("a table"))))
}

/// The policies of `[runners.machine]`.
pub fn machine(text: &str) -> Policies {
    Policies::from_table(&fleet::FleetTable::Machine(toml::from_str(text).expect("a table")))
}

/// A pool of an executor, with keys of the runner and of its fleet table.
pub fn pool(executor: &str, runner: &str, table: &str) -> PoolSettings {
    let (name, more, after) = match executor {
        "docker+machine" => ("machine", "", "[runners.mayfly]\nauto_scaling_group = \"group\"\n"),
        _ => ("autoscaler", "plugin = \"aws\"\n", "[runners.autoscaler.plugin_config]\nname = \"group\"\n"),
    };
    let table = table.replace("[[autoscaling]]", "[[runners.machine.autoscaling]]");
    let text = format!(
        "concurrent = 40\n[[runners]]\nname = \"fleet\"\nurl = \"https://gitlab.example.com\"\ntoken = \"t\"\n\
         executor = \"{executor}\"\n{runner}[runners.docker]\nimage = \"alpine\"\n[runners.{name}]\n{more}{table}{after}"
    );
    let config = Config::parse_as(Path::new("config.toml"), &text, Role::Manager).expect("a configuration");
    let table = fleet::read_table(&config.runners[0].written).expect("a table").expect("a fleet");
    PoolSettings::new(Arc::new(config.runners[0].clone()), table, config.concurrent).expect("a pool")
}
