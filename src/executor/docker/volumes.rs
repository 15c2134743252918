//! Volumes of a job: directories of the machine, caches that later jobs of the same project find again, and those that go
//! with the job.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::engine::spec::CreateVolume;
use super::names::digest;
use crate::config::docker::Docker;
use crate::failure::JobError;

/// What volumes follow from.
pub struct VolumeSettings<'a> {
    /// What is configured.
    pub docker: &'a Docker,
    /// The job's directories, as its containers see them: where builds are, and the project's.
    pub builds: &'a Path,
    /// See `builds`.
    pub project: &'a Path,
    /// Where builds are on the machine.
    pub host_builds: &'a Path,
    /// Tells runners, machines, projects and concurrent jobs apart: caches are found by it.
    pub owner: String,
    /// The beginning of the names of what goes with the job.
    pub prefix: &'a str,
    /// The job is for a protected branch or tag: others must not reach its caches.
    pub protected: bool,
    /// Labels of volumes.
    pub labels: &'a BTreeMap<String, String>,
    /// Replaces variables.
    pub expand: &'a dyn Fn(&str) -> String,
}

/// What containers get.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volumes {
    /// `source:destination[:mode]`
    pub binds: Vec<String>,
    /// To be made before.
    pub to_create: Vec<CreateVolume>,
    /// Names of those that go with the job.
    pub temporary: Vec<String>,
}

/// `[source:]destination[:mode]`, taken apart.
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

/// Whether a word is a mode and no place.
fn is_mode(text: &str) -> bool {
    const MODES: [&str; 13] =
        ["ro", "rw", "O", "z", "Z", "shared", "slave", "private", "rshared", "rslave", "rprivate", "nocopy", "cached"];
    text.split(',').all(|word| MODES.contains(&word))
}

/// The volumes of a job. Errors: a place that is none, or that is given twice.
pub fn of_job(settings: &VolumeSettings<'_>) -> Result<Volumes, JobError> {
    let mut volumes = Volumes::default();
    let mut taken = BTreeSet::new();
    let mut covered = false;
    for text in &settings.docker.volumes {
        let spec = VolumeSpec::parse(text);
        let destination = destination(settings, spec.destination)?;
        if !taken.insert(destination.clone()) {
            return Err(JobError::configuration(format!(
                "`volumes` below [runners.docker] has {} twice",
                destination.display()
            )));
        }
        covered |= destination == settings.builds;
        let mode = spec.mode.map(|mode| format!(":{mode}")).unwrap_or_default();
        let source = match spec.source {
            Some(source) => source.to_owned(),
            // The machine's own directory of builds, whatever the volume for it would be.
            None if destination == settings.builds => settings.host_builds.display().to_string(),
            None => cache(settings, &destination, &mut volumes),
        };
        volumes.binds.push(format!("{source}:{}{mode}", destination.display()));
    }
    if !covered {
        volumes.binds.insert(0, format!("{}:{}", settings.host_builds.display(), settings.builds.display()));
    }
    Ok(volumes)
}

/// The directory of the machine that is configured for builds, if there is one: `src:dest` with the builds directory for
/// `dest`.
pub fn configured_builds(docker: &Docker, builds: &Path) -> Option<PathBuf> {
    let of = docker.volumes.iter().map(|text| VolumeSpec::parse(text));
    let found = of.filter(|spec| Path::new(spec.destination) == builds).find_map(|spec| spec.source);
    found.filter(|source| source.starts_with('/')).map(PathBuf::from)
}

fn destination(settings: &VolumeSettings<'_>, text: &str) -> Result<PathBuf, JobError> {
    let expanded = (settings.expand)(text);
    // A join with an absolute path is that path.
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
        let message = format!("`volumes` below [runners.docker]: `{text}` is no place for a volume");
        return Err(JobError::configuration(message));
    }
    Ok(plain)
}

/// A directory as the engine wants it, which takes anything else for the name of a volume.
fn absolute(directory: &str) -> PathBuf {
    std::path::absolute(directory).unwrap_or_else(|_| PathBuf::from(directory))
}

