//! Plans the services of a job: images, aliases, environment.

use std::collections::BTreeSet;

use super::super::resolved_image::{self, Expand, ResolvedImage};
use crate::config::docker::DockerConfig;
use crate::failure::JobError;
use crate::payload::Image;

/// A service to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    pub resolved: ResolvedImage,
    /// Its network aliases.
    pub aliases: Vec<String>,
    /// `KEY=VALUE`
    pub environment: Vec<String>,
}

/// Plans the services of the configuration, then those of the job. Also returns warnings. Each service gets the
/// `public` variables in its environment. Fails if there are too many services, or one of them is not allowed.
pub fn plan(
    docker: &DockerConfig,
    of_job: &[Image],
    public: &[(String, String)],
    expand: Expand<'_>,
) -> Result<(Vec<ServicePlan>, Vec<String>), JobError> {
    let count = docker.services.len() + of_job.len();
    if let Some(most) = docker.max_services().filter(|most| count > *most) {
        return Err(JobError::system(format!(
            "the job has {count} services, and this runner allows {most}: use fewer, or raise `services_limit` below \
             [runners.docker]"
        )));
    }
    let public = assignments(public);
    let mut warnings = Vec::new();
    let mut taken = BTreeSet::new();
    let mut planned = Vec::new();
    for service in &docker.services {
        let resolved = resolved_image::resolve_configured_service(docker, service, expand)?;
        let environment = [public.clone(), assignments(&service.environment)].concat();
        let aliases = aliases(&resolved, &expand(&service.alias), &mut taken, &mut warnings);
        planned.push(ServicePlan { resolved, aliases, environment });
    }
    for image in of_job {
        let (resolved, overridden) = resolved_image::resolve_service_image(docker, image, expand)?;
        warnings.extend(overridden);
        let own = image.variables.iter().map(|variable| {
            let value = if variable.raw { variable.value.clone() } else { expand(&variable.value) };
            format!("{}={value}", variable.key)
        });
        let environment = public.iter().cloned().chain(own).collect();
        let aliases = aliases(&resolved, &expand(&image.alias), &mut taken, &mut warnings);
        planned.push(ServicePlan { resolved, aliases, environment });
    }
    Ok((planned, warnings))
}

fn assignments(pairs: &[(String, String)]) -> Vec<String> {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// The two aliases derived from the image, and the configured ones. An alias belongs to the first service that has it.
fn aliases(
    resolved: &ResolvedImage,
    wanted: &str,
    taken: &mut BTreeSet<String>,
    warnings: &mut Vec<String>,
) -> Vec<String> {
    let path = path_of_image(&resolved.name);
    let of_image = BTreeSet::from([path.replace('/', "__"), path.replace('/', "-")]);
    let wanted = wanted.split([' ', ',', '\t', '\n']).filter(|alias| !alias.is_empty());
    let mut aliases = Vec::new();
    for alias in of_image.into_iter().chain(wanted.map(str::to_owned)) {
        if taken.insert(alias.clone()) {
            aliases.push(alias);
        } else if !aliases.contains(&alias) {
            warnings.push(format!("alias `{alias}` of service {} is already used by another service", resolved.name));
        }
    }
    aliases
}

/// A name without port, tag and digest.
pub fn path_of_image(name: &str) -> String {
    let name = name.split('@').next().unwrap_or_default();
    let without = |part: &str| part.split(':').next().unwrap_or_default().to_owned();
    name.split('/').map(without).collect::<Vec<_>>().join("/")
}

/// Replaces characters that a container's name cannot have.
pub fn container_name_part(name: &str) -> String {
    path_of_image(name).replace('/', "__")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::docker::Service;
    use crate::payload::Variable;

    fn planned(docker: &DockerConfig, images: &[Image]) -> Result<(Vec<ServicePlan>, Vec<String>), JobError> {
        let public = [("CI_JOB_ID".to_owned(), "7".to_owned())];
        plan(docker, images, &public, &|text| text.replace("$PASSWORD", "hidden"))
    }

    fn image(name: &str, alias: &str) -> Image {
        Image { name: name.to_owned(), alias: alias.to_owned(), ..Image::default() }
    }

    fn names(docker: &DockerConfig, images: &[Image]) -> (Vec<Vec<String>>, Vec<String>) {
        let (services, warnings) = planned(docker, images).expect("the services must be planned");
        (services.into_iter().map(|service| service.aliases).collect(), warnings)
    }

    #[test]
    fn derives_aliases_from_image_and_alias() {
        let digest = format!("redis@sha256:{}", "a".repeat(64));
        for (name, alias, expected) in [
            ("postgres:16", "", vec!["postgres"]),
            ("postgres:16", "db, pg  db", vec!["postgres", "db", "pg"]),
            ("registry.example.com:4999/a/b:1", "", vec!["registry.example.com-a-b", "registry.example.com__a__b"]),
            (digest.as_str(), "", vec!["redis"]),
        ] {
            let (aliases, warnings) = names(&DockerConfig::default(), &[image(name, alias)]);
            assert_eq!(
                (&aliases[0][..], warnings.len()),
                (&expected.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..], 0),
                "{name}"
            );
        }
    }

    #[test]
    fn an_alias_belongs_to_the_first_service_that_has_it() {
        let (aliases, warnings) =
            names(&DockerConfig::default(), &[image("redis:6", "one"), image("redis:7", "one,two")]);
        assert_eq!(aliases[1], ["two"]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn services_get_public_and_their_own_variables() {
        let docker = DockerConfig {
            services: vec![Service {
                name: "first".to_owned(),
                environment: vec![("A".to_owned(), "B".to_owned())],
                ..Service::default()
            }],
            ..DockerConfig::default()
        };
        let own = |key: &str, value: &str, raw| Variable {
            key: key.to_owned(),
            value: value.to_owned(),
            raw,
            ..Variable::default()
        };
        let mut second = image("second", "");
        second.variables = vec![own("USER_PASSWORD", "x-$PASSWORD", false), own("RAW", "$PASSWORD", true)];
        let (services, _) = planned(&docker, &[second]).expect("the services must be planned");
        assert_eq!(services[0].environment, ["CI_JOB_ID=7", "A=B"]);
        assert_eq!(services[1].environment, ["CI_JOB_ID=7", "USER_PASSWORD=x-hidden", "RAW=$PASSWORD"]);
    }

    #[test]
    fn limits_the_number_of_services() {
        let two = [image("a", ""), image("b", "")];
        for (limit, allowed) in [(None, true), (Some(-1), true), (Some(2), true), (Some(1), false), (Some(0), false)] {
            let docker = DockerConfig { services_limit: limit, ..DockerConfig::default() };
            assert_eq!(planned(&docker, &two).is_ok(), allowed, "{limit:?}");
        }
    }
}
