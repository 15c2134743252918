//! Applies `block_instance_metadata`, and checks that jobs cannot bypass it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::{Group, Uid};

use crate::config::Config;
use crate::config::docker::DockerConfig;
use crate::executor::user;
use crate::instance::metadata_block::{JobUser, MetadataBlock};
use crate::shim::spec::User;

/// The name of a file in the state directory that exists while the nftables rules are loaded.
const MARKER_FILE: &str = "metadata-blocked";
/// Members of these groups can become root.
const ROOT_GROUPS: [&str; 9] = ["docker", "podman", "lxd", "incus", "incus-admin", "libvirt", "disk", "sudo", "wheel"];
/// With these capabilities a process can leave its container.
const ROOT_CAPABILITIES: [&str; 7] =
    ["ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE", "SYS_RAWIO", "DAC_READ_SEARCH", "BPF"];

/// The beginning of each error: the key of the configuration, and the effect.
const ERROR_PREFIX: &str = "`block_instance_metadata`: access of jobs to the instance's credentials cannot be blocked";

/// Loads the nftables rules, or removes them if the configuration no longer requires them. `user_option` is the user
/// from the command line. Errors: jobs could reach the metadata service, so the agent must not take jobs.
pub fn apply(config: &Config, user_option: Option<&str>, state: &Path) -> Result<Option<Arc<MetadataBlock>>, String> {
    let marker = state.join(MARKER_FILE);
    if !config.mayfly.block_instance_metadata {
        if marker.exists() {
            MetadataBlock::remove()?;
            log::info!("access of jobs to the instance metadata is no longer blocked");
            fs::remove_file(&marker).map_err(|error| format!("{}: {error}", marker.display()))?;
        }
        return Ok(None);
    }
    let users = job_users(config, user_option)?;
    fs::write(&marker, "").map_err(|error| format!("{}: {error}", marker.display()))?;
    let block = MetadataBlock::install(&users).map_err(|why| format!("{ERROR_PREFIX}: {why}"))?;
    log::info!("access of jobs to the instance metadata is blocked");
    Ok(Some(Arc::new(block)))
}

/// The users of the jobs, whose processes the rules block. `user_option` is the user from the command line. Errors:
/// jobs could bypass the rules.
pub fn job_users(config: &Config, user_option: Option<&str>) -> Result<Vec<JobUser>, String> {
    if !Uid::effective().is_root() {
        return Err(format!("{ERROR_PREFIX}: only root can load nftables rules; run the agent as root"));
    }
    let mut users: Vec<JobUser> = Vec::new();
    let mut add = |user: JobUser| {
        if !users.contains(&user) {
            users.push(user);
        }
    };
    for runner in &config.runners {
        let cannot = |why| format!("{ERROR_PREFIX}: runner `{}`: {why}", runner.name);
        // The rules block every container that has its own network namespace.
        if runner.executor.has_containers() {
            check_containers(&runner.docker).map_err(cannot)?;
            // File tasks and the network relay run as the user of the sandbox.
            let uid = runner.confined.uid;
            add(JobUser { name: format!("{uid} (the sandbox)"), uid });
            continue;
        }
        for user in users_of(config, user_option).map_err(cannot)? {
            add(JobUser { name: user.name, uid: user.uid });
        }
    }
    Ok(users)
}

/// Errors: a setting lets containers bypass the rules, or the engine is on another machine.
fn check_containers(docker: &DockerConfig) -> Result<(), String> {
    let root_like = |capability: &String| {
        let name = capability.to_ascii_uppercase();
        ROOT_CAPABILITIES.contains(&name.trim_start_matches("CAP_"))
    };
    // Access to the engine's socket is root access; so is a directory that contains it.
    let holds_the_socket = |volume: &String| {
        let source = volume.split(':').next().unwrap_or_default().trim_end_matches('/');
        let is_bound = volume.starts_with('/') && volume.contains(':');
        is_bound && (source.ends_with(".sock") || matches!(source, "" | "/run" | "/var" | "/var/run"))
    };
    let ways = [
        ("privileged", docker.privileged || docker.services_privileged == Some(true)),
        ("network_mode", docker.network_mode == "host" || docker.network_mode.starts_with("container:")),
        ("pid_mode", docker.pid_mode == "host"),
        ("cap_add", docker.cap_add.iter().any(root_like)),
        ("volumes", docker.volumes.iter().any(holds_the_socket)),
        ("host", !docker.host.is_empty() && !docker.host.starts_with("unix://")),
    ];
    match ways.into_iter().find(|(_, open)| *open) {
        Some((key, _)) => {
            Err(format!("`{key}` below [runners.docker] lets containers bypass the block; remove or change it"))
        }
        None => Ok(()),
    }
}

