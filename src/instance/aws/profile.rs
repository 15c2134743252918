//! The shared files of the AWS tools: `~/.aws/config` and `~/.aws/credentials`, and the active profile.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Both files, and the active profile.
#[derive(Default)]
pub struct Profiles {
    config: Sections,
    credentials: Sections,
    /// Name of the active profile.
    pub name: String,
    /// The environment names the profile, so it must exist.
    pub is_chosen: bool,
}

/// The keys of each section by its header; a key in a nested block has the name of the block as prefix
/// (`sts.endpoint_url`).
type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// The keys of one profile.
#[derive(Default)]
pub struct Profile {
    /// From the credentials file.
    pub credentials: BTreeMap<String, String>,
    /// From the config file.
    pub config: BTreeMap<String, String>,
}

impl Profiles {
    /// Reads the files that the environment names, or those below `HOME`. A missing file counts as empty.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str, file: &str| {
            let path = variable(name).map(PathBuf::from).or_else(|| Some(PathBuf::from(variable("HOME")?).join(file)));
            path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let chosen = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
        let config = text("AWS_CONFIG_FILE", ".aws/config");
        let credentials = text("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let is_chosen = chosen.is_some();
        Self { is_chosen, ..Self::of_text(&config, &credentials, chosen.as_deref().unwrap_or("default")) }
    }

    /// Parses the files from text.
    pub fn of_text(config: &str, credentials: &str, name: &str) -> Self {
        Self { config: parse(config), credentials: parse(credentials), name: name.to_owned(), is_chosen: false }
    }

    /// A profile by name; `None` if neither file has it.
    pub fn get(&self, name: &str) -> Option<Profile> {
        let config = self.config.get(&format!("profile {name}"));
        let config = config.or_else(|| self.config.get(name).filter(|_| name == "default"));
        let credentials = self.credentials.get(name);
        (config.is_some() || credentials.is_some()).then(|| Profile {
            config: config.cloned().unwrap_or_default(),
            credentials: credentials.cloned().unwrap_or_default(),
        })
    }

    /// A key of the active profile.
    pub fn value(&self, key: &str) -> Option<String> {
        self.get(&self.name)?.value(key)
    }

    /// The endpoint URL of a service (`auto_scaling`) in the active profile.
    pub fn endpoint(&self, service: &str) -> Option<String> {
        let services = self.value("services").and_then(|name| self.config.get(&format!("services {name}")));
        let own = services.and_then(|keys| keys.get(&format!("{service}.endpoint_url")));
        own.cloned().or_else(|| self.value("endpoint_url"))
    }
}

impl Profile {
    /// A key of either file.
    pub fn value(&self, key: &str) -> Option<String> {
        let value = self.credentials.get(key).or_else(|| self.config.get(key));
        value.filter(|value| !value.is_empty()).cloned()
    }
}

fn parse(text: &str) -> Sections {
    let mut sections = Sections::new();
    let (mut section, mut block) = (None, String::new());
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = without_comment(line).trim();
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            let header = header.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(header.clone()).or_default();
            (section, block) = (Some(header), String::new());
        } else if let (Some((key, value)), Some(section)) = (line.split_once('='), &section) {
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_owned());
            let nested = is_nested && !block.is_empty();
            let name = if nested { format!("{block}.{key}") } else { key.clone() };
            if !nested {
                block = if value.is_empty() { key } else { String::new() };
            }
            sections.entry(section.clone()).or_default().insert(name, value);
        }
    }
    sections
}

/// A comment starts a line or follows white space, because secrets may contain `#` and `;`.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with(['#', ';']) {
        return "";
    }
    [" #", " ;", "\t#", "\t;"].iter().filter_map(|mark| line.find(mark)).min().map_or(line, |at| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_files() {
        let config = "# about\n[default]\nregion=eu-west-1 ; near\n[profile  ci]\nrole_arn = arn:r\nsource_profile = base\n\
                      [base]\naws_access_key_id = wrong\n";
        let credentials = "[base]\naws_access_key_id=A\naws_secret_access_key = B#=;\n";
        let profiles = Profiles::of_text(config, credentials, "ci");
        assert_eq!(profiles.get("default").expect("the default profile").value("region").as_deref(), Some("eu-west-1"));
        assert_eq!(profiles.value("role_arn").as_deref(), Some("arn:r"));
        let base = profiles.get("base").expect("the profile `base`");
        assert_eq!(base.value("aws_access_key_id").as_deref(), Some("A"));
        assert_eq!(base.value("aws_secret_access_key").as_deref(), Some("B#=;"));
        assert!(profiles.get("other").is_none());
    }

    #[test]
    fn nested_blocks_do_not_leak_into_their_section() {
        let text = "[default]\ns3 =\n  region = x\n  max = 1\noutput = json\n";
        let default = Profiles::of_text(text, "", "default").get("default").expect("the default profile");
        assert_eq!((default.value("region"), default.value("output").as_deref()), (None, Some("json")));
        assert_eq!(default.value("s3.region").as_deref(), Some("x"));
    }
}
