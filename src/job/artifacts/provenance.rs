//! The provenance statement of artifacts: in-toto with SLSA provenance (`RUNNER_GENERATE_ARTIFACTS_METADATA`).

use std::io::{self, Read};
use std::path::PathBuf;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::archive::entry::ArchiveEntry;
use crate::archive::root::{ArchiveRoot, FileKind};
use crate::digest::hex;

/// The facts about the job in the statement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProvenanceStatement {
    /// The version of mayfly.
    pub version: String,
    /// The names of the payload's variables.
    pub variables: Vec<String>,
    /// The job's name.
    pub entry_point: String,
    /// The URL of the project.
    pub source: String,
    /// The id of the runner.
    pub runner_id: String,
    /// The name of the runner.
    pub runner: String,
    /// The executor.
    pub executor: String,
    /// The architecture of the machine.
    pub architecture: String,
    /// The job id.
    pub job: String,
    /// The commit id.
    pub sha: String,
    /// When the job started (RFC 3339).
    pub started: String,
    /// When its script ended (RFC 3339).
    pub finished: String,
}

impl ProvenanceStatement {
    /// Writes `NAME-metadata.json` to the project directory, and returns it as an entry of the archive.
    pub fn write(&self, root: &ArchiveRoot, entries: &[ArchiveEntry], name: &str) -> io::Result<ArchiveEntry> {
        let mut subjects = Vec::new();
        for entry in entries.iter().filter(|entry| entry.kind == FileKind::File) {
            // An unreadable file is not in the archive either; the archive step prints the warning.
            if let Ok(digest) = digest(root, entry) {
                subjects.push(json!({ "name": entry.path.to_string_lossy(), "digest": { "sha256": digest } }));
            }
        }
        let path = PathBuf::from(format!("{name}-metadata.json"));
        let text = serde_json::to_vec_pretty(&self.document(subjects))?;
        root.replace_file(&path, &text)?;
        Ok(ArchiveEntry { path, kind: FileKind::File })
    }

    fn document(&self, subjects: Vec<Value>) -> Value {
        let mut external: Map<String, Value> =
            crate::ordered::map(self.variables.iter().map(|key| (key.clone(), json!(""))));
        external.insert("entryPoint".to_owned(), json!(self.entry_point));
        external.insert("source".to_owned(), json!(self.source));
        json!({
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v1",
            "subject": subjects,
            "predicate": {
                "buildDefinition": {
                    "buildType": format!("urn:mayfly:provenance:v{}", self.version),
                    "externalParameters": external,
                    "internalParameters": {
                        "name": self.runner,
                        "executor": self.executor,
                        "architecture": self.architecture,
                        "job": self.job,
                    },
                    "resolvedDependencies": [{ "uri": self.source, "digest": { "sha256": self.sha } }],
                },
                "runDetails": {
                    "builder": {
                        "id": format!("{}/-/runners/{}", self.source, self.runner_id),
                        "version": { "mayfly": self.version },
                    },
                    "metadata": {
                        "invocationId": self.job,
                        "startedOn": self.started,
                        "finishedOn": self.finished,
                    },
                },
            },
        })
    }
}

fn digest(root: &ArchiveRoot, entry: &ArchiveEntry) -> io::Result<String> {
    let (mut file, _) = root.open_file(&entry.path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => context.update(&buffer[..length]),
        }
    }
    Ok(hex(context.finish().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::select::{SelectionRequest, select};

    #[test]
    fn lists_every_file_with_its_digest() {
        let project = tempfile::tempdir().unwrap();
        std::fs::write(project.path().join("a"), "abc").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", project.path().join("x-metadata.json")).unwrap();
        let root = ArchiveRoot::open(project.path()).unwrap();
        let entries =
            select(&root, &SelectionRequest { paths: vec!["a".to_owned()], ..SelectionRequest::default() }).entries;
        let statement = ProvenanceStatement {
            job: "7".to_owned(),
            variables: vec!["CI".to_owned()],
            ..ProvenanceStatement::default()
        };
        assert_eq!(statement.write(&root, &entries, "x").unwrap().path, PathBuf::from("x-metadata.json"));
        let path = project.path().join("x-metadata.json");
        assert!(!path.is_symlink(), "a planted link is replaced, not followed");
        let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(document["subject"], json!([{ "name": "a", "digest": { "sha256": sha } }]));
        assert_eq!(document["predicate"]["buildDefinition"]["externalParameters"]["CI"], "");
    }
}
