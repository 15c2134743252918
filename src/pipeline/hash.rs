//! A fast hash for short names, keyed with a random number so that a file cannot choose names that collide.

use std::collections::HashSet;
use std::collections::hash_map::{HashMap, RandomState};
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use indexmap::IndexMap;

/// A mapping in insertion order.
pub type Index<K, V> = IndexMap<K, V, KeyedHashBuilder>;

/// A mapping without order.
pub type Map<K, V> = HashMap<K, V, KeyedHashBuilder>;

/// A set without order.
pub type Set<K> = HashSet<K, KeyedHashBuilder>;

/// Makes hashers with the key of this process.
#[derive(Clone, Copy, Debug)]
pub struct KeyedHashBuilder(u64);

impl Default for KeyedHashBuilder {
    fn default() -> Self {
        static KEY: OnceLock<u64> = OnceLock::new();
        Self(*KEY.get_or_init(|| RandomState::new().hash_one(0_u8)))
    }
}

impl BuildHasher for KeyedHashBuilder {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { state: self.0, key: self.0.rotate_left(32) | 1 }
    }
}

/// Multiplies words and folds the 128-bit products.
pub struct KeyedHasher {
    state: u64,
    key: u64,
}

impl KeyedHasher {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.key ^ 0x9E37_79B9_7F4A_7C15);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.mix(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let rest = words.remainder().iter().fold(bytes.len() as u64, |word, byte| word << 8 | u64::from(*byte));
        self.mix(rest);
    }

    fn write_u8(&mut self, byte: u8) {
        self.state ^= u64::from(byte);
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.state) * u128::from(self.key);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_have_different_hashes() {
        let builder = KeyedHashBuilder::default();
        let names =
            (0..20_000).map(|number| format!("job-{number}")).chain(["", "a", "\0", "ab", "ba"].map(str::to_owned));
        let hashes: HashSet<u64> = names.map(|name| builder.hash_one(name.as_str())).collect();
        assert_eq!(hashes.len(), 20_005);
        assert_eq!(builder.hash_one("same"), KeyedHashBuilder::default().hash_one("same"));
        // Hash tables use the lowest and the highest bits.
        let low: HashSet<u64> = (0..256).map(|number| builder.hash_one(format!("{number}").as_str()) & 0xff).collect();
        let high: HashSet<u64> = (0..256).map(|number| builder.hash_one(format!("{number}").as_str()) >> 56).collect();
        assert!(low.len() > 100 && high.len() > 100, "{} {}", low.len(), high.len());
    }
}
