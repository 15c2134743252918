//! Control groups for steps: version 2 where it is mounted, with its way to kill a whole group at once, else the
//! `pids` or `systemd` hierarchy of version 1. Steps get groups below the agent's own, which is what systemd delegates.

use std::fs;
use std::path::{Path, PathBuf};

/// The agent's own groups, below which it may make others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parents(Vec<PathBuf>);

impl Parents {
    /// Finds a hierarchy in which the agent may make groups; none is an answer too.
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let usable = candidates(&mounts, &own).into_iter().find(|group| is_writable(group));
        Self(usable.into_iter().collect())
    }

    /// The groups of a step.
    pub fn of_step(&self, step: &str) -> Vec<PathBuf> {
        self.0.iter().map(|parent| parent.join(format!("mayfly-{step}"))).collect()
    }

    /// True where steps get a group.
    pub fn exist(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The agent's group in each hierarchy, the best one first.
fn candidates(mounts: &str, own: &str) -> Vec<PathBuf> {
    let own_in = |matches: &dyn Fn(&str) -> bool| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            matches(controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let mut found = Vec::new();
    for (kind, controller) in [("cgroup2", ""), ("cgroup", "pids"), ("cgroup", "name=systemd")] {
        for mount in mounts.lines() {
            let fields: Vec<&str> = mount.split(' ').collect();
            let [_, point, file_system, options, ..] = fields[..] else { continue };
            let fits = file_system == kind && (controller.is_empty() || options.split(',').any(|o| o == controller));
            if !fits {
                continue;
            }
            let path = own_in(&|controllers| controllers.split(',').any(|one| one == controller));
            found.push(Path::new(point).join(path.unwrap_or_default()));
        }
    }
    found
}

fn is_writable(group: &Path) -> bool {
    let probe = group.join(format!("mayfly-probe-{}", std::process::id()));
    let made = fs::create_dir(&probe).is_ok();
    made && fs::remove_dir(&probe).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_version_two_and_its_own_subtree() {
        let mounts = "cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let own = "5:pids:/a\n0::/system.slice/mayfly.service\n";
        assert_eq!(
            candidates(mounts, own),
            [
                PathBuf::from("/sys/fs/cgroup/unified/system.slice/mayfly.service"),
                PathBuf::from("/sys/fs/cgroup/pids/a")
            ]
        );
        assert!(candidates("", own).is_empty());
    }
}
