//! Verifies objects in a repository that an earlier job could have changed.
//!
//! Git does not hash a stored object again for a checkout. So the agent hashes the commit, all its trees and every blob
//! that git writes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::{ChildStdout, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::index::{IndexEntry, KnownFiles};
use super::record::CheckoutRecord;
use super::{SourcesError, SourcesPlan, git, object_id, unchanged};
use crate::digest::hex;

/// Limit for the size of a commit or tree.
const MAX_OBJECT_SIZE: u64 = 256 << 20;

/// Limit for the total size of all trees of a commit.
const MAX_TREES_SIZE: u64 = 1 << 30;

/// The files of a commit, from verified objects. Errors: an object is missing or has another content.
pub fn commit(plan: &SourcesPlan) -> Result<Vec<IndexEntry>, SourcesError> {
    let listed = git_output(plan, &["ls-tree", "-r", "-t", "-z", "--full-tree", &plan.sha]);
    let listed = listed.map_err(|failure| why_missing(plan, failure))?;
    let of_tree = |line: &[u8]| {
        let words = std::str::from_utf8(line.split(|byte| *byte == b'\t').next()?).ok()?;
        words.strip_prefix("040000 tree ").filter(|oid| object_id::is_valid(oid)).map(str::to_owned)
    };
    let mut wanted: Vec<String> = listed.split(|byte| *byte == 0).filter_map(of_tree).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let commit = read(plan, std::slice::from_ref(&plan.sha), "commit")?;
    let top = commit.values().next().and_then(|content| {
        let line = content.strip_prefix(b"tree ")?.split(|byte| *byte == b'\n').next()?;
        std::str::from_utf8(line).ok().filter(|oid| object_id::is_valid(oid)).map(str::to_owned)
    });
    let top = top.ok_or_else(|| SourcesError::Repository(format!("commit {} names no tree", plan.sha)))?;
    wanted.push(top.clone());
    let trees = read(plan, &wanted, "tree")?;
    walk(&trees, top, plan)
}

