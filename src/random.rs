//! Random numbers for names and delays. If the system provides none, they are zero: names then rely on the process id
//! beside them, and all delays are equal.

use ring::rand::{SecureRandom, SystemRandom};

pub fn bytes<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}

/// A number from 0 to 1, to spread events of many agents over time.
pub fn fraction() -> f64 {
    f64::from(u32::from_ne_bytes(bytes())) / f64::from(u32::MAX)
}

/// A number that distinguishes processes.
pub fn number() -> u32 {
    u32::from_ne_bytes(bytes())
}
