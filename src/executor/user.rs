//! Users of the machine.

use std::ffi::CString;
use std::io;
use std::path::PathBuf;

use nix::unistd::{Uid, getgrouplist};

use crate::shim::spec::User;
use crate::sys::identity::as_user;

/// Looks up a user by login name. Fails if the user does not exist, or if the user database is unreadable.
pub fn look_up(name: &str) -> Result<User, String> {
    let found = nix::unistd::User::from_name(name).map_err(|error| format!("user `{name}`: {}", error.desc()))?;
    found.map(with_groups).ok_or_else(|| format!("user `{name}` does not exist on this machine"))
}

/// The placeholder for the number of the slot in `user`.
const SLOT_PLACEHOLDER: &str = "%n";

/// Whether a configured user name is a pattern for one user per slot (`ci-%n`).
pub fn is_pattern(name: &str) -> bool {
    name.contains(SLOT_PLACEHOLDER)
}

/// The name of the user of a slot, from the configured pattern.
pub fn slot_user_name(pattern: &str, slot: usize) -> String {
    pattern.replace(SLOT_PLACEHOLDER, &slot.to_string())
}

/// The users of all slots: one user, or one per slot for a pattern. Fails if a user does not exist, or if the users
/// have no common primary group; they share caches through that group.
pub fn slot_users(name: &str, slots: u32) -> Result<Vec<User>, String> {
    if !is_pattern(name) {
        return Ok(vec![look_up(name)?]);
    }
    let names = (0..slots.max(1)).map(|slot| slot_user_name(name, usize::try_from(slot).unwrap_or(usize::MAX)));
    let users: Vec<User> = names.map(|name| look_up(&name)).collect::<Result<_, _>>().map_err(|why| {
        format!(
            "{why}; `user = \"{name}\"` needs one user for each of the {slots} slots (`concurrent`), starting with \
             number 0"
        )
    })?;
    match users.iter().find(|user| user.gid != users[0].gid) {
        Some(other) => Err(format!(
            "users {} and {} have different primary groups; give all users of `{name}` the same one, so that their \
             jobs share caches",
            users[0].name, other.name
        )),
        None => Ok(users),
    }
}

/// The user of this process; its home directory is taken from the environment.
pub fn current() -> User {
    let uid = Uid::effective();
    let found = nix::unistd::User::from_uid(uid).ok().flatten();
    let mut user = found.map(with_groups).unwrap_or_else(|| User {
        name: uid.to_string(),
        uid: uid.as_raw(),
        gid: nix::unistd::Gid::effective().as_raw(),
        groups: Vec::new(),
        home: PathBuf::from("/"),
        shell: PathBuf::from("/bin/sh"),
    });
    if let Some(home) = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute()) {
        user.home = home;
    }
    user
}

/// Calls `act` with the permissions of the job's user, if that is not the agent's user. Fails, without calling `act`,
/// if the permissions cannot be changed.
pub fn as_job<T>(user: Option<&User>, act: impl FnOnce() -> T) -> io::Result<T> {
    match user {
        Some(user) => as_user(user.uid, user.gid, &user.groups, act),
        None => Ok(act()),
    }
}

fn with_groups(user: nix::unistd::User) -> User {
    let name = CString::new(user.name.as_bytes()).unwrap_or_default();
    let groups = getgrouplist(&name, user.gid).unwrap_or_default();
    User {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        home: user.dir,
        shell: user.shell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_gives_one_user_per_slot() {
        assert!(is_pattern("ci-%n") && !is_pattern("ci-0"));
        assert_eq!(slot_user_name("ci-%n", 12), "ci-12");
        let why = slot_users("no-such-%n", 2).expect_err("the user must be missing");
        assert!(why.contains("user `no-such-0` does not exist") && why.contains("2 slots"), "{why}");
        assert_eq!(slot_users("root", 9).expect("the user root must exist").len(), 1);
    }

    #[test]
    fn looks_up_existing_users_only() {
        let root = look_up("root").expect("the user root must exist");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(look_up("no-such-user").expect_err("the user must be missing").contains("does not exist"));
    }
}
