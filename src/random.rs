//! Random numbers for names and waits. Where the system has none, zeros are used: a name then relies on the process
//! number beside it, and all waits are the same.

use ring::rand::{SecureRandom, SystemRandom};

/// Random bytes.
pub fn bytes<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}

/// A number from 0 to 1, which spreads what many agents do at the same time.
pub fn fraction() -> f64 {
    f64::from(u32::from_ne_bytes(bytes())) / f64::from(u32::MAX)
}

/// A number that another process does not have.
pub fn number() -> u32 {
    u32::from_ne_bytes(bytes())
}
