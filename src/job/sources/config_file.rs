//! The format of git's configuration: reads listed settings, and writes configuration files.

/// A setting's name and value.
pub type Setting = (String, String);

/// Parses the output of `git config --list -z`: `name\nvalue\0`; a setting without a value is true.
pub fn parse(list: &str) -> Vec<Setting> {
    const MAX_SETTINGS: usize = 10_000;
    let entries = list.split('\0').filter(|entry| !entry.is_empty()).take(MAX_SETTINGS);
    entries
        .map(|entry| match entry.split_once('\n') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (entry.to_owned(), "true".to_owned()),
        })
        .collect()
}

/// The settings in the format of a configuration file, with one section each.
pub fn settings_text(settings: &[Setting]) -> String {
    let mut text = String::new();
    for (key, setting) in settings {
        let (Some((section, rest)), Some((before, last))) = (key.split_once('.'), key.rsplit_once('.')) else {
            continue;
        };
        let is_plain =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_plain(section) || !is_plain(last) || before.contains('\n') {
            continue;
        }
        match rest == last {
            true => text.push_str(&format!("[{section}]\n")),
            false => text.push_str(&format!("[{section} {}]\n", quoted(&before[section.len() + 1..]))),
        }
        text.push_str(&format!("\t{last} = {}\n", quoted(setting)));
    }
    text
}

/// A value in the quotes of a git configuration file.
pub fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_reads_the_written_settings() {
        let settings: Vec<Setting> = [
            ("lfs.url", "https://h/a b\"c\\d;#"),
            ("http.https://h/a.b/.extraheader", "X: \"y\"\nz"),
            ("url.https://m\"i\\r/.insteadof", "https://h/"),
            ("bad section.key", "x"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec();
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), settings_text(&settings)).expect("write the file");
        let mut git = std::process::Command::new("git");
        let output = git.args(["config", "-z", "--list", "-f"]).arg(file.path()).output().expect("run git");
        assert!(output.status.success(), "{}", settings_text(&settings));
        assert_eq!(parse(&String::from_utf8_lossy(&output.stdout)), settings[..3]);
    }
}