fn users_of(config: &Config, user_option: Option<&str>) -> Result<Vec<User>, String> {
    let name = user_option.or(config.user.as_deref()).ok_or("jobs run as the agent's own user; set `user`")?;
    let users = user::slot_users(name, config.concurrent)?;
    for user in &users {
        if user.uid == 0 {
            return Err("jobs run as root; set another `user`".to_owned());
        }
        let is_in = |group: &Group| user.gid == group.gid.as_raw() || user.groups.contains(&group.gid.as_raw());
        let is_member = |name: &&str| Group::from_name(name).ok().flatten().is_some_and(|group| is_in(&group));
        if let Some(group) = ROOT_GROUPS.iter().find(|name| is_member(name)) {
            return Err(format!(
                "user {} is in the group {group} and can become root; remove the user from the group",
                user.name
            ));
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users_with(user: &str) -> Result<Vec<JobUser>, String> {
        let runner = "[[runners]]\nname = \"r\"\nurl = \"http://h\"\ntoken = \"t\"\nexecutor = \"shell\"\n";
        let text = format!("{user}\n{runner}{}", runner.replace("\"r\"", "\"s\""));
        job_users(&Config::parse(Path::new("config.toml"), &text).expect("a configuration"), None)
    }

    #[test]
    fn jobs_of_root_or_of_the_agents_user_cannot_be_blocked() {
        if !Uid::effective().is_root() {
            assert!(users_with("user = \"nobody\"").expect_err("must be refused").contains("only root"));
            return;
        }
        for (user, part) in [("", "own user"), ("user = \"root\"", "as root"), ("user = \"no-such\"", "does not exist")]
        {
            let why = users_with(user).expect_err("must be refused");
            assert!(
                why.contains("block_instance_metadata") && why.contains("runner `r`") && why.contains(part),
                "{why}"
            );
        }
        let docker = |keys: &str| {
            let text = format!(
                "[[runners]]\nname = \"r\"\nurl = \"http://h\"\ntoken = \"t\"\nexecutor = \"docker\"\n\
                 [runners.docker]\nimage = \"x\"\n{keys}\n"
            );
            job_users(&Config::parse(Path::new("config.toml"), &text).expect("a configuration"), None)
        };
        let sandbox = docker("").expect("the defaults must be accepted");
        assert_eq!(sandbox.iter().map(|user| user.uid).collect::<Vec<_>>(), [crate::config::CONFINED_UID]);
        for keys in
            ["privileged = true", "network_mode = \"host\"", "volumes = [\"/run/docker.sock:/run/docker.sock\"]"]
        {
            assert!(docker(keys).expect_err("must be refused").contains("below [runners.docker]"), "{keys}");
        }
        let users = users_with("user = \"nobody\"").expect("a user");
        assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["nobody"]);
    }

    #[test]
    fn container_settings_that_give_root_access_are_rejected() {
        let docker = |text: &str| toml::from_str::<DockerConfig>(text).expect("a table");
        for (text, key) in [
            ("privileged = true", "privileged"),
            ("services_privileged = true", "privileged"),
            ("network_mode = \"host\"", "network_mode"),
            ("network_mode = \"container:x\"", "network_mode"),
            ("pid_mode = \"host\"", "pid_mode"),
            ("cap_add = [\"NET_RAW\", \"cap_sys_admin\"]", "cap_add"),
            ("cap_add = [\"CAP_BPF\"]", "cap_add"),
            ("volumes = [\"/cache\", \"/var/run/docker.sock:/var/run/docker.sock\"]", "volumes"),
            ("volumes = [\"/run:/host:ro\"]", "volumes"),
            ("volumes = [\"/:/host\"]", "volumes"),
            ("host = \"tcp://10.0.0.1:2376\"", "host"),
        ] {
            let why = check_containers(&docker(text)).expect_err("must be refused");
            assert!(why.starts_with(&format!("`{key}`")), "{text}: {why}");
        }
        for text in [
            "",
            "volumes = [\"/cache\", \"/srv/data:/data\"]\ncap_add = [\"NET_ADMIN\"]\nnetwork_mode = \"ci\"",
            "host = \"unix:///run/d.sock\"",
        ] {
            assert_eq!(check_containers(&docker(text)), Ok(()), "{text}");
        }
    }
}
