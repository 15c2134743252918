//! Finds the cause of a failed git command in the messages that git printed in the C locale: the server or the network,
//! the repository, or the files of the checkout.
//!
//! The agent discards an earlier job's checkout only for a local cause. If it did so when the server fails, every
//! runner of a fleet would clone at the same time after an outage.

/// The cause of a failed git command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server, the network, credentials, the job's options, or a machine without disk space or memory.
    Outside,
    /// Objects, refs or other files below `.git`.
    Repository,
    /// Files or directories of the checkout.
    WorkTree,
    /// No known message.
    Unknown,
}

/// Parts of messages about disk space and memory. A new clone would need more of both.
const EXHAUSTED: [&str; 4] =
    ["No space left on device", "Disk quota exceeded", "Cannot allocate memory", "Resource temporarily unavailable"];

/// Parts of messages about a damaged repository.
const REPOSITORY: [&str; 19] = [
    " is corrupt",
    " is empty",
    "bad object",
    "bad ref",
    "bad shallow line",
    "bad tree object",
    "cannot lock ref",
    "data stream error",
    "did not send all necessary objects",
    "index file",
    "invalid object",
    "invalid sha1 pointer",
    "not a git repository",
    "packfile ",
    "some local refs could not be updated",
    "unable to read",
    "unexpected line in",
    "unresolved deltas",
    "unable to parse object",
];

/// Parts of messages about objects that the server sent. Git prints some of them after messages about an object of the
/// repository.
const TRANSFER: [&str; 7] = [
    "bad pack file",
    "final sha1 did not match",
    "fsck error",
    "inflate returned",
    "pack has ",
    "pack is corrupted",
    "pack signature mismatch",
];

/// Parts of messages about an object of the repository.
const OWN_OBJECT: [&str; 6] =
    ["(stored in ", "does not match index", "object file", "packfile ", "unable to unpack", "unresolved deltas"];

/// Parts of messages about files of the checkout.
const WORK_TREE: [&str; 12] = [
    "Directory not empty",
    "File name too long",
    "Is a directory",
    "Not a directory",
    "Operation not permitted",
    "Permission denied",
    "could not open directory",
    "failed to remove",
    "unable to create",
    "unable to unlink",
    "unable to write file",
    "would be overwritten",
];

/// Parts of messages about the server and the connection to it, about options that exclude each other, and about the
/// filters of the user.
const OUTSIDE: [&str; 33] = [
    "' not found",
    "Authentication failed",
    "Connection closed",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Could not read from remote repository",
    "Could not resolve",
    "Host key verification failed",
    "Permission denied (",
    "RPC failed",
    "Server does not allow request",
    "cannot be used together",
    "clean filter",
    "could not fetch",
    "could not read Password",
    "could not read Username",
    "does not make sense",
    "couldn't find remote ref",
    "early EOF",
    "error processing shallow info",
    "expected flush",
    "external filter",
    "hung up unexpectedly",
    "not our ref",
    "not valid: is this a git repository",
    "protocol error",
    "remote error",
    "returned error:",
    "smudge filter",
    "ssh: ",
    "unable to access '",
    "unexpected disconnect",
];

/// The cause of a failed command, from its messages. Lines from the server itself (`remote: `) are ignored.
pub fn find_cause(messages: &str) -> Fault {
    let lines = || messages.lines().filter(|line| !line.starts_with("remote: "));
    let names = |parts: &[&str]| lines().any(|line| parts.iter().any(|part| line.contains(part)));
    match () {
        () if names(&EXHAUSTED) => Fault::Outside,
        () if names(&TRANSFER) && !names(&OWN_OBJECT) => Fault::Outside,
        // A damaged repository also aborts the transfer, and git reports both.
        () if names(&REPOSITORY) => Fault::Repository,
        () if names(&OUTSIDE) => Fault::Outside,
        () if names(&WORK_TREE) => Fault::WorkTree,
        () => Fault::Unknown,
    }
}

