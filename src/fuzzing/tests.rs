//! Calls the fuzz targets with their corpora and with mutations of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use super::TARGETS;

/// The number of runs of each target; the slowest target takes a millisecond per run.
const RUNS: u32 = 400;

/// Byte sequences that have a meaning in one of the fuzzed formats.
const PIECES: [&[u8]; 24] = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"PK\x05\x06",
    b"PK\x01\x02",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\"",
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b"**/",
    b"../",
    b"/",
    b"-1",
    b"9223372036854775808",
    b"1e999",
    b"null",
    b"${{ ",
    "é".as_bytes(),
    b"- &a [*a]",
];

#[derive(Clone, Debug)]
enum Mutation {
    Delete(Index, usize),
    Insert(Index, &'static [u8]),
    Set(Index, u8),
    Double(Index, usize),
    /// Continues with the end of another input.
    Splice(Index, Index, Index),
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Mutation::Delete(at, length)),
        (any::<Index>(), select(&PIECES[..])).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, length)| Mutation::Double(at, length)),
        (any::<Index>(), any::<Index>(), any::<Index>())
            .prop_map(|(at, other, from)| Mutation::Splice(at, other, from)),
    ]
}

fn apply(input: &mut Vec<u8>, mutation: &Mutation, corpus: &[Vec<u8>]) {
    let (Mutation::Delete(at, _)
    | Mutation::Insert(at, _)
    | Mutation::Set(at, _)
    | Mutation::Double(at, _)
    | Mutation::Splice(at, ..)) = mutation;
    let at = at.index(input.len() + 1);
    let end = |length: &usize, input: &Vec<u8>| (at + length).min(input.len());
    match mutation {
        Mutation::Delete(_, length) => drop(input.drain(at..end(length, input))),
        Mutation::Insert(_, piece) => drop(input.splice(at..at, piece.iter().copied())),
        Mutation::Set(_, byte) => input[at..].iter_mut().take(1).for_each(|old| *old = *byte),
        Mutation::Double(_, length) => {
            let piece = input[at..end(length, input)].to_vec();
            drop(input.splice(at..at, piece));
        }
        Mutation::Splice(_, other, from) => {
            let other = &corpus[other.index(corpus.len())];
            input.truncate(at);
            input.extend_from_slice(&other[from.index(other.len() + 1)..]);
        }
    }
}

/// The corpus of a target: inputs that fuzzing found, and hand-written ones.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a file")).collect()
}

fn survives(name: &str) {
    let target = super::target(name);
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "the corpus of {name} is empty");
    corpus.iter().for_each(|input| target(input));
    let config = Config { cases: RUNS, failure_persistence: None, ..Config::default() };
    let strategy = (any::<Index>(), vec(any_mutation(), 1..8));
    let outcome = TestRunner::new(config).run(&strategy, |(chosen, mutations)| {
        let mut input = corpus[chosen.index(corpus.len())].clone();
        mutations.iter().for_each(|mutation| apply(&mut input, mutation, &corpus));
        target(&input);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
}

macro_rules! survive {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            survives(stringify!($name));
        }
    )*};
}

survive!(payload, job_inputs, rules, pipeline, yaml, configuration, glob, zip, tar, tar_zstd, gzip, http);

/// A target without a program in `fuzz/fuzz_targets` would never be fuzzed.
#[test]
fn each_target_can_be_fuzzed() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(top.join(folder)).expect("list the directory").flatten();
        entries.filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned())).collect()
    };
    let expected: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), expected);
    assert_eq!(names("corpus"), expected);
    let manifest = fs::read_to_string(top.join("Cargo.toml")).expect("a manifest");
    for name in &expected {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
    }
}
