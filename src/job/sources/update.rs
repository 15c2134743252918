//! Updates a checkout to the commit of a job: fetch, checkout, cleaning, large files, submodules.
//!
//! Files of an earlier job are reused as far as they are undamaged. If the repository is damaged, only the repository
//! is fetched again; if files cannot be replaced or removed, the whole directory is; if the server fails, nothing is
//! removed.

use super::fault::{self, Fault};
use super::git::Echo;
use super::index::{self, IndexEntry, KnownFiles};
use super::record::{self, CheckoutRecord};
use super::repository::{self, RepositoryOrigin};
use super::{GREEN, GitStrategy, RESET, SourcesError, SourcesPlan, YELLOW};
use super::{clean, external, git, large_files, redirect, remove, submodules, unchanged, verify, worktree};

/// Updates the project directory to the commit. Errors: see [`SourcesError`].
pub fn update(plan: &SourcesPlan) -> Result<(), SourcesError> {
    let mut before = repository::prepare(plan)?;
    external::write(plan, &[])?;
    let mut is_emptied = false;
    loop {
        let why = match try_update(plan, before) {
            Ok(()) => break,
            // In a partial clone, objects are missing if the server does not answer; the repository is not damaged.
            Err(SourcesError::Repository(_)) if plan.is_partial() && !server_answers(plan) => {
                return Err(SourcesError::Git(128));
            }
            Err(SourcesError::Repository(why)) if before == RepositoryOrigin::Reused => {
                println!(
                    "{YELLOW}WARNING: the repository of an earlier job is damaged ({why}); fetching it again{RESET}"
                );
                repository::discard(plan)?;
                before = repository::prepare(plan)?;
                continue;
            }
            Err(SourcesError::WorkTree(why)) if !is_emptied => why,
            Err(SourcesError::Io(error)) if !is_emptied && !SourcesError::is_of_machine(&error) => error.to_string(),
            Err(failure) => return Err(failure),
        };
        println!(
            "{YELLOW}WARNING: the files of an earlier job cannot be reused ({why}); starting with an empty \
             directory{RESET}"
        );
        is_emptied = true;
        remove::empty(&plan.project)?;
        before = repository::prepare(plan)?;
    }
    if plan.checkout {
        large_files::pull(plan, &plan.project)?;
    }
    submodules::update(plan)?;
    if plan.checkout && plan.strategy == GitStrategy::Fetch {
        CheckoutRecord::write(plan)?;
    }
    Ok(())
}

/// Updates the checkout without large files and submodules. Errors: [`SourcesError::Repository`] and
/// [`SourcesError::WorkTree`] only if the repository or the files of an earlier job are the cause.
fn try_update(plan: &SourcesPlan, before: RepositoryOrigin) -> Result<(), SourcesError> {
    match plan.depth {
        1.. => println!("{GREEN}Fetching changes with git depth set to {}...{RESET}", plan.depth),
        _ => println!("{GREEN}Fetching changes...{RESET}"),
    }
    // The work tree may contain files of an earlier job even if the repository is new.
    let nested = worktree::sanitise(&plan.project)?;
    let known = if before == RepositoryOrigin::Created {
        println!("{GREEN}Created fresh repository.{RESET}");
        None
    } else {
        Some(reuse(plan)?)
    };
    fetch_refs(plan, before)?;
    repository::record_format(plan)?;
    check_out(plan, known.as_ref())?;
    Ok(worktree::remove_planted(plan, &nested)?)
}

/// Makes the checkout of an earlier job usable; returns the files of the work tree that match the index.
fn reuse(plan: &SourcesPlan) -> Result<KnownFiles, SourcesError> {
    let record = CheckoutRecord::read(plan);
    record::remove_unknown_large_files(plan, &record)?;
    let known = unchanged::rebuild_index(plan, &record)?;
    known.ok_or_else(|| SourcesError::Repository("its index cannot be read".to_owned()))
}

