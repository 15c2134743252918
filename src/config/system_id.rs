//! The `system_id` of the Runner API, which distinguishes machines that share a runner.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::digest::hex;
use crate::random;
use ring::hmac;

/// Reads `.runner_system_id` beside the configuration, or creates it: from the instance id of the cloud, which also
/// replaces an id from the image, else from the machine id if there is one. A failure to write the file is only a
/// warning.
pub fn load(config: &Path, cloud_id: Option<&str>) -> String {
    let file = id_file(config);
    let own = cloud_id.map(derive);
    if let Some(known) = read_valid(&file).filter(|known| own.as_ref().is_none_or(|own| own == known)) {
        return known;
    }
    let made = own.unwrap_or_else(generate);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&file)
        .and_then(|mut file| file.write_all(made.as_bytes()));
    if let Err(error) = written {
        log::warn!("cannot save the system id path={} error={error}", file.display());
    }
    made
}

/// The system id of a manager. It depends on the state directory, so that GitLab distinguishes two managers, or a
/// manager and an agent, on one machine. Without a machine id, the manager uses the id stored beside the configuration
/// file.
pub fn load_for_manager(config: &Path, state_dir: &Path) -> String {
    match machine_id() {
        Some(machine) => derive(&format!("{machine} manager {}", state_dir.display())),
        None => load(config, None),
    }
}

/// As [`load`], but writes no file: for commands that only inspect.
pub fn peek(config: &Path, cloud_id: Option<&str>) -> String {
    cloud_id.map(derive).or_else(|| read_valid(&id_file(config))).unwrap_or_else(generate)
}

fn id_file(config: &Path) -> PathBuf {
    config.with_file_name(".runner_system_id")
}

fn read_valid(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned()).filter(|id| is_valid(id))
}

fn is_valid(id: &str) -> bool {
    let rest = id.strip_prefix("s_").or_else(|| id.strip_prefix("r_"));
    rest.is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn machine_id() -> Option<String> {
    ["/var/lib/dbus/machine-id", "/etc/machine-id"].iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    })
}

fn generate() -> String {
    match machine_id() {
        Some(machine) => derive(&machine),
        None => {
            const ALPHABET: &[u8; 32] = b"0123456789abcdefghijkmnpqrstvwxy";
            let letters = random::bytes::<12>().map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
            format!("r_{}", letters.iter().collect::<String>())
        }
    }
}

/// The system id that gitlab-runner also derives from this id.
fn derive(id: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, id.as_bytes());
    let digest = hmac::sign(&key, b"gitlab-runner");
    format!("s_{}", &hex(digest.as_ref())[..12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_created_once_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.toml");
        assert!(is_valid(&peek(&config, None)));
        assert!(!directory.path().join(".runner_system_id").exists(), "looking must not write");
        let first = load(&config, None);
        assert!(is_valid(&first), "{first}");
        assert_eq!(load(&config, None), first);
        fs::write(directory.path().join(".runner_system_id"), "r_abcdefghij12\n").expect("write the file");
        assert_eq!(load(&config, None), "r_abcdefghij12");
        fs::write(directory.path().join(".runner_system_id"), "nonsense").expect("write the file");
        assert!(is_valid(&load(&config, None)));
    }

    #[test]
    fn managers_with_different_state_directories_have_different_system_ids() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.toml");
        let system_id = |state: &str| load_for_manager(&config, Path::new(state));
        assert!(is_valid(&system_id("/a")) && system_id("/a") == system_id("/a"), "{}", system_id("/a"));
        if machine_id().is_some() {
            assert!(system_id("/a") != system_id("/b") && system_id("/a") != peek(&config, None));
        }
    }

    #[test]
    fn an_id_from_an_image_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.toml");
        let first = load(&config, Some("i-0123456789abcdef0"));
        assert!(is_valid(&first), "{first}");
        assert_eq!(load(&config, Some("i-0123456789abcdef0")), first);
        assert_eq!(load(&config, None), first, "the cloud did not answer this time");
        let second = load(&config, Some("i-0123456789abcdef1"));
        assert_ne!(second, first);
        assert_eq!(peek(&config, Some("i-0123456789abcdef1")), second);
    }
}
