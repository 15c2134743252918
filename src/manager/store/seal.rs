//! Encrypts job payloads and tokens with a key that never leaves the state directory.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::sys;

const KEY_LENGTH: usize = 32;

/// Encrypts and decrypts (AES-256-GCM).
pub struct Sealer(LessSafeKey);

impl Sealer {
    /// Reads the key from this file, or creates the file with a new key. Errors: the file
    /// cannot be read or written, or contains no key.
    pub fn load(path: &Path) -> io::Result<Self> {
        let key = match fs::read(path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_key(path)?,
            Err(error) => return Err(error),
        };
        Self::with_key(&key).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the file contains no key"))
    }

    /// Creates a sealer with a key of 32 bytes.
    pub fn with_key(key: &[u8]) -> Option<Self> {
        UnboundKey::new(&AES_256_GCM, key).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    /// Encrypts a text; decryption needs the same `purpose`. Errors: the kernel returned no random bytes.
    pub fn seal(&self, purpose: &str, text: &[u8]) -> io::Result<String> {
        let failed = |_| io::Error::other("encryption failed");
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        let mut sealed = nonce.to_vec();
        let mut body = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(nonce, Aad::from(purpose.as_bytes()), &mut body).map_err(failed)?;
        sealed.extend_from_slice(&body);
        Ok(STANDARD.encode(sealed))
    }

    /// Decrypts a text; `None` if it was encrypted with another key or for another purpose.
    pub fn open(&self, purpose: &str, sealed: &str) -> Option<Vec<u8>> {
        let mut bytes = STANDARD.decode(sealed).ok()?;
        let body = bytes.split_off(NONCE_LEN.min(bytes.len()));
        let nonce = Nonce::try_assume_unique_for_key(&bytes).ok()?;
        let mut body = body;
        let length = self.0.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

fn create_key(path: &Path) -> io::Result<Vec<u8>> {
    let mut key = vec![0; KEY_LENGTH];
    SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("the kernel returned no random bytes"))?;
    sys::replace_file_synced(path, &key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_same_key_and_purpose_open() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        let sealer = Sealer::load(&path).expect("load or create the key");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        let sealed = sealer.seal("job 7", b"secret").expect("seal the secret");
        assert!(!sealed.contains("secret"));
        let again = Sealer::load(&path).expect("load or create the key");
        assert_eq!(again.open("job 7", &sealed).as_deref(), Some(&b"secret"[..]));
        assert_eq!(again.open("job 8", &sealed), None);
        assert_eq!(again.open("job 7", "AAAA"), None);
        fs::remove_file(&path).expect("remove the file");
        assert_eq!(Sealer::load(&path).expect("load or create the key").open("job 7", &sealed), None);
        fs::write(&path, "short").expect("write the file");
        assert!(Sealer::load(&path).is_err());
    }
}
