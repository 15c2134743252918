//! Gives the program the revision it was built from, for `mayfly --version` and the job log's first line.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-env-changed=MAYFLY_REVISION");
    let revision = std::env::var("MAYFLY_REVISION").ok().or_else(git_revision);
    println!("cargo:rustc-env=MAYFLY_REVISION={}", revision.as_deref().unwrap_or("unknown"));
}

/// The first eight digits of the commit that is checked out, if this is a git checkout.
fn git_revision() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=8", "HEAD"]).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
