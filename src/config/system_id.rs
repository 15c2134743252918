//! What tells this machine from others that share a runner (`system_id` of the Runner API).

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Reads `.runner_system_id` beside the configuration, or makes it: from the machine id where there is one. A file
/// that cannot be written is only a warning.
pub fn load(config: &Path) -> String {
    let file = file_of(config);
    if let Some(known) = kept(&file) {
        return known;
    }
    let made = generate();
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&file)
        .and_then(|mut file| file.write_all(made.as_bytes()));
    if let Err(error) = written {
        log::warn!("the system id cannot be kept path={} error={error}", file.display());
    }
    made
}

/// The same, but writes nothing: for commands that only look.
pub fn peek(config: &Path) -> String {
    kept(&file_of(config)).unwrap_or_else(generate)
}

fn file_of(config: &Path) -> PathBuf {
    config.with_file_name(".runner_system_id")
}

fn kept(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned()).filter(|id| is_valid(id))
}

fn is_valid(id: &str) -> bool {
    let rest = id.strip_prefix("s_").or_else(|| id.strip_prefix("r_"));
    rest.is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn generate() -> String {
    let machine = ["/var/lib/dbus/machine-id", "/etc/machine-id"].iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    });
    match machine {
        Some(machine) => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, machine.as_bytes());
            let digest = hmac::sign(&key, b"gitlab-runner");
            let digits: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("s_{}", &digits[..12])
        }
        None => {
            const LETTERS: &[u8; 32] = b"0123456789abcdefghijkmnpqrstvwxy";
            let mut bytes = [0; 12];
            let _ = SystemRandom::new().fill(&mut bytes);
            let letters = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)]));
            format!("r_{}", letters.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_once_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.toml");
        assert!(is_valid(&peek(&config)));
        assert!(!directory.path().join(".runner_system_id").exists(), "looking must not write");
        let first = load(&config);
        assert!(is_valid(&first), "{first}");
        assert_eq!(load(&config), first);
        fs::write(directory.path().join(".runner_system_id"), "r_abcdefghij12\n").expect("written");
        assert_eq!(load(&config), "r_abcdefghij12");
        fs::write(directory.path().join(".runner_system_id"), "nonsense").expect("written");
        assert!(is_valid(&load(&config)));
    }
}
