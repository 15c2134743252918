//! Submodules of the checkout. The agent clones their repositories for each job, since git would run what an earlier
//! job wrote into them. Their files stay ([`super::submodule_trees`]).

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use super::external::EXTERNAL_CONFIG;
use super::{GREEN, RESET, SourcesError, SourcesPlan, Submodules, YELLOW, git, large_files, redirect, submodule_trees};

/// Limit for the list of a work tree's files, in bytes.
const MAX_LIST_SIZE: u64 = 512 << 20;

/// Limit for submodules whose addresses are checked for redirects.
const MAX_ADDRESSES: usize = 200;

/// Limit for nested submodules.
const MAX_LEVELS: usize = 32;

/// Fetches the submodules that the job requests. An error never means that the checkout is damaged.
pub fn update(plan: &SourcesPlan) -> Result<(), SourcesError> {
    let Some(wanted) = plan.submodules.as_ref().filter(|_| plan.checkout) else {
        if plan.checkout && plan.project.join(".gitmodules").symlink_metadata().is_ok() {
            submodule_trees::set_aside(plan, &plan.project, &paths(plan, &plan.project)?)?;
        }
        println!("{GREEN}Skipping Git submodules setup{RESET}");
        return Ok(());
    };
    let plan = &plan.submodule_plan();
    let how = if wanted.recursive { " recursively" } else { "" };
    let depth = if wanted.depth > 0 { format!(" with git depth set to {}", wanted.depth) } else { String::new() };
    println!("{GREEN}Updating/initializing submodules{how}{depth}...{RESET}");
    let mut links = Vec::new();
    if let Err(failure) = update_levels(plan, wanted, &mut links) {
        if let Err(why) = submodule_trees::restore_all(plan, &links) {
            println!("{YELLOW}WARNING: the files of submodules cannot be moved back: {why}{RESET}");
        }
        return Err(failure);
    }
    submodule_trees::forget_others(plan, &links)?;
    println!("{GREEN}Updated submodules{RESET}\n{GREEN}Configuring submodules to use parent git credentials...{RESET}");
    let external = plan.path_in_container(EXTERNAL_CONFIG).display().to_string();
    for directory in all_populated(plan)? {
        git::run_in(plan, &directory, &["config", "--replace-all", "include.path", &external])?;
        large_files::pull_of_submodule(plan, &directory)?;
    }
    Ok(())
}

/// Fetches the submodules of the checkout and, if the job wants them, of its submodules. Adds the directories of all
/// submodules to `links`, parents first.
fn update_levels(plan: &SourcesPlan, wanted: &Submodules, links: &mut Vec<PathBuf>) -> Result<(), SourcesError> {
    let mut waiting = vec![(plan.project.clone(), 1)];
    while let Some((directory, level)) = waiting.pop() {
        let inner = update_level(plan, wanted, &directory, links)?;
        if wanted.recursive && level < MAX_LEVELS {
            waiting.extend(inner.into_iter().map(|inner| (inner, level + 1)));
        }
    }
    Ok(())
}

/// Fetches the submodules of one repository, in the checkout or in a submodule; returns their directories. Adds the
/// directories of all submodules to `links`, wanted or not.
fn update_level(
    plan: &SourcesPlan,
    wanted: &Submodules,
    directory: &Path,
    links: &mut Vec<PathBuf>,
) -> Result<Vec<PathBuf>, SourcesError> {
    let own = paths(plan, directory)?;
    if own.is_empty() {
        return Ok(Vec::new());
    }
    links.extend(own.iter().map(|link| directory.join(link)));
    submodule_trees::set_aside(plan, directory, &own)?;
    fetch(plan, wanted, directory)?;
    let inner = populated(plan, directory)?;
    for submodule in &inner {
        submodule_trees::put_back(plan, submodule)?;
    }
    Ok(inner)
}

