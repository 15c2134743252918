//! Whether another user can enter and write a directory, by owner and mode, so that `check` reports a problem before a
//! job fails.
//!
//! These checks ignore access control lists.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::shim::spec::User;

const WRITE: u32 = 0o2;
const ENTER: u32 = 0o1;

/// Whether a user can enter every existing parent of a directory. The error names the one that the user cannot enter.
pub fn can_reach(user: &User, directory: &Path) -> Result<(), String> {
    for above in directory.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        let Ok(metadata) = fs::metadata(above) else { continue };
        if !allows(user, &metadata, ENTER) {
            return Err(format!("user {} cannot enter {}", user.name, above.display()));
        }
    }
    Ok(())
}

/// Whether a user can create files in a directory. The error names the directory that the user cannot enter or write.
pub fn can_write(user: &User, directory: &Path) -> Result<(), String> {
    can_reach(user, directory)?;
    let refused = || format!("user {} cannot write {}", user.name, directory.display());
    let metadata = fs::metadata(directory).map_err(|_| refused())?;
    let usable = metadata.is_dir() && allows(user, &metadata, WRITE | ENTER);
    usable.then_some(()).ok_or_else(refused)
}

/// As in the kernel, the first matching class (owner, group, others) decides.
fn allows(user: &User, metadata: &Metadata, wanted: u32) -> bool {
    let mode = metadata.mode();
    let bits = if user.uid == metadata.uid() {
        mode >> 6
    } else if user.gid == metadata.gid() || user.groups.contains(&metadata.gid()) {
        mode >> 3
    } else {
        mode
    };
    user.uid == 0 || bits & wanted == wanted
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn checks_the_bits_of_owner_group_and_others() {
        let root = tempfile::tempdir().expect("a directory");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("set the permissions");
        let directory = root.path().join("builds");
        fs::create_dir(&directory).expect("create the directory");
        let metadata = fs::metadata(&directory).expect("the file must exist");
        let (uid, gid) = (metadata.uid(), metadata.gid());
        let user = |uid, gid, groups| User {
            name: "job".to_owned(),
            uid,
            gid,
            groups,
            home: "/".into(),
            shell: "/bin/sh".into(),
        };
        let other = 54_321;
        for (mode, user, may) in [
            (0o700, user(other, other, vec![]), false),
            (0o777, user(other, other, vec![]), true),
            (0o770, user(other, gid, vec![]), true),
            (0o770, user(other, other, vec![gid]), true),
            (0o707, user(other, other, vec![gid]), false),
            (0o776, user(other, other, vec![]), false),
            (0o077, user(uid, other, vec![]), uid == 0),
        ] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).expect("set the permissions");
            assert_eq!(can_write(&user, &directory).is_ok(), may, "{mode:o} {user:?}");
        }
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).expect("set the permissions");
        let missing = root.path().join("a/b");
        let why = can_reach(&user(other, other, vec![]), &missing).expect_err("the directory must be reported");
        assert!(why.contains("cannot enter"), "{why}");
    }
}
