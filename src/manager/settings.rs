//! The settings of a manager: its connection for agents, and its pools. An invalid pool does not prevent the others
//! from running.

use std::sync::Arc;

use super::pool::PoolSettings;
use crate::config::manager::Manager;
use crate::config::{Config, Runner, fleet};

/// The settings of a manager.
pub struct Settings {
    /// `[mayfly.manager]`.
    pub manager: Manager,
    /// The whole file, with tokens.
    pub config: Config,
    /// The valid pools.
    pub pools: Vec<PoolSettings>,
    /// For each invalid pool: its name, the cause, and the remedy. A runner whose executor does not exist is a finding
    /// of the file.
    pub refused: Vec<String>,
    /// The names of all pools in the file, including invalid ones.
    pub named: Vec<String>,
}

/// Reads the settings. Errors: there is no `[mayfly.manager]`, or two pools use the same group.
pub fn read(config: Config) -> Result<Settings, String> {
    let path = config.path.display();
    let manager = config.mayfly.manager.clone().ok_or_else(|| {
        format!("{path}: there is no [mayfly.manager]; add it with `certificate_file`, `key_file` and `agent_token`")
    })?;
    let mut pools: Vec<PoolSettings> = Vec::new();
    let mut refused = Vec::new();
    for runner in &config.runners {
        match pool(&config, runner) {
            Ok(Some(pool)) if pools.iter().any(|known| known.name == pool.name) => {
                refused.push(format!("pool `{}`: another pool has this name; names must differ", pool.name));
            }
            Ok(Some(pool)) => pools.push(pool),
            Ok(None) => refused.push(format!(
                "runner `{}`: executor \"{}\" is not of a fleet; write \"docker-autoscaler\" or \"instance\"",
                runner.name,
                runner.executor.as_str()
            )),
            Err(why) => refused.push(format!("pool `{}`: {why}", name_of(runner))),
        }
    }
    for (at, pool) in pools.iter().enumerate() {
        let Some(other) = pools[..at].iter().find(|other| other.engine.may_share(&pool.engine)) else { continue };
        let is_in_doubt = pool.engine.group() != other.engine.group();
        let regions = if is_in_doubt { ", or write `region` in both if their regions differ" } else { "" };
        return Err(format!(
            "{path}: the pools `{}` and `{}` use one group ({}); each would undo what the other does, so give each pool a \
             group of its own{regions}",
            other.name,
            pool.name,
            pool.engine.group()
        ));
    }
    let mut named: Vec<String> = config.runners.iter().map(name_of).collect();
    named.extend(config.unusable.iter().map(|unusable| pool_name(&unusable.name, unusable.position)));
    Ok(Settings { manager, config, pools, refused, named })
}

/// The pool of a runner; `None` if its executor is not one of a fleet. Errors: the missing setting, and what to write.
fn pool(config: &Config, runner: &Runner) -> Result<Option<PoolSettings>, String> {
    let Some(table) = fleet::read_table(&runner.written)? else { return Ok(None) };
    if runner.url.is_empty() {
        return Err("no `url`; write the URL of GitLab".to_owned());
    }
    if runner.token.is_empty() && runner.token_reference.is_none() {
        return Err("no `token`; write the runner's authentication token".to_owned());
    }
    let has_token = |manager: &Manager| !manager.agent_token.is_empty() || manager.agent_token_reference.is_some();
    if !config.mayfly.manager.as_ref().is_some_and(has_token) && runner.pool.agent_role.is_none() {
        return Err("its agents cannot prove themselves; write `agent_token` below [mayfly.manager], or `agent_role` \
                    below [runners.mayfly]"
            .to_owned());
    }
    let authorities = match &runner.tls.ca_file {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?),
        None => None,
    };
    let named = Arc::new(Runner { name: name_of(runner), ..runner.clone() });
    let mut pool = PoolSettings::new(named, table, config.concurrent)?;
    if let Some(timeout) = config.mayfly.manager.as_ref().and_then(|manager| manager.registration_timeout) {
        pool.registration_timeout = timeout;
    }
    Ok(Some(pool.with_agent_settings(fleet::table_for_agents(&runner.written), authorities, config.check_interval)))
}

/// The name of a runner's pool.
pub fn name_of(runner: &Runner) -> String {
    pool_name(&runner.name, runner.position)
}

fn pool_name(name: &str, position: usize) -> String {
    match name {
        "" => format!("pool-{}", position + 1),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Role;

    fn settings(runners: &str) -> Result<Settings, String> {
        let text = format!(
            "concurrent = 20\n[mayfly.manager]\nplain_http = true\nagent_token = \"0123456789abcdef\"\n{runners}"
        );
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        std::fs::write(&path, text).expect("write the file");
        read(Config::load_as(&path, Role::Manager).expect("a configuration").config)
    }

    fn runner(name: &str, group: &str) -> String {
        format!(
            "[[runners]]\nname = \"{name}\"\nurl = \"https://gitlab.test\"\ntoken = \"glrt-secret\"\n\
             executor = \"docker-autoscaler\"\nlimit = 7\n[runners.autoscaler]\nplugin = \"aws\"\n\
             capacity_per_instance = 2\nmax_instances = 10\n[runners.autoscaler.plugin_config]\n{group}\n"
        )
    }

    #[test]
    fn bounds_are_those_of_the_fleet_and_agents_get_no_token() {
        let settings = settings(&runner("a", "name = \"g\"")).expect("the settings must be valid");
        let pool = &settings.pools[0];
        assert_eq!((pool.concurrent, pool.runner.limit, pool.capacity_per_instance), (20, Some(7), 2));
        assert!(pool.runner_text.contains("docker-autoscaler") && !pool.runner_text.contains("secret"));
    }

    #[test]
    fn a_pool_that_cannot_be_used_keeps_no_other_from_running() {
        let settings = settings(&format!(
            "{}{}{}",
            runner("a", "region = \"r\""),
            runner("b", "name = \"g\""),
            "[[runners]]\nname = \"c\"\nurl = \"https://gitlab.test\"\ntoken = \"t\"\nexecutor = \"shell\"\n"
        ))
        .expect("the settings must be valid");
        assert_eq!(settings.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert!(settings.refused[0].contains("pool `a`") && settings.refused[0].contains("write `name`"));
        assert!(settings.refused[1].contains("runner `c`"));
    }

    #[test]
    fn two_pools_of_one_group_are_refused() {
        let both = format!("{}{}", runner("a", "name = \"g\""), runner("b", "name = \"g\""));
        assert!(settings(&both).err().is_some_and(|why| why.contains("`a` and `b` use one group")));
        let pools = |one: &str, other: &str| settings(&format!("{}{}", runner("a", one), runner("b", other))).err();
        let of_region = |region: &str| format!("name = \"g\"\nregion = \"{region}\"");
        assert_eq!(pools(&of_region("eu-west-1"), &of_region("eu-west-2")), None);
        let why = pools(&of_region("eu-west-1"), "name = \"g\"").expect("perhaps one group");
        assert!(
            why.contains("use one group") && why.ends_with("write `region` in both if their regions differ"),
            "{why}"
        );
        assert!(
            read(Config::parse(Path::new("config.toml"), "").expect("an empty configuration must be valid")).is_err()
        );
    }
}