/// Clones the submodules of one repository into empty directories.
fn fetch(plan: &SourcesPlan, wanted: &Submodules, directory: &Path) -> Result<(), SourcesError> {
    // The job's patterns apply to the main repository only.
    let patterns = if directory == plan.project { wanted.paths.as_slice() } else { &[] };
    let patterns = || patterns.iter().map(String::as_str);
    let with_patterns =
        |words: &[&'static str]| words.iter().copied().chain(["--"]).chain(patterns()).collect::<Vec<_>>();
    let sync = with_patterns(&["submodule", "sync"]);
    git::run_in(plan, directory, &with_patterns(&["submodule", "init"]))?;
    git::run_in(plan, directory, &sync)?;
    let (include, depth) = (include_option(plan), wanted.depth.to_string());
    // Anyone may own the server of a submodule: the server must not name other addresses to fetch from.
    let options = ["-c", &include, "-c", "transfer.bundleURI=false"];
    let mut update: Vec<&str> = options.into_iter().chain(["submodule", "update", "--init", "--force"]).collect();
    if wanted.depth > 0 {
        update.extend(["--depth", &depth]);
    }
    update.extend(wanted.update_flags.iter().map(String::as_str));
    update.push("--");
    update.extend(patterns());
    if git::run_in(plan, directory, &update).is_ok() {
        return Ok(());
    }
    println!("{YELLOW}Updating submodules failed. Retrying...{RESET}");
    // The server may redirect the address to another one on the same host.
    redirect::follow(plan, &addresses(plan)?)?;
    git::run_in(plan, directory, &sync)?;
    if wanted.update_flags.iter().any(|flag| flag == "--remote") {
        fetch_branches(plan, wanted, directory)?;
    }
    let updated = git::run_in(plan, directory, &update);
    if updated.is_err() && plan.temporary_in_container.is_some() {
        name_other_protocols(plan)?;
    }
    updated
}

/// Prints the submodules whose servers git cannot reach when it runs outside the container: git has no SSH key there,
/// and the relay supports only HTTP.
fn name_other_protocols(plan: &SourcesPlan) -> Result<(), SourcesError> {
    let include = include_option(plan);
    for address in addresses(plan)? {
        // Ask git for the address after the job's rewrites (`insteadOf`).
        let used = output(plan, &plan.project, &["-c", &include, "ls-remote", "--get-url", "--", &address])?;
        if is_other_protocol(String::from_utf8_lossy(&used).trim()) {
            println!(
                "{YELLOW}The submodule URL {} needs SSH or git://, but the sources of a container job are fetched \
                 without SSH keys and over HTTP only; use an https:// URL in .gitmodules, or set \
                 GIT_SUBMODULE_FORCE_HTTPS to true for repositories of this GitLab{RESET}",
                address.escape_debug()
            );
        }
    }
    Ok(())
}

/// Whether git reaches an address by SSH (also in the form `host:path`) or by its own protocol.
fn is_other_protocol(address: &str) -> bool {
    match address.split_once("://") {
        Some((scheme, _)) => matches!(scheme, "ssh" | "git" | "git+ssh" | "ssh+git"),
        None => address.split('/').next().is_some_and(|host| host.contains(':') && !host.contains("::")),
    }
}

fn include_option(plan: &SourcesPlan) -> String {
    format!("include.path={}", plan.external_config().display())
}

/// Fetches the branches in `.gitmodules`: a shallow clone of a submodule has only its default branch.
fn fetch_branches(plan: &SourcesPlan, wanted: &Submodules, directory: &Path) -> Result<(), SourcesError> {
    let (include, depth) = (include_option(plan), wanted.depth.to_string());
    let branches = branches(plan, directory)?;
    for submodule in populated(plan, directory)? {
        let path = submodule.strip_prefix(directory).unwrap_or(&submodule);
        let Some((_, branch)) = branches.iter().find(|(known, _)| Path::new(known) == path) else { continue };
        let refspec = format!("+refs/heads/{branch}:refs/remotes/origin/{branch}");
        let mut fetch = vec!["-c", &include, "-c", "transfer.bundleURI=false", "fetch", "--no-recurse-submodules"];
        if wanted.depth > 0 {
            fetch.extend(["--depth", &depth]);
        }
        fetch.extend(["origin", &refspec]);
        git::run_in(plan, &submodule, &fetch)?;
    }
    Ok(())
}

/// Paths of submodules and their branches in `.gitmodules` of the commit.
fn branches(plan: &SourcesPlan, directory: &Path) -> Result<Vec<(String, String)>, SourcesError> {
    let question = ["config", "--blob", "HEAD:.gitmodules", "-z", "--get-regexp", r"^submodule\..*\.(path|branch)$"];
    let answer = output(plan, directory, &question)?;
    Ok(parse_branches(&String::from_utf8_lossy(&answer)))
}

fn parse_branches(list: &str) -> Vec<(String, String)> {
    let entries: Vec<(&str, &str)> = list.split('\0').filter_map(|entry| entry.split_once('\n')).collect();
    let find = |name: &str, last: &str| {
        let key = format!("{name}{last}");
        entries.iter().rev().find(|(known, _)| *known == key).map(|(_, value)| *value)
    };
    let paths = entries.iter().filter_map(|(key, path)| Some((key.strip_suffix("path")?, *path)));
    let with_branch = paths.filter_map(|(name, path)| {
        // `.` is the current branch of the parent repository, which a checkout of a commit does not have.
        let branch = find(name, "branch").filter(|branch| *branch != "." && is_branch(branch))?;
        Some((path.to_owned(), branch.to_owned()))
    });
    with_branch.collect()
}

/// Paths and names of the submodules in `.gitmodules` of the commit; git keeps their repositories below the names. A
/// path that is no submodule in the index, for example a file or a symbolic link of the commit, does not count.
pub fn names(plan: &SourcesPlan) -> Result<Vec<(PathBuf, PathBuf)>, SourcesError> {
    let question = ["config", "--blob", "HEAD:.gitmodules", "-z", "--get-regexp", r"^submodule\..*\.path$"];
    // Git prints an error if the commit has no `.gitmodules`, which is not an error here.
    let mut command = git::command(plan, &plan.project, &question);
    command.stderr(Stdio::null());
    let answer = read_list(command)?;
    let in_index = paths(plan, &plan.project)?;
    let entries = answer.split(|byte| *byte == 0).filter_map(|entry| {
        let at = entry.iter().position(|byte| *byte == b'\n')?;
        let name = entry[..at].strip_prefix(b"submodule.")?.strip_suffix(b".path")?;
        let to_path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        Some((to_path(&entry[at + 1..]), to_path(name)))
    });
    Ok(entries.filter(|(path, _)| in_index.contains(path)).collect())
}

/// Whether a name is valid in a refspec.
fn is_branch(name: &str) -> bool {
    !name.is_empty() && !name.contains("..") && !name.contains([':', '*', '?', '[', '\\', '^', '~', ' ']) && {
        !name.contains(char::is_control)
    }
}

/// The addresses of the submodules that are known so far.
fn addresses(plan: &SourcesPlan) -> Result<Vec<String>, SourcesError> {
    let mut found = Vec::new();
    for directory in [plan.project.clone()].into_iter().chain(all_populated(plan)?) {
        let question = ["config", "--local", "-z", "--get-regexp", r"^submodule\..*\.url$"];
        let answer = output(plan, &directory, &question)?;
        let values = answer.split(|byte| *byte == 0).filter_map(|entry| entry.splitn(2, |byte| *byte == b'\n').nth(1));
        found.extend(values.map(|value| String::from_utf8_lossy(value).into_owned()));
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_ADDRESSES);
    Ok(found)
}

/// The directories of all submodules that hold a repository; nested submodules follow their parents.
fn all_populated(plan: &SourcesPlan) -> Result<Vec<PathBuf>, SourcesError> {
    let mut found = Vec::new();
    let mut waiting = vec![plan.project.clone()];
    while let Some(directory) = waiting.pop() {
        let inner = populated(plan, &directory)?;
        found.extend(inner.iter().cloned());
        waiting.extend(inner);
    }
    Ok(found)
}

/// The directories of one repository's submodules that hold a repository.
fn populated(plan: &SourcesPlan, directory: &Path) -> Result<Vec<PathBuf>, SourcesError> {
    Ok(paths(plan, directory)?.iter().filter_map(|path| populated_directory(directory, path)).collect())
}

/// The directory of a submodule, unless a symbolic link is on the way or it holds no repository.
fn populated_directory(directory: &Path, path: &Path) -> Option<PathBuf> {
    let mut submodule = directory.to_owned();
    for part in path.components() {
        submodule.push(part);
        submodule.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?;
    }
    let is_repository = submodule.join(".git").symlink_metadata().is_ok_and(|found| found.is_dir() || found.is_file());
    is_repository.then_some(submodule)
}

/// The submodules in the index of a checkout, as relative paths.
fn paths(plan: &SourcesPlan, directory: &Path) -> Result<Vec<PathBuf>, SourcesError> {
    let submodule = |entry: &[u8]| {
        let path = entry.strip_prefix(b"160000 ").and_then(|rest| rest.splitn(2, |byte| *byte == b'\t').nth(1))?;
        let path = PathBuf::from(OsStr::from_bytes(path));
        path.components().all(|part| matches!(part, Component::Normal(_))).then_some(path)
    };
    let listed = output(plan, directory, &["ls-files", "--stage", "-z"])?;
    Ok(listed.split(|byte| *byte == 0).filter_map(submodule).collect())
}

/// The output of a git query; empty if git fails.
fn output(plan: &SourcesPlan, directory: &Path, arguments: &[&str]) -> Result<Vec<u8>, SourcesError> {
    read_list(git::command(plan, directory, arguments))
}

fn read_list(mut command: Command) -> Result<Vec<u8>, SourcesError> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut answer = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(MAX_LIST_SIZE).read_to_end(&mut answer));
    child.wait()?;
    read.transpose()?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_other_protocols_are_known() {
        for address in ["ssh://git@h/a.git", "git://h/a.git", "git@h:team/a.git", "h:a", "ssh+git://h/a"] {
            assert!(is_other_protocol(address), "{address}");
        }
        for address in ["https://h:8443/a.git", "http://h/a:b", "../a.git", "/a:b", "ext::sh -c x", "file:///a", ""] {
            assert!(!is_other_protocol(address), "{address}");
        }
    }

    #[test]
    fn branches_are_assigned_to_the_paths_of_their_submodules() {
        let list = "submodule.a.b.path\nlibs/ab\0submodule.a.b.branch\ndevelop\0submodule.c.path\nc\0\
                    submodule.d.path\nd\0submodule.d.branch\n.\0submodule.e.path\ne\0submodule.e.branch\nx:refs/heads/y";
        assert_eq!(parse_branches(list), [("libs/ab".to_owned(), "develop".to_owned())]);
    }
}
