//! Makes the artifact plans from a payload.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ArtifactServer, Dependency, DownloadPlan, ProvenanceStatement, Upload, UploadFormat, UploadPlan};
use crate::archive::{ArchiveFormat, CompressionLevel};
use crate::job::flags::{self, Flags};
use crate::job::transfer::{ProjectDir, expand_like_shell, meter_frequency};
use crate::payload::variables::Variables;
use crate::payload::{Artifact, Payload};

/// The settings for artifact plans.
#[derive(Clone, Debug)]
pub struct ArtifactSettings {
    pub project: ProjectDir,
    /// `<project directory>.tmp`.
    pub temporary: PathBuf,
    pub server: ArtifactServer,
    /// The timeout of an upload.
    pub timeout: Duration,
    /// The timeout for the response after an upload.
    pub response_timeout: Duration,
}

/// The result of the job's script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptOutcome {
    Success,
    Failure,
}

impl ScriptOutcome {
    /// Whether an artifact with this `when` applies.
    pub fn matches_when(self, when: &str) -> bool {
        match when {
            "always" => true,
            "on_failure" => self == Self::Failure,
            _ => self == Self::Success,
        }
    }
}

/// The upload plan; `None` if there is nothing to upload.
pub fn upload_plan(
    payload: &Payload,
    variables: &Variables,
    settings: &ArtifactSettings,
    outcome: ScriptOutcome,
    statement: impl FnOnce() -> ProvenanceStatement,
) -> Option<UploadPlan> {
    let uploads: Vec<_> = payload
        .artifacts
        .iter()
        .filter(|artifact| outcome.matches_when(&artifact.when))
        .filter(|artifact| artifact.untracked || !artifact.paths.is_empty() || !artifact.exclude.is_empty())
        .map(|artifact| upload(artifact, variables))
        .collect();
    if uploads.is_empty() {
        return None;
    }
    let with_statement = variables.boolean("RUNNER_GENERATE_ARTIFACTS_METADATA").unwrap_or(false);
    Some(UploadPlan {
        project: settings.project.clone(),
        server: settings.server.clone(),
        job: payload.id.clone(),
        token: payload.token.clone(),
        uploads,
        level: level(variables, "ARTIFACT_COMPRESSION_LEVEL"),
        timeout: settings.timeout,
        response_timeout: settings.response_timeout,
        meter: meter_frequency(variables),
        statement: with_statement.then(statement),
    })
}

/// The download plan; `None` if no dependency has artifacts.
pub fn download_plan(
    payload: &Payload,
    variables: &Variables,
    flags: &Flags,
    settings: &ArtifactSettings,
) -> Option<DownloadPlan> {
    let dependencies: Vec<_> = payload
        .dependencies
        .iter()
        .filter(|dependency| !dependency.artifacts_file.filename.is_empty())
        .map(|dependency| Dependency {
            id: dependency.id.clone(),
            name: dependency.name.clone(),
            token: dependency.token.clone(),
        })
        .collect();
    (!dependencies.is_empty()).then(|| DownloadPlan {
        project: settings.project.clone(),
        temporary: settings.temporary.clone(),
        server: settings.server.clone(),
        dependencies,
        direct: flags.is_on(flags::FF_USE_DIRECT_DOWNLOAD),
        meter: meter_frequency(variables),
    })
}

/// A compression level by name; the default for an unknown name.
pub fn level(variables: &Variables, key: &str) -> CompressionLevel {
    variables.value(key).and_then(|name| CompressionLevel::parse(&name)).unwrap_or_default()
}

fn upload(artifact: &Artifact, variables: &Variables) -> Upload {
    let expand = |text: &String| expand_like_shell(text, &|name| variables.value(name));
    let name = artifact.name.as_ref().filter(|name| !name.is_empty()).map_or("artifacts".to_owned(), expand);
    Upload {
        name: base_name(&name),
        kind: Some(&artifact.artifact_type).filter(|kind| !kind.is_empty()).map_or("archive", |kind| kind).to_owned(),
        format: match artifact.artifact_format.as_str() {
            "gzip" => UploadFormat::Archive(ArchiveFormat::Gzip),
            "raw" => UploadFormat::Raw,
            "tarzstd" => UploadFormat::Archive(ArchiveFormat::TarZstd),
            "zipzstd" => UploadFormat::Archive(ArchiveFormat::ZipZstd),
            _ => UploadFormat::Archive(ArchiveFormat::Zip),
        },
        expire_in: artifact.expire_in.clone(),
        paths: artifact.paths.iter().map(expand).collect(),
        exclude: artifact.exclude.iter().map(expand).collect(),
        untracked: artifact.untracked,
    }
}