/// The last line of the messages, for a log.
pub fn last_line(messages: &str) -> String {
    const MAX_LENGTH: usize = 200;
    let line = messages.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("git failed");
    line.chars().filter(|c| !c.is_control()).take(MAX_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_server_and_a_damaged_repository_are_distinguished() {
        for (messages, fault) in [
            ("fatal: unable to access 'http://h/a.git/': The requested URL returned error: 503", Fault::Outside),
            ("fatal: unable to access 'http://h/a.git/': The requested URL returned error: 403", Fault::Outside),
            ("fatal: unable to access 'http://h/a.git/': Empty reply from server", Fault::Outside),
            ("fatal: could not read Username for 'http://h': terminal prompts disabled", Fault::Outside),
            ("fatal: repository 'http://h/a.git/' not found", Fault::Outside),
            ("fatal: couldn't find remote ref refs/heads/gone", Fault::Outside),
            ("ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote", Fault::Outside),
            ("git@h: Permission denied (publickey).", Fault::Outside),
            (
                "error: RPC failed; HTTP 503 curl 22 The requested URL returned error: 503\n\
                 fatal: expected flush after ref listing",
                Fault::Outside,
            ),
            (
                "error: RPC failed; curl 18 transfer closed with 237 bytes remaining to read\n\
                 error: 202 bytes of body are still expected\n\
                 fetch-pack: unexpected disconnect while reading sideband packet\nfatal: protocol error: bad pack header",
                Fault::Outside,
            ),
            ("fatal: early EOF\nfatal: fetch-pack: invalid index-pack output", Fault::Outside),
            ("fatal: write error: No space left on device\nfatal: packfile x is corrupt", Fault::Outside),
            ("remote: object file x is corrupt\nfatal: remote error: upload-pack: not our ref 12", Fault::Outside),
            (
                "error: inflate: data stream error (incorrect header check)\n\
                 fatal: loose object 12 (stored in .git/objects/12/34) is corrupt\nfatal: unpack-objects failed",
                Fault::Repository,
            ),
            (
                "error: inflate: data stream error (invalid code)\nerror: inflate returned -3\nfatal: unpack-objects failed",
                Fault::Outside,
            ),
            ("fatal: pack has bad object at offset 12: inflate returned -3\nfatal: index-pack failed", Fault::Outside),
            ("fatal: pack is corrupted (SHA1 mismatch)\nfatal: fetch-pack: invalid index-pack output", Fault::Outside),
            (
                "error: object 12: badDate: invalid author/committer line\nfatal: fsck error in packed object",
                Fault::Outside,
            ),
            ("fatal: unresolved deltas left after unpacking\nfatal: unpack-objects failed", Fault::Repository),
            ("fatal: options '--deepen' and '--depth' cannot be used together", Fault::Outside),
            ("error: external filter 'x' failed 1\nfatal: a.bin: smudge filter x failed", Fault::Outside),
            ("error: object file .git/objects/12/34 is empty", Fault::Repository),
            ("error: remote did not send all necessary objects", Fault::Repository),
            ("fatal: bad shallow line: garbage", Fault::Repository),
            ("fatal: unexpected line in .git/packed-refs: garbage", Fault::Repository),
            ("error: cannot lock ref 'refs/remotes/origin/a': 'refs/remotes/origin/a/b' exists", Fault::Repository),
            ("fatal: bad object refs/heads/x\nfatal: the remote end hung up unexpectedly", Fault::Repository),
            ("error: unable to unlink old 'src/a': Permission denied", Fault::WorkTree),
            ("warning: failed to remove build/: Directory not empty", Fault::WorkTree),
            ("fatal: something new", Fault::Unknown),
            ("", Fault::Unknown),
        ] {
            assert_eq!(find_cause(messages), fault, "{messages}");
        }
    }

    #[test]
    fn the_last_line_is_cleaned_for_the_log() {
        assert_eq!(last_line("one\n\x1b[31mtwo\n\n"), "[31mtwo");
        assert_eq!(last_line("\n"), "git failed");
    }
}
