//! Parses image names.
//!
//! `alpine` means `docker.io/library/alpine:latest`; `registry.test:5000/team/app:1@sha256:…` is complete. Invalid
//! names are detected here, before the agent sends a request to the engine.

use std::fmt;

/// The registry of names without a registry.
pub const DOCKER_HUB: &str = "docker.io";

/// The longest name, in characters (rule of the distribution project).
const MAX_NAME_LENGTH: usize = 255;

/// A parsed image name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageReference {
    /// A local image, by its id.
    Id(String),
    /// An image in a registry.
    Named(ImageName),
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// The name as written, without tag and digest.
    pub written: String,
    /// The host, with a port if there is one; `docker.io` by default.
    pub registry: String,
    /// The path in the registry; Docker Hub's own images are below `library/`.
    pub repository: String,
    /// `latest` if neither tag nor digest is written.
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

impl ImageReference {
    /// Parses a name. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, BadReference> {
        let bad = |why| BadReference { name: text.to_owned(), why };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if is_id(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        parse_name(text).map(Self::Named).map_err(bad)
    }

    /// The name for the engine: with a tag or a digest.
    pub fn full(&self) -> String {
        match self {
            Self::Id(id) => id.clone(),
            Self::Named(name) => name.full(),
        }
    }
}

impl ImageName {
    /// The name as written, with the default tag.
    fn full(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        format!("{}{tag}{digest}", self.written)
    }

    /// Registry and path, for finding logins.
    pub fn normalized(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full())
    }
}

/// A text that is not a valid image name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadReference {
    name: String,
    why: &'static str,
}

impl fmt::Display for BadReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.why;
        match self.name.is_empty() {
            true => write!(f, "the image is missing; set `image` for the job, or in [runners.docker]"),
            false => write!(
                f,
                "`{}` is not the name of an image: {why}; names look like registry.example.com/team/app:1.2",
                self.name
            ),
        }
    }
}

impl std::error::Error for BadReference {}

/// `sha256:` and 64 hexadecimal digits, or the digits alone; neither can be a name.
fn is_id(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    digits.len() == 64 && is_lower_hex(digits)
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn parse_name(text: &str) -> Result<ImageName, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the part after `@` is not a digest");
    }
    // A colon before the last slash belongs to the registry's port.
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the part after `:` is not a tag");
    }
    if path.contains("://") {
        return Err("it is a URL; remove the scheme and `//`");
    }
    let (registry, repository) = match path.split_once('/') {
        Some((host, repository)) if is_host_of_registry(host) => (Some(host), repository),
        _ => (None, path),
    };
    if registry.is_some_and(|host| !is_host(host)) {
        return Err("the part before the first `/` is not a host");
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("image names cannot have upper-case letters");
    }
    if path.len() > MAX_NAME_LENGTH || !repository.split('/').all(is_path_component) {
        return Err("it has an invalid character or length");
    }
    let (registry, repository) = normalized(registry, repository);
    let tag = tag.or(if digest.is_some() { None } else { Some("latest") });
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Ok(ImageName { written: path.to_owned(), registry, repository, tag: owned(tag), digest: owned(digest) })
}

fn normalized(registry: Option<&str>, repository: &str) -> (String, String) {
    let registry = registry.map_or_else(|| DOCKER_HUB.to_owned(), normalized_registry);
    let is_official = registry == DOCKER_HUB && !repository.contains('/');
    (registry, if is_official { format!("library/{repository}") } else { repository.to_owned() })
}

/// Normalises a registry's address: no scheme, no path of Docker Hub's API, lower case.
pub fn normalized_registry(address: &str) -> String {
    let lower = address.trim().to_ascii_lowercase();
    let plain = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://")).unwrap_or(&lower);
    let plain = plain.trim_end_matches('/');
    let host = plain.split('/').next().unwrap_or_default();
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

/// Whether the first part of a path is a host (rule of the distribution project).
fn is_host_of_registry(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                return address.parse::<std::net::Ipv6Addr>().is_ok() && is_port(port.strip_prefix(':'));
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(is_label) && is_port(port)
}

fn is_port(port: Option<&str>) -> bool {
    port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.is_some_and(|byte| alphanumeric(*byte));
    if !ends_well(bytes.first()) || !ends_well(bytes.last()) {
        return false;
    }
    let mut separators =
        part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|run| !run.is_empty());
    separators.all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&tag.len()) && tag.bytes().all(allowed) && !tag.starts_with(['.', '-'])
}

