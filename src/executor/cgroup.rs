//! Control groups for steps. The agent uses cgroup v2 if it is mounted, because one write kills a whole group;
//! otherwise the `pids` or `systemd` hierarchy of version 1. The groups of steps are below the agent's own group, which
//! systemd delegates to the agent.
//!
//! File tasks in the sandbox get groups with limits. In version 2 a group that contains processes, such as the agent's
//! own, cannot enable controllers for its children. In that case the agent creates the groups with limits below a
//! top-level group, as container engines do.

use std::fs;
use std::path::{Path, PathBuf};

/// The controllers that limit the sandbox.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The name of the agent's top-level group in version 2.
const TOP_GROUP: &str = "mayfly";

/// The parent groups of the agent's control groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupParents {
    /// The parent of the groups of steps.
    steps: Option<PathBuf>,
    /// The parents of the groups with limits.
    confined: Vec<PathBuf>,
    /// Controllers that are not available for the sandbox.
    missing: Vec<&'static str>,
}

impl CgroupParents {
    /// Finds the hierarchies in which the agent may create groups. The result may be empty.
    pub fn find() -> Self {
        let (mounts, own) = hierarchies();
        let steps = parent_of_steps(&mounts, &own);
        // Each controller is in one hierarchy, of version 2 or of version 1 (hybrid).
        let (mut confined, mut missing) = (Vec::new(), CONTROLLERS.to_vec());
        if let Some((parent, enabled)) =
            version_2_groups(&mounts, &own).and_then(|(top, own)| parent_with_most_controllers(&top, &own))
        {
            confined.push(parent);
            missing.retain(|controller| !enabled.contains(controller));
        }
        missing.retain(|controller| {
            match own_groups_in(&mounts, &own, "cgroup", controller).find(|group| is_writable(group)) {
                // One hierarchy may have several controllers.
                Some(group) if confined.contains(&group) => false,
                Some(group) => {
                    confined.push(group);
                    false
                }
                None => true,
            }
        });
        Self { steps, confined, missing }
    }

    /// Finds only the hierarchy for steps, if no task runs in the sandbox.
    pub fn find_for_steps() -> Self {
        let (mounts, own) = hierarchies();
        Self { steps: parent_of_steps(&mounts, &own), ..Self::default() }
    }

    /// The control groups of a step.
    pub fn step_groups(&self, step: &str) -> Vec<PathBuf> {
        groups_below(&self.steps, step)
    }

    /// The control groups, with limits, of a step in the sandbox.
    pub fn confined_groups(&self, step: &str) -> Vec<PathBuf> {
        groups_below(&self.confined, step)
    }

    /// Whether steps get a control group.
    pub fn has_step_groups(&self) -> bool {
        self.steps.is_some()
    }

    /// The controllers that are not available for the sandbox.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }
}

/// The mounted file systems, and the agent's own groups.
fn hierarchies() -> (String, String) {
    let read = |name: &str| fs::read_to_string(Path::new("/proc/self").join(name)).unwrap_or_default();
    (read("mounts"), read("cgroup"))
}

fn parent_of_steps(mounts: &str, own: &str) -> Option<PathBuf> {
    tracking_groups(mounts, own).into_iter().find(|group| is_writable(group))
}

fn groups_below<'a>(parents: impl IntoIterator<Item = &'a PathBuf>, step: &str) -> Vec<PathBuf> {
    parents.into_iter().map(|parent| parent.join(format!("mayfly-{step}"))).collect()
}

/// The mount point of the hierarchy of version 2, and the agent's own group in it.
fn version_2_groups(mounts: &str, own: &str) -> Option<(PathBuf, PathBuf)> {
    let group = own_groups_in(mounts, own, "cgroup2", "").next()?;
    let top =
        mounts.lines().map(|mount| mount.split(' ').collect::<Vec<_>>()).find(|mount| mount.get(2) == Some(&"cgroup2"));
    Some((PathBuf::from(*top?.get(1)?), group))
}

