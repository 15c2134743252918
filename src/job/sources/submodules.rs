//! Submodules of the checkout: fetched anew for each job, since git would run what an earlier job wrote into theirs.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use super::external::EXTERNAL_CONFIG;
use super::{GREEN, RESET, SourcesError, SourcesPlan, Submodules, YELLOW, git, redirect, repository};

/// The list of a work tree's files is not read without end.
const LIST_MAX: u64 = 512 << 20;

/// Submodules whose addresses are looked at for redirects.
const ADDRESSES_MAX: usize = 200;

/// Brings the submodules that the job asks for.
pub fn update(plan: &SourcesPlan) -> Result<(), SourcesError> {
    if plan.checkout && plan.project.join(".gitmodules").symlink_metadata().is_ok() {
        let paths = paths(plan, &plan.project)?;
        repository::empty_submodules(&plan.project, paths.iter().map(PathBuf::as_path))?;
    }
    let Some(wanted) = plan.submodules.as_ref().filter(|_| plan.checkout) else {
        println!("{GREEN}Skipping Git submodules setup{RESET}");
        return Ok(());
    };
    let how = if wanted.recursive { " recursively" } else { "" };
    let depth = if wanted.depth > 0 { format!(" with git depth set to {}", wanted.depth) } else { String::new() };
    println!("{GREEN}Updating/initializing submodules{how}{depth}...{RESET}");
    repository::forget_submodules(&plan.project)?;
    let sync = with_paths(&["submodule", "sync"], wanted.recursive.then_some("--recursive"), wanted);
    git::run(plan, &with_paths(&["submodule", "init"], None, wanted))?;
    git::run(plan, &sync)?;
    let include = format!("include.path={}", plan.external_config().display());
    let number = wanted.depth.to_string();
    // The server of a submodule may be anybody's: it must not name other addresses to fetch from.
    let options = ["-c", &include, "-c", "transfer.bundleURI=false"];
    let mut update: Vec<&str> = options.into_iter().chain(["submodule", "update", "--init", "--force"]).collect();
    update.extend(wanted.recursive.then_some("--recursive"));
    if wanted.depth > 0 {
        update.extend(["--depth", &number]);
    }
    update.extend(wanted.update_flags.iter().map(String::as_str));
    update.push("--");
    update.extend(wanted.paths.iter().map(String::as_str));
    update_with_redirects(plan, &sync, &update)?;
    println!("{GREEN}Updated submodules{RESET}");
    for directory in populated(plan, wanted.recursive)? {
        git::run_in(plan, &directory, &["clean", "-ffdxq"])?;
        git::run_in(plan, &directory, &["reset", "--hard", "--quiet"])?;
    }
    println!("{GREEN}Configuring submodules to use parent git credentials...{RESET}");
    let external = plan.path_in_container(EXTERNAL_CONFIG).display().to_string();
    for directory in populated(plan, true)? {
        git::run_in(plan, &directory, &["config", "--replace-all", "include.path", &external])?;
    }
    Ok(())
}

fn with_paths<'a>(words: &[&'a str], option: Option<&'a str>, wanted: &'a Submodules) -> Vec<&'a str> {
    let paths = wanted.paths.iter().map(String::as_str);
    words.iter().copied().chain(option).chain(["--"]).chain(paths).collect()
}

/// Tries again where it failed: an address may have moved on its host, and those of submodules in submodules are known
/// only once these are there.
fn update_with_redirects(plan: &SourcesPlan, sync: &[&str], update: &[&str]) -> Result<(), SourcesError> {
    if git::run(plan, update).is_ok() {
        return Ok(());
    }
    println!("{YELLOW}Updating submodules failed. Retrying...{RESET}");
    const LEVELS: usize = 8;
    for _ in 0..LEVELS {
        let moved = redirect::follow(plan, &addresses(plan)?)?;
        git::run(plan, sync)?;
        match git::run(plan, update) {
            Err(SourcesError::Git(_)) if moved => {}
            outcome => return outcome,
        }
    }
    git::run(plan, update)
}

/// The addresses of submodules that are known so far.
fn addresses(plan: &SourcesPlan) -> Result<Vec<String>, SourcesError> {
    let mut found = Vec::new();
    for directory in [plan.project.clone()].into_iter().chain(populated(plan, true)?) {
        let question = ["config", "--local", "-z", "--get-regexp", r"^submodule\..*\.url$"];
        let answer = output(plan, &directory, &question)?;
        let values = answer.split(|byte| *byte == 0).filter_map(|entry| entry.splitn(2, |byte| *byte == b'\n').nth(1));
        found.extend(values.map(|value| String::from_utf8_lossy(value).into_owned()));
    }
    found.sort();
    found.dedup();
    found.truncate(ADDRESSES_MAX);
    Ok(found)
}

/// The directories of submodules that hold a repository, those of submodules in them after them.
pub fn populated(plan: &SourcesPlan, recursive: bool) -> Result<Vec<PathBuf>, SourcesError> {
    let mut found = Vec::new();
    let mut waiting = vec![plan.project.clone()];
    while let Some(directory) = waiting.pop() {
        for path in paths(plan, &directory)? {
            if let Some(inner) = enter(&directory, &path) {
                found.push(inner.clone());
                waiting.extend(recursive.then_some(inner));
            }
        }
    }
    Ok(found)
}

/// The directory of a submodule, unless a link is on the way or it holds no repository.
fn enter(directory: &Path, path: &Path) -> Option<PathBuf> {
    let mut place = directory.to_owned();
    for part in path.components() {
        place.push(part);
        place.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?;
    }
    let is_repository = place.join(".git").symlink_metadata().is_ok_and(|found| found.is_dir() || found.is_file());
    is_repository.then_some(place)
}

/// The submodules of a checkout, as paths below it.
fn paths(plan: &SourcesPlan, directory: &Path) -> Result<Vec<PathBuf>, SourcesError> {
    let submodule = |entry: &[u8]| {
        let path = entry.strip_prefix(b"160000 ").and_then(|rest| rest.splitn(2, |byte| *byte == b'\t').nth(1))?;
        let path = PathBuf::from(OsStr::from_bytes(path));
        path.components().all(|part| matches!(part, Component::Normal(_))).then_some(path)
    };
    let listed = output(plan, directory, &["ls-files", "--stage", "-z"])?;
    Ok(listed.split(|byte| *byte == 0).filter_map(submodule).collect())
}

/// What git answers to a question; nothing where it does not know.
fn output(plan: &SourcesPlan, directory: &Path, arguments: &[&str]) -> Result<Vec<u8>, SourcesError> {
    let mut child = git::command(plan, directory, arguments).stdout(Stdio::piped()).spawn()?;
    let mut answer = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(LIST_MAX).read_to_end(&mut answer));
    child.wait()?;
    read.transpose()?;
    Ok(answer)
}
