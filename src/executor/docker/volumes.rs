//! The volumes of a job: directories of the machine, caches that later jobs of the same project reuse, and temporary
//! volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::engine::spec::CreateVolume;
use super::names::digest;
use crate::config::docker::DockerConfig;
use crate::failure::JobError;

/// The input for planning volumes.
pub struct VolumeSettings<'a> {
    pub docker: &'a DockerConfig,
    /// The builds directory, as containers see it.
    pub builds: &'a Path,
    /// The project directory, as containers see it.
    pub project: &'a Path,
    /// The builds directory on the machine.
    pub host_builds: &'a Path,
    /// Identifies runner, machine, project and concurrent job; part of the names of caches.
    pub owner: String,
    /// The prefix of the names of temporary volumes.
    pub prefix: &'a str,
    /// Whether the job is for a protected branch or tag: other jobs must not access its caches.
    pub is_protected: bool,
    pub labels: &'a BTreeMap<String, String>,
    pub expand: &'a dyn Fn(&str) -> String,
}

/// The volumes of a job's containers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volumes {
    /// `source:destination[:mode]`
    pub binds: Vec<String>,
    /// Volumes to create first.
    pub to_create: Vec<CreateVolume>,
    /// The names of volumes that are removed with the job.
    pub temporary: Vec<String>,
}

/// A parsed `[source:]destination[:mode]`.
struct VolumeSpec<'a> {
    source: Option<&'a str>,
    destination: &'a str,
    mode: Option<&'a str>,
}

impl<'a> VolumeSpec<'a> {
    fn parse(text: &'a str) -> Self {
        let parts: Vec<&str> = text.splitn(3, ':').collect();
        match parts[..] {
            [source, destination, mode] => Self { source: Some(source), destination, mode: Some(mode) },
            [source, destination] if is_mode(destination) => {
                Self { source: None, destination: source, mode: Some(destination) }
            }
            [source, destination] => Self { source: Some(source), destination, mode: None },
            _ => Self { source: None, destination: text, mode: None },
        }
    }
}

/// Whether a word is a mount mode.
fn is_mode(text: &str) -> bool {
    const MODES: [&str; 13] =
        ["ro", "rw", "O", "z", "Z", "shared", "slave", "private", "rshared", "rslave", "rprivate", "nocopy", "cached"];
    text.split(',').all(|word| MODES.contains(&word))
}

/// Plans the volumes of a job. Fails for an invalid or duplicate destination.
pub fn plan_volumes(settings: &VolumeSettings<'_>) -> Result<Volumes, JobError> {
    let mut volumes = Volumes::default();
    let mut taken = BTreeSet::new();
    let mut has_builds = false;
    for text in &settings.docker.volumes {
        let spec = VolumeSpec::parse(text);
        let destination = destination(settings, spec.destination)?;
        if !taken.insert(destination.clone()) {
            return Err(JobError::configuration(format!(
                "`volumes` below [runners.docker] has {} twice",
                destination.display()
            )));
        }
        has_builds |= destination == settings.builds;
        let mode = spec.mode.map(|mode| format!(":{mode}")).unwrap_or_default();
        let source = match spec.source {
            Some(source) => source.to_owned(),
            // A volume without a source whose destination is the builds directory gets the builds directory of the
            // machine.
            None if destination == settings.builds => settings.host_builds.display().to_string(),
            None => plan_cache(settings, &destination, &mut volumes),
        };
        volumes.binds.push(format!("{source}:{}{mode}", destination.display()));
    }
    if !has_builds {
        volumes.binds.insert(0, format!("{}:{}", settings.host_builds.display(), settings.builds.display()));
    }
    Ok(volumes)
}

/// The configured directory of the machine for builds: the source of a volume whose destination is the builds
/// directory.
pub fn configured_builds(docker: &DockerConfig, builds: &Path) -> Option<PathBuf> {
    let specs = docker.volumes.iter().map(|text| VolumeSpec::parse(text));
    let found = specs.filter(|spec| Path::new(spec.destination) == builds).find_map(|spec| spec.source);
    found.filter(|source| source.starts_with('/')).map(PathBuf::from)
}

fn destination(settings: &VolumeSettings<'_>, text: &str) -> Result<PathBuf, JobError> {
    let expanded = (settings.expand)(text);
    // `Path::join` with an absolute path returns that path.
    let path = settings.project.join(&expanded);
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    if plain == Path::new("/") || expanded.contains([':', '\0']) {
        let message = format!("`volumes` below [runners.docker]: `{text}` is not a valid destination for a volume");
        return Err(JobError::configuration(message));
    }
    Ok(plain)
}

/// Makes a path absolute: the engine takes a relative path for the name of a volume.
fn absolute(directory: &str) -> PathBuf {
    std::path::absolute(directory).unwrap_or_else(|_| PathBuf::from(directory))
}