/// The group of version 2 that enables the most controllers for its children, and those controllers.
fn parent_with_most_controllers(top: &Path, own: &Path) -> Option<(PathBuf, Vec<&'static str>)> {
    let own_controllers = enable_controllers(own);
    if own_controllers.len() == CONTROLLERS.len() && is_writable(own) {
        return Some((own.to_owned(), own_controllers));
    }
    let top_controllers = enable_controllers(top);
    if top_controllers.is_empty() {
        return (!own_controllers.is_empty() && is_writable(own)).then(|| (own.to_owned(), own_controllers));
    }
    let parent = top.join(TOP_GROUP);
    let _ = fs::create_dir(&parent);
    let enabled = enable_controllers(&parent);
    (!enabled.is_empty() && is_writable(&parent)).then_some((parent, enabled))
}

/// Enables the controllers for the children of a group, and returns the enabled ones. Each controller gets its own
/// write: in a combined write, one missing controller makes the whole write fail.
fn enable_controllers(group: &Path) -> Vec<&'static str> {
    let control = group.join("cgroup.subtree_control");
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let (available, enabled) = (read(&group.join("cgroup.controllers")), read(&control));
    for controller in CONTROLLERS {
        if has_word(&available, controller) && !has_word(&enabled, controller) {
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
    let enabled = read(&control);
    CONTROLLERS.into_iter().filter(|controller| has_word(&enabled, controller)).collect()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_ascii_whitespace().any(|one| one == word)
}

/// The agent's group in each hierarchy that can track processes. The best hierarchy comes first.
fn tracking_groups(mounts: &str, own: &str) -> Vec<PathBuf> {
    let hierarchies = [("cgroup2", ""), ("cgroup", "pids"), ("cgroup", "name=systemd")];
    hierarchies.into_iter().flat_map(|(kind, controller)| own_groups_in(mounts, own, kind, controller)).collect()
}

/// The agent's group in each mounted hierarchy of this type with this controller.
fn own_groups_in<'a>(
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
    fs::create_dir(&probe).is_ok() && fs::remove_dir(&probe).is_ok()
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
            tracking_groups(mounts, own),
            [
                PathBuf::from("/sys/fs/cgroup/unified/system.slice/mayfly.service"),
                PathBuf::from("/sys/fs/cgroup/pids/a")
            ]
        );
        assert!(tracking_groups("", own).is_empty());
        let (top, group) = version_2_groups(mounts, own).expect("find the cgroup");
        assert_eq!((top, group.ends_with("system.slice/mayfly.service")), ("/sys/fs/cgroup/unified".into(), true));
    }

    /// Creates a group as plain files; its children have all of its controllers.
    fn group(at: &Path, controllers: &str) {
        fs::create_dir_all(at).expect("create the directory");
        fs::write(at.join("cgroup.controllers"), controllers).expect("write the file");
        fs::write(at.join("cgroup.subtree_control"), controllers).expect("write the file");
    }

    #[test]
    fn a_controller_that_the_kernel_lacks_does_not_disable_the_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let (top, own) = (directory.path(), directory.path().join("system.slice/mayfly.service"));
        group(&own, "");
        group(top, "");
        assert_eq!(parent_with_most_controllers(top, &own), None, "there are none");
        group(top, "memory pids\n");
        group(&top.join(TOP_GROUP), "memory pids");
        assert_eq!(parent_with_most_controllers(top, &own), Some((top.join(TOP_GROUP), vec!["memory", "pids"])));
        group(&own, "cpuset cpu memory io pids");
        assert_eq!(parent_with_most_controllers(top, &own), Some((own.clone(), CONTROLLERS.to_vec())));
        group(&own, "pids");
        group(top, "");
        assert_eq!(parent_with_most_controllers(top, &own), Some((own.clone(), vec!["pids"])));
    }

    #[test]
    fn one_hierarchy_may_have_several_controllers() {
        let mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        let own = "4:memory:/m\n3:cpu,cpuacct:/c\n";
        let group = |controller: &str| own_groups_in(mounts, own, "cgroup", controller).next();
        assert_eq!(group("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct/c".into()));
        assert_eq!(group("memory"), Some("/sys/fs/cgroup/memory/m".into()));
        assert_eq!(group("pids"), None);
    }
}
