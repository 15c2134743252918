//! Gives the program the revision that it was built from, for `mayfly --version` and the first line of job logs, and packs
//! the relocations of a static program, which would take 150 KB.

use std::path::Path;
use std::process::Command;

fn main() {
    // Git appends a line to this file when HEAD changes, also in a work tree. Cargo would rebuild each time for a missing
    // file.
    let head_log = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|path| Path::new(path).exists());
    println!("cargo:rerun-if-changed={}", head_log.as_deref().unwrap_or("build.rs"));
    println!("cargo:rerun-if-env-changed=MAYFLY_REVISION");
    let revision = std::env::var("MAYFLY_REVISION").ok().or_else(git_revision);
    println!("cargo:rustc-env=MAYFLY_REVISION={}", revision.as_deref().unwrap_or("unknown"));
    // The musl of an older compiler does not unpack them. A linker that cannot pack them only prints a warning. A linker
    // that rustc calls directly, without a C compiler, takes other arguments.
    let is_musl = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|kind| kind == "musl");
    let is_called_directly = std::env::var("RUSTC_LINKER").is_ok_and(|linker| linker.contains("lld"));
    if is_musl && !is_called_directly && compiler_version().is_some_and(|version| version >= (1, 93)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Major and minor version of the compiler.
fn compiler_version() -> Option<(u32, u32)> {
    let output = Command::new(std::env::var_os("RUSTC")?).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split(' ').nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The first eight digits of the commit that is checked out, if this is a git checkout.
fn git_revision() -> Option<String> {
    git(&["rev-parse", "--short=8", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