/// The volume for a destination without a source: a cache for later jobs of the project, or a temporary one if caches
/// are disabled.
fn plan_cache(settings: &VolumeSettings<'_>, destination: &Path, volumes: &mut Volumes) -> String {
    let path_digest = &digest(&destination.display().to_string())[..32];
    let owner = format!("runner-{}", &digest(&settings.owner)[..32]);
    let protected = if settings.is_protected { "-protected" } else { "" };
    let temporary = settings.docker.disable_cache;
    if !settings.docker.cache_dir.is_empty() && !temporary {
        let directory = absolute(&settings.docker.cache_dir);
        return directory.join(owner).join(format!("{path_digest}{protected}")).display().to_string();
    }
    let name = match temporary {
        true => format!("{}-cache-{path_digest}", settings.prefix),
        false => format!("{owner}-cache-{path_digest}{protected}"),
    };
    let mut labels = settings.labels.clone();
    if temporary {
        volumes.temporary.push(name.clone());
        labels.insert(super::names::TEMPORARY.to_owned(), "true".to_owned());
    } else {
        // The cache outlives the job, so it must not have the labels by which the job's objects are removed.
        let state = labels.remove(super::names::STATE).unwrap_or_default();
        labels.retain(|key, _| !key.starts_with("io.mayfly."));
        labels.insert(super::names::CACHE_OF.to_owned(), state);
    }
    labels.insert("com.gitlab.gitlab-runner.destination".to_owned(), destination.display().to_string());
    labels.insert("com.gitlab.gitlab-runner.protected".to_owned(), settings.is_protected.to_string());
    volumes.to_create.push(CreateVolume {
        name: name.clone(),
        driver: settings.docker.volume_driver.clone(),
        driver_opts: settings.docker.volume_driver_ops.clone(),
        labels,
    });
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unprotected(docker: &DockerConfig) -> Result<Volumes, JobError> {
        plan_volumes(&VolumeSettings { is_protected: false, ..settings(docker) })
    }

    fn protected(docker: &DockerConfig) -> Result<Volumes, JobError> {
        plan_volumes(&VolumeSettings { is_protected: true, ..settings(docker) })
    }

    fn settings(docker: &DockerConfig) -> VolumeSettings<'_> {
        const NO_LABELS: &BTreeMap<String, String> = &BTreeMap::new();
        VolumeSettings {
            docker,
            builds: Path::new("/builds"),
            project: Path::new("/builds/a/b"),
            host_builds: Path::new("/var/builds/1"),
            owner: "t-s-9-0".to_owned(),
            prefix: "runner-x",
            is_protected: false,
            labels: NO_LABELS,
            expand: &|text| text.replace("$WHERE", "/where"),
        }
    }

    fn configured(volumes: &[&str]) -> DockerConfig {
        DockerConfig { volumes: volumes.iter().map(|text| (*text).to_owned()).collect(), ..DockerConfig::default() }
    }

    #[test]
    fn binds_a_directory_of_the_machine_as_written() {
        let volumes = unprotected(&configured(&["/srv/data:/data:ro", "named:/named", "/x:$WHERE:rw,z"]))
            .expect("the volumes must be valid");
        assert_eq!(volumes.binds, ["/var/builds/1:/builds", "/srv/data:/data:ro", "named:/named", "/x:/where:rw,z"]);
        assert!(volumes.to_create.is_empty());
    }

    #[test]
    fn a_cache_is_reused_by_the_same_project_and_protection() {
        let docker = configured(&["/cache", "relative"]);
        let volumes = unprotected(&docker).expect("the volumes must be valid");
        assert_eq!(volumes.to_create.len(), 2);
        assert!(volumes.binds[1].starts_with("runner-") && volumes.binds[1].ends_with(":/cache"));
        assert!(volumes.binds[2].ends_with(":/builds/a/b/relative"));
        assert!(volumes.temporary.is_empty());
        assert_eq!(unprotected(&docker).expect("the volumes must be valid"), volumes);
        assert!(protected(&docker).expect("the volumes must be valid").to_create[0].name.ends_with("-protected"));
        let directory = DockerConfig { cache_dir: "/srv/caches/".to_owned(), ..docker.clone() };
        assert!(
            unprotected(&directory).expect("the volumes must be valid").binds[1].starts_with("/srv/caches/runner-")
        );
        let relative = DockerConfig { cache_dir: "caches".to_owned(), ..docker.clone() };
        assert!(unprotected(&relative).expect("the volumes must be valid").binds[1].starts_with('/'));
        let none = DockerConfig { disable_cache: true, ..docker };
        assert_eq!(unprotected(&none).expect("the volumes must be valid").temporary.len(), 2);
    }

    #[test]
    fn refuses_invalid_destinations() {
        for volumes in [&["/"][..], &["/src:/"], &["/a", "/a"], &["../../../.."]] {
            assert!(unprotected(&configured(volumes)).is_err(), "{volumes:?}");
        }
    }

    #[test]
    fn the_builds_directory_can_be_configured() {
        let docker = configured(&["/srv/builds:/builds", "/cache"]);
        assert_eq!(configured_builds(&docker, Path::new("/builds")), Some(PathBuf::from("/srv/builds")));
        assert_eq!(configured_builds(&configured(&["/builds", "named:/builds"]), Path::new("/builds")), None);
    }
}
