//! Users of the machine.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{Uid, getgrouplist};

use crate::shim::spec::User;

/// Looks up a user by login name. Errors: there is none, or the machine's user data cannot be read.
pub fn look_up(name: &str) -> Result<User, String> {
    let found = nix::unistd::User::from_name(name).map_err(|error| format!("user `{name}`: {}", error.desc()))?;
    found.map(with_groups).ok_or_else(|| format!("user `{name}` does not exist on this machine"))
}

/// The user this process runs as, at home where its own environment says so.
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
    fn knows_root_and_not_nobody_else() {
        let root = look_up("root").expect("root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(look_up("no-such-user").expect_err("none").contains("does not exist"));
    }
}