fn is_digest(digest: &str) -> bool {
    let parts = digest.split_once(':');
    parts.is_some_and(|(algorithm, digits)| !algorithm.is_empty() && digits.len() >= 32 && is_lower_hex(digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ImageName {
        match ImageReference::parse(text) {
            Ok(ImageReference::Named(name)) => name,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn fills_in_default_registry_path_and_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let with_digest = format!("alpine@{digest}");
        let with_both = format!("localhost/a:1@{digest}");
        for (text, normalized, full) in [
            ("alpine", "docker.io/library/alpine", "alpine:latest"),
            ("team/app:1.2", "docker.io/team/app", "team/app:1.2"),
            ("docker.io/alpine", "docker.io/library/alpine", "docker.io/alpine:latest"),
            ("index.docker.io/library/alpine:3", "docker.io/library/alpine", "index.docker.io/library/alpine:3"),
            ("localhost/a", "localhost/a", "localhost/a:latest"),
            ("localhost:5000/a", "localhost:5000/a", "localhost:5000/a:latest"),
            ("Registry.Test/a/b_c/d--e", "registry.test/a/b_c/d--e", "Registry.Test/a/b_c/d--e:latest"),
            ("[::1]:5000/a:x", "[::1]:5000/a", "[::1]:5000/a:x"),
            (with_digest.as_str(), "docker.io/library/alpine", with_digest.as_str()),
            (with_both.as_str(), "localhost/a", with_both.as_str()),
        ] {
            let name = name(text);
            assert_eq!((name.normalized().as_str(), name.full().as_str()), (normalized, full), "{text}");
        }
    }

    #[test]
    fn an_id_is_not_a_name() {
        for id in [format!("sha256:{}", "0".repeat(64)), "f".repeat(64)] {
            assert_eq!(ImageReference::parse(&id), Ok(ImageReference::Id(id)));
        }
        assert_eq!(name("abcdef").repository, "library/abcdef");
    }

    #[test]
    fn says_why_a_name_is_invalid() {
        for (text, why) in [
            ("", "the image is missing"),
            ("Alpine", "upper-case"),
            ("https://registry.test/a", "URL"),
            ("a:", "tag"),
            ("a:b c", "tag"),
            ("a@sha256:xyz", "digest"),
            ("a b", "character"),
            ("/a", "character"),
            ("a//b", "character"),
            ("-a", "character"),
            ("a___b", "character"),
            ("host-.test/a", "host"),
            ("h.test:99999/a", "host"),
            ("${IMAGE}", "upper-case"),
            ("a\n", "character"),
        ] {
            let error = ImageReference::parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(ImageReference::parse(&"a".repeat(300)).is_err());
    }

    #[test]
    fn normalises_registry_addresses() {
        for text in ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io", "HTTPS://Docker.io/"] {
            assert_eq!(normalized_registry(text), DOCKER_HUB, "{text}");
        }
        assert_eq!(normalized_registry("https://Registry.Test:5050/v2/"), "registry.test:5050");
    }

    proptest! {
        #[test]
        fn parsing_and_printing_gives_the_same_name(text in "[a-z0-9]{1,5}(\\.[a-z]{1,4}(:[1-9][0-9]{0,3})?)?/[a-z0-9]{1,5}(-[a-z0-9]{1,3})?:[a-z0-9]{1,5}") {
            prop_assert_eq!(name(&text).full(), text);
        }

        #[test]
        fn any_text_is_parsed_without_a_panic(text in "\\PC*") {
            let _ = ImageReference::parse(&text);
        }
    }
}
