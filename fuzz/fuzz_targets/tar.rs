#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mayfly::fuzzing::target("tar")(input));