/// The last part of a name, as a file name; `default` if it is empty.
fn base_name(name: &str) -> String {
    let base = Path::new(name).file_name().map(|base| base.to_string_lossy().into_owned());
    base.filter(|base| !base.trim().is_empty()).unwrap_or_else(|| "default".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::files::ArtifactsFile;
    use crate::payload::{Dependency, Variable};

    fn settings() -> ArtifactSettings {
        let server = ArtifactServer {
            api: "http://h/api/v4".to_owned(),
            tls: Default::default(),
            user_agent: String::new(),
            directory: None,
        };
        let hour = Duration::from_secs(3600);
        ArtifactSettings {
            project: ProjectDir { builds: "/b".into(), directory: "/b/p".into(), seen: "/b/p".into() },
            temporary: "/b/p.tmp".into(),
            server,
            timeout: hour,
            response_timeout: hour,
        }
    }

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let mut variables = Variables::new(Path::new("/b/p.tmp"));
        for (key, value) in pairs {
            variables.push(Variable { key: (*key).to_owned(), value: (*value).to_owned(), ..Variable::default() });
        }
        variables
    }

    fn artifact(when: &str) -> Artifact {
        Artifact { paths: vec!["out/$DIR".to_owned()], when: when.to_owned(), ..Artifact::default() }
    }

    #[test]
    fn selects_artifacts_by_the_result() {
        let payload = Payload {
            id: 7.into(),
            artifacts: vec![artifact(""), artifact("on_failure"), artifact("always"), Artifact::default()],
            ..Payload::default()
        };
        let plan =
            |outcome| upload_plan(&payload, &variables(&[("DIR", "x")]), &settings(), outcome, || unreachable!());
        assert_eq!(plan(ScriptOutcome::Success).unwrap().uploads.len(), 2);
        assert_eq!(plan(ScriptOutcome::Failure).unwrap().uploads.len(), 2);
        assert_eq!(plan(ScriptOutcome::Success).unwrap().uploads[0].paths, ["out/x"]);
        let none = Payload { artifacts: vec![artifact("on_failure")], ..Payload::default() };
        assert!(upload_plan(&none, &variables(&[]), &settings(), ScriptOutcome::Success, || unreachable!()).is_none());
    }

    #[test]
    fn a_name_is_the_last_part_of_its_expansion() {
        let named = |name: Option<&str>| {
            upload(&Artifact { name: name.map(str::to_owned), ..artifact("") }, &variables(&[("REF", "feature/x")]))
                .name
        };
        assert_eq!(named(None), "artifacts");
        assert_eq!(named(Some("build-$REF")), "x");
        assert_eq!(named(Some("$NOTHING")), "default");
        assert_eq!(named(Some(".")), "default");
        assert_eq!(named(Some("../..")), "default");
        assert_eq!(named(Some("a b\"c")), "a b\"c");
    }

    #[test]
    fn skips_dependencies_without_artifacts() {
        let file = ArtifactsFile { filename: "artifacts.zip".to_owned(), size: 1 };
        let payload = Payload {
            dependencies: vec![
                Dependency { id: 1.into(), artifacts_file: file, ..Dependency::default() },
                Dependency { id: 2.into(), ..Dependency::default() },
            ],
            ..Payload::default()
        };
        let (flags, _) = Flags::resolve(&Default::default(), &|_| None);
        let plan = download_plan(&payload, &variables(&[]), &flags, &settings()).unwrap();
        assert_eq!(plan.dependencies.iter().map(|dependency| dependency.id.to_string()).collect::<Vec<_>>(), ["1"]);
    }
}