/// What later jobs of the same project find again at this place, unless that is not wanted.
fn cache(settings: &VolumeSettings<'_>, destination: &Path, volumes: &mut Volumes) -> String {
    let place = &digest(&destination.display().to_string())[..32];
    let owner = format!("runner-{}", &digest(&settings.owner)[..32]);
    let protected = if settings.protected { "-protected" } else { "" };
    let temporary = settings.docker.disable_cache;
    if !settings.docker.cache_dir.is_empty() && !temporary {
        let directory = absolute(&settings.docker.cache_dir);
        return directory.join(owner).join(format!("{place}{protected}")).display().to_string();
    }
    let name = match temporary {
        true => format!("{}-cache-{place}", settings.prefix),
        false => format!("{owner}-cache-{place}{protected}"),
    };
    let mut labels = settings.labels.clone();
    if temporary {
        volumes.temporary.push(name.clone());
        labels.insert(super::names::LIFETIME.to_owned(), "true".to_owned());
    } else {
        // It outlives the job, and what sweeps for the job must not find it.
        labels.retain(|key, _| !key.starts_with("io.mayfly."));
    }
    labels.insert("com.gitlab.gitlab-runner.destination".to_owned(), destination.display().to_string());
    labels.insert("com.gitlab.gitlab-runner.protected".to_owned(), settings.protected.to_string());
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

    fn of(docker: &Docker, protected: bool) -> Result<Volumes, JobError> {
        of_job(&VolumeSettings {
            docker,
            builds: Path::new("/builds"),
            project: Path::new("/builds/a/b"),
            host_builds: Path::new("/var/builds/1"),
            owner: "t-s-9-0".to_owned(),
            prefix: "runner-x",
            protected,
            labels: &BTreeMap::new(),
            expand: &|text| text.replace("$WHERE", "/where"),
        })
    }

    fn with(volumes: &[&str]) -> Docker {
        Docker { volumes: volumes.iter().map(|text| (*text).to_owned()).collect(), ..Docker::default() }
    }

    #[test]
    fn a_directory_of_the_machine_is_bound_as_it_is_written() {
        let volumes = of(&with(&["/srv/data:/data:ro", "named:/named", "/x:$WHERE:rw,z"]), false).expect("volumes");
        assert_eq!(volumes.binds, ["/var/builds/1:/builds", "/srv/data:/data:ro", "named:/named", "/x:/where:rw,z"]);
        assert!(volumes.to_create.is_empty());
    }

    #[test]
    fn a_cache_is_found_again_by_the_same_project_and_by_no_unprotected_job() {
        let docker = with(&["/cache", "relative"]);
        let volumes = of(&docker, false).expect("volumes");
        assert_eq!(volumes.to_create.len(), 2);
        assert!(volumes.binds[1].starts_with("runner-") && volumes.binds[1].ends_with(":/cache"));
        assert!(volumes.binds[2].ends_with(":/builds/a/b/relative"));
        assert!(volumes.temporary.is_empty());
        assert_eq!(of(&docker, false).expect("volumes"), volumes);
        assert!(of(&docker, true).expect("volumes").to_create[0].name.ends_with("-protected"));
        let directory = Docker { cache_dir: "/srv/caches/".to_owned(), ..docker.clone() };
        assert!(of(&directory, false).expect("volumes").binds[1].starts_with("/srv/caches/runner-"));
        let relative = Docker { cache_dir: "caches".to_owned(), ..docker.clone() };
        assert!(of(&relative, false).expect("volumes").binds[1].starts_with('/'));
        let none = Docker { disable_cache: true, ..docker };
        assert_eq!(of(&none, false).expect("volumes").temporary.len(), 2);
    }

    #[test]
    fn places_that_are_none_are_refused() {
        for volumes in [&["/"][..], &["/src:/"], &["/a", "/a"], &["../../../.."]] {
            assert!(of(&with(volumes), false).is_err(), "{volumes:?}");
        }
    }

    #[test]
    fn builds_may_be_configured() {
        let docker = with(&["/srv/builds:/builds", "/cache"]);
        assert_eq!(configured_builds(&docker, Path::new("/builds")), Some(PathBuf::from("/srv/builds")));
        assert_eq!(configured_builds(&with(&["/builds", "named:/builds"]), Path::new("/builds")), None);
    }
}
