//! Contradictions between keys that are valid by themselves.

use super::{DockerConfig, Size, Swap};

/// Two keys that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The key to change, below `[[runners]]`.
    pub key: &'static str,
    /// The reason, and what to do.
    pub why: String,
}

impl DockerConfig {
    /// All combinations that the engine would refuse, or that no job could use.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let mut found = Vec::new();
        let mut report = |key, why| found.push(Contradiction { key, why });
        for (key, why) in memory("", self.memory, self.memory_swap, self.memory_reservation) {
            report(key, why);
        }
        let (memory_of_services, swap, reservation) =
            (self.service_memory, self.service_memory_swap, self.service_memory_reservation);
        for (key, why) in memory("service_", memory_of_services, swap, reservation) {
            report(key, why);
        }
        for limit in &self.ulimit {
            if limit.hard >= 0 && (limit.soft > limit.hard || limit.soft < 0) {
                let (name, soft, hard) = (&limit.name, limit.soft, limit.hard);
                report(
                    "docker.ulimit",
                    format!("{name}: the soft limit {soft} is above the hard limit {hard}; swap them"),
                );
            }
        }
        if !self.user.is_empty() && !self.allowed_users.is_empty() && !self.allowed_users.contains(&self.user) {
            let why = format!("`user = \"{}\"` is not in `allowed_users`; add it there", self.user);
            report("docker.allowed_users", why);
        }
        self.network(&mut report);
        found
    }

    /// A container that shares the network of another one cannot have its own name or address.
    fn network(&self, report: &mut impl FnMut(&'static str, String)) {
        let mode = &self.network_mode;
        let of_container = mode.starts_with("container:");
        let shared = of_container || mode == "host";
        let given = [
            ("docker.links", shared && !self.links.is_empty()),
            ("docker.mac_address", shared && self.mac_address.is_some()),
            ("docker.dns", of_container && !self.dns.is_empty()),
            ("docker.extra_hosts", of_container && !self.extra_hosts.is_empty()),
            ("docker.hostname", of_container && !self.hostname.is_empty()),
        ];
        for (key, _) in given.into_iter().filter(|(_, wrong)| *wrong) {
            report(key, format!("a container with `network_mode = \"{mode}\"` cannot have its own; remove the key"));
        }
    }
}

/// The contradictions between the memory limits of jobs, or of services with the prefix `service_`.
fn memory(
    prefix: &str,
    memory: Option<Size>,
    swap: Option<Swap>,
    reservation: Option<Size>,
) -> Vec<(&'static str, String)> {
    let named = |plain: &'static str, of_services| if prefix.is_empty() { plain } else { of_services };
    let memory = memory.filter(|memory| memory.0 > 0);
    let mut found = Vec::new();
    let key = named("docker.memory_swap", "docker.service_memory_swap");
    match (memory, swap) {
        (Some(memory), Some(Swap::UpTo(swap))) if swap.0 > 0 && swap < memory => found.push((
            key,
            format!(
                "`{prefix}memory_swap` counts memory and swap together: it cannot be below `{prefix}memory` ({memory})"
            ),
        )),
        (None, Some(Swap::UpTo(swap))) if swap.0 > 0 => {
            found.push((key, format!("`{prefix}memory_swap` requires `{prefix}memory`")));
        }
        _ => {}
    }
    if let Some((memory, reservation)) = memory.zip(reservation).filter(|(memory, reserved)| reserved > memory) {
        found.push((
            named("docker.memory_reservation", "docker.service_memory_reservation"),
            format!("`{prefix}memory_reservation` ({reservation}) cannot be above `{prefix}memory` ({memory})"),
        ));
    }
    found
}