/// Why the trees of the commit cannot be listed: the commit was not fetched, or the repository is damaged.
fn why_missing(plan: &SourcesPlan, failure: SourcesError) -> SourcesError {
    let is_ok = |arguments: &[&str]| {
        let mut command = git::command(plan, &plan.project, arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let is_there = is_ok(&["cat-file", "-e", &format!("{}^{{commit}}", plan.sha)]);
    // All commits that the refs lead to are present, so the repository is not damaged: the server did not send this
    // commit.
    if !is_there && is_ok(&["rev-list", "--quiet", "--all"]) {
        println!("commit {} was not fetched: it was removed from its branch, or is deeper than GIT_DEPTH", plan.sha);
        return failure;
    }
    SourcesError::Repository(format!("commit {} or one of its trees cannot be read", plan.sha))
}

/// The files of a tree and its subtrees.
fn walk(trees: &HashMap<String, Vec<u8>>, top: String, plan: &SourcesPlan) -> Result<Vec<IndexEntry>, SourcesError> {
    let length = object_id::algorithm(plan).output_len();
    let mut entries = Vec::new();
    let mut waiting = vec![(top, Vec::new())];
    while let Some((oid, above)) = waiting.pop() {
        let damaged = || SourcesError::Repository(format!("tree {oid} is missing or cannot be read"));
        let mut rest = trees.get(&oid).ok_or_else(damaged)?.as_slice();
        while !rest.is_empty() {
            // The format of an entry is `<mode> <name>\0<object>`.
            let end = rest.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
            let space = rest[..end].iter().position(|byte| *byte == b' ').ok_or_else(damaged)?;
            let mode = std::str::from_utf8(&rest[..space]).ok().and_then(|text| u32::from_str_radix(text, 8).ok());
            let (mode, name) = (mode.ok_or_else(damaged)?, &rest[space + 1..end]);
            let object = rest.get(end + 1..end + 1 + length).ok_or_else(damaged)?;
            let path = [above.as_slice(), name].concat();
            match mode {
                0o40_000 => waiting.push((hex(object), [path.as_slice(), b"/"].concat())),
                _ => entries.push(IndexEntry { mode, oid: hex(object), path }),
            }
            rest = &rest[end + 1 + length..];
        }
    }
    Ok(entries)
}

/// Verifies the blobs that git read for files that were not known before. Errors: the content of a blob does not match
/// its object id.
pub fn blobs(plan: &SourcesPlan, entries: Vec<IndexEntry>, known: &KnownFiles) -> Result<(), SourcesError> {
    let is_known = |entry: &IndexEntry| known.get(&entry.path).is_some_and(|(oid, _)| *oid == entry.oid);
    let is_blob = |entry: &IndexEntry| entry.mode != 0o160_000;
    let mut written: Vec<IndexEntry> = entries.into_iter().filter(|entry| is_blob(entry) && !is_known(entry)).collect();
    // Most files have the content of their blobs; the others were converted by git (line ends, filters).
    let plain = unchanged::find(plan, &written, &CheckoutRecord::default())?;
    written.retain(|entry| !plain.contains_key(&entry.path));
    let mut converted: Vec<String> = written.into_iter().map(|entry| entry.oid).collect();
    converted.sort_unstable();
    converted.dedup();
    for_each_object(plan, &converted, "blob", &mut |oid, size, content| {
        check(oid, &object_id::hash_reader(plan, "blob", size, content)?, "blob")
    })
}

fn check(oid: &str, hash: &str, kind: &str) -> Result<(), SourcesError> {
    match oid == hash {
        true => Ok(()),
        false => Err(SourcesError::Repository(format!("{kind} {oid} was replaced with other content"))),
    }
}

/// Reads and verifies objects.
fn read(plan: &SourcesPlan, oids: &[String], kind: &str) -> Result<HashMap<String, Vec<u8>>, SourcesError> {
    let mut found = HashMap::new();
    let mut left = MAX_TREES_SIZE;
    for_each_object(plan, oids, kind, &mut |oid, size, reader| {
        if size > MAX_OBJECT_SIZE.min(left) {
            return Err(SourcesError::Repository(format!("{kind} {oid} is too large: {size} bytes")));
        }
        left -= size;
        let mut content = Vec::new();
        reader.take(size).read_to_end(&mut content)?;
        check(oid, &object_id::hash_reader(plan, kind, size, &mut content.as_slice())?, kind)?;
        found.insert(oid.to_owned(), content);
        Ok(())
    })?;
    Ok(found)
}

type ObjectHandler<'a> = dyn FnMut(&str, u64, &mut dyn Read) -> Result<(), SourcesError> + 'a;

/// Lets git read objects one after the other. Errors: an object is missing or has another type.
fn for_each_object(
    plan: &SourcesPlan,
    oids: &[String],
    kind: &str,
    each: &mut ObjectHandler<'_>,
) -> Result<(), SourcesError> {
    if oids.is_empty() {
        return Ok(());
    }
    // The list is a file and not a pipe, so that git and the agent cannot block each other.
    let mut list = File::from(memfd_create(c"objects", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
    list.write_all((oids.join("\n") + "\n").as_bytes())?;
    list.rewind()?;
    let mut command = git::command(plan, &plan.project, &["cat-file", "--batch", "--buffer"]);
    let mut child = command.stdin(Stdio::from(OwnedFd::from(list))).stdout(Stdio::piped()).spawn()?;
    let outcome = match child.stdout.take() {
        Some(stdout) => read_objects(&mut BufReader::with_capacity(256 << 10, stdout), oids, kind, each),
        None => Ok(()),
    };
    if outcome.is_err() {
        child.kill()?;
    }
    child.wait()?;
    outcome
}

/// Parses `<object> <kind> <size>\n<content>\n` for each object.
fn read_objects(
    reader: &mut BufReader<ChildStdout>,
    oids: &[String],
    kind: &str,
    each: &mut ObjectHandler<'_>,
) -> Result<(), SourcesError> {
    const MAX_HEADER_SIZE: u64 = 256;
    for oid in oids {
        let mut header = String::new();
        reader.by_ref().take(MAX_HEADER_SIZE).read_line(&mut header)?;
        let size = header.trim_end().strip_prefix(&format!("{oid} {kind} ")).and_then(|size| size.parse().ok());
        let size: u64 = size.ok_or_else(|| SourcesError::Repository(format!("{kind} {oid} is missing")))?;
        let mut content = reader.by_ref().take(size);
        each(oid, size, &mut content)?;
        if content.limit() > 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        reader.by_ref().take(1).read_exact(&mut [0])?;
    }
    Ok(())
}

fn git_output(plan: &SourcesPlan, arguments: &[&str]) -> Result<Vec<u8>, SourcesError> {
    const MAX_LIST_SIZE: u64 = 512 << 20;
    let mut child = git::command(plan, &plan.project, arguments).stdout(Stdio::piped()).spawn()?;
    let mut text = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(MAX_LIST_SIZE).read_to_end(&mut text));
    if text.len() as u64 == MAX_LIST_SIZE {
        child.kill()?;
    }
    let status = child.wait()?;
    read.transpose()?;
    match status.code() {
        Some(0) => Ok(text),
        code => Err(SourcesError::Git(code.unwrap_or(-1))),
    }
}
