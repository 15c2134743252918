//! Control groups for steps: version 2 where it is mounted, with its way to kill a whole group at once, else the
//! `pids` or `systemd` hierarchy of version 1. Steps get groups below the agent's own, which is what systemd delegates.
//!
//! Confined work gets groups with limits. In version 2 a group that has processes of its own, as the agent's has, gives
//! its children no controllers: then they stand below a group at the top, where container engines have theirs.

use std::fs;
use std::path::{Path, PathBuf};

/// What confined work is limited by.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The group at the top of version 2.
const TOP: &str = "mayfly";

/// The groups below which the agent makes others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupParents {
    of_steps: Option<PathBuf>,
    of_confined: Vec<PathBuf>,
    /// Controllers that confined work is not limited by.
    missing: Vec<&'static str>,
}

impl CgroupParents {
    /// Finds the hierarchies in which the agent may make groups; none is an answer too.
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let of_steps = candidates(&mounts, &own).into_iter().find(|group| is_writable(group));
        // The best hierarchy for each purpose may be another one.
        let unified = unified(&mounts, &own).and_then(|(top, own)| with_controllers(&top, &own));
        if let Some(parent) = unified {
            return Self { of_steps, of_confined: vec![parent], missing: Vec::new() };
        }
        let (mut of_confined, mut missing) = (Vec::new(), Vec::new());
        for controller in CONTROLLERS {
            match in_hierarchy(&mounts, &own, "cgroup", controller).find(|group| is_writable(group)) {
                // One hierarchy may have several controllers.
                Some(group) if of_confined.contains(&group) => {}
                Some(group) => of_confined.push(group),
                None => missing.push(controller),
            }
        }
        Self { of_steps, of_confined, missing }
    }

    /// The groups of a step.
    pub fn of_step(&self, step: &str) -> Vec<PathBuf> {
        below(&self.of_steps, step)
    }

    /// The groups of a step that is confined.
    pub fn of_confined(&self, step: &str) -> Vec<PathBuf> {
        below(&self.of_confined, step)
    }

    /// True where steps get a group.
    pub fn exist(&self) -> bool {
        self.of_steps.is_some()
    }

    /// What confined work is not limited by.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }
}

fn below<'a>(parents: impl IntoIterator<Item = &'a PathBuf>, step: &str) -> Vec<PathBuf> {
    parents.into_iter().map(|parent| parent.join(format!("mayfly-{step}"))).collect()
}

/// The top of version 2 and the agent's own group there.
fn unified(mounts: &str, own: &str) -> Option<(PathBuf, PathBuf)> {
    let group = in_hierarchy(mounts, own, "cgroup2", "").next()?;
    let top =
        mounts.lines().map(|mount| mount.split(' ').collect::<Vec<_>>()).find(|mount| mount.get(2) == Some(&"cgroup2"));
    Some((PathBuf::from(*top?.get(1)?), group))
}

/// A group of version 2 whose children have all controllers.
fn with_controllers(top: &Path, own: &Path) -> Option<PathBuf> {
    if gives_controllers(own) && is_writable(own) {
        return Some(own.to_owned());
    }
    let parent = top.join(TOP);
    let _ = fs::create_dir(&parent);
    (gives_controllers(top) && gives_controllers(&parent) && is_writable(&parent)).then_some(parent)
}

/// Whether the children of a group have all controllers, now at the latest.
fn gives_controllers(group: &Path) -> bool {
    let control = group.join("cgroup.subtree_control");
    let has = || {
        let text = fs::read_to_string(&control).unwrap_or_default();
        CONTROLLERS.iter().all(|controller| text.split_ascii_whitespace().any(|given| given == *controller))
    };
    has() || (fs::write(&control, CONTROLLERS.map(|controller| format!("+{controller}")).join(" ")).is_ok() && has())
}

/// The agent's group in each hierarchy that keeps processes together, the best one first.
fn candidates(mounts: &str, own: &str) -> Vec<PathBuf> {
    let kinds = [("cgroup2", ""), ("cgroup", "pids"), ("cgroup", "name=systemd")];
    kinds.into_iter().flat_map(|(kind, controller)| in_hierarchy(mounts, own, kind, controller)).collect()
}

/// The agent's group wherever a hierarchy of this kind with this controller is mounted.
fn in_hierarchy<'a>(
    mounts: &'a str,
    own: &'a str,
    kind: &'a str,
    controller: &'a str,
) -> impl Iterator<Item = PathBuf> + 'a {
    let own = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|one| one == controller).then(|| path.trim_start_matches('/').to_owned())
    });
    let own = own.unwrap_or_default();
    mounts.lines().filter_map(move |mount| {
        let fields: Vec<&str> = mount.split(' ').collect();
        let [_, point, file_system, options, ..] = fields[..] else { return None };
        let fits = file_system == kind && (controller.is_empty() || options.split(',').any(|o| o == controller));
        fits.then(|| Path::new(point).join(&own))
    })
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
        let (top, group) = unified(mounts, own).expect("mounted");
        assert_eq!((top, group.ends_with("system.slice/mayfly.service")), ("/sys/fs/cgroup/unified".into(), true));
    }

    #[test]
    fn one_hierarchy_may_have_several_controllers() {
        let mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        let own = "4:memory:/m\n3:cpu,cpuacct:/c\n";
        let group = |controller: &str| in_hierarchy(mounts, own, "cgroup", controller).next();
        assert_eq!(group("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct/c".into()));
        assert_eq!(group("memory"), Some("/sys/fs/cgroup/memory/m".into()));
        assert_eq!(group("pids"), None);
    }
}