fn fetch_refs(plan: &SourcesPlan, before: RepositoryOrigin) -> Result<(), SourcesError> {
    let agent = format!("http.userAgent={}", plan.user_agent);
    let depth = plan.depth.to_string();
    let mut arguments = vec!["-c", &agent, "fetch", "origin", "--no-recurse-submodules"];
    arguments.extend(plan.refspecs.iter().map(String::as_str));
    if plan.depth > 0 {
        arguments.extend(["--depth", &depth]);
    } else if plan.project.join(".git/shallow").exists() {
        arguments.push("--unshallow");
    }
    arguments.extend(plan.fetch_flags.iter().map(String::as_str));
    let fetch = || git::run_with_messages(plan, &plan.project, &arguments, Echo::Yes);
    let mut ended = fetch()?;
    if !ended.is_ok() && redirect::follow(plan, &[])? {
        ended = fetch()?;
    }
    if ended.is_ok() {
        return Ok(());
    }
    let is_damaged = before == RepositoryOrigin::Reused
        && !ended.was_killed
        && match fault::find_cause(&ended.messages) {
            Fault::Outside => false,
            Fault::Repository | Fault::WorkTree => true,
            Fault::Unknown => server_answers(plan),
        };
    Err(match is_damaged {
        true => SourcesError::Repository(fault::last_line(&ended.messages)),
        false => SourcesError::Git(ended.code),
    })
}

/// Whether the server returns a list of refs for the job.
fn server_answers(plan: &SourcesPlan) -> bool {
    let listed = git::run_with_messages(plan, &plan.project, &["ls-remote", "--quiet", "origin", "HEAD"], Echo::No);
    listed.is_ok_and(|ended| ended.is_ok())
}

fn check_out(plan: &SourcesPlan, known: Option<&KnownFiles>) -> Result<(), SourcesError> {
    if !plan.checkout {
        println!("{GREEN}Skipping Git checkout{RESET}");
        return Ok(());
    }
    let short: String = plan.sha.chars().take(8).collect();
    println!("{GREEN}Checking out {short} as detached HEAD (ref is {})...{RESET}", plan.reference);
    match known {
        // The repository is new: git has just received and hashed all objects.
        None => write_files(plan, &[], known)?,
        Some(known) => {
            let entries = verify::commit(plan)?;
            write_files(plan, &entries, Some(known))?;
            verify::blobs(plan, entries, known)?;
        }
    }
    // A new repository in an empty directory needs no cleaning.
    let was_empty = plan.strategy == GitStrategy::Clone && known.is_none();
    if was_empty { Ok(()) } else { clean::clean(plan, &plan.project) }
}

/// Lets git write the files of the commit. `entries`: its files, if they are known.
fn write_files(plan: &SourcesPlan, entries: &[IndexEntry], known: Option<&KnownFiles>) -> Result<(), SourcesError> {
    let arguments = ["-c", "submodule.recurse=false", "checkout", "-f", "-q", "--detach", &plan.sha];
    let check_out = |echo| git::run_with_messages(plan, &plan.project, &arguments, echo);
    let mut ended = check_out(Echo::No)?;
    if fault::find_cause(&ended.messages) == Fault::WorkTree && !ended.is_ok() {
        // Give permissions on the directories of the present files and of the files of the commit.
        let present = index::list(plan)?.unwrap_or_default();
        let tracked = present.iter().chain(entries).filter_map(IndexEntry::path_below);
        let changed = clean::make_parents_accessible(&plan.project, tracked)?;
        clean::warn_of_changed_permissions(changed);
        if changed > 0 {
            ended = check_out(Echo::No)?;
        }
    }
    eprint!("{}", ended.messages);
    if ended.is_ok() {
        return Ok(());
    }
    let why = fault::last_line(&ended.messages);
    Err(match fault::find_cause(&ended.messages) {
        _ if ended.was_killed => SourcesError::Git(ended.code),
        Fault::Outside => SourcesError::Git(ended.code),
        Fault::Repository => SourcesError::Repository(why),
        Fault::WorkTree => SourcesError::WorkTree(why),
        // If the commit is missing, the checkout is not the cause.
        Fault::Unknown if known.is_none() => SourcesError::Git(ended.code),
        Fault::Unknown => SourcesError::WorkTree(why),
    })
}
