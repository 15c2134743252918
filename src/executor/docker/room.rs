//! Room on the engine's disk.

use std::time::Duration;

use super::engine::Error;

/// How often room is looked for.
const TRIES: u32 = 3;
/// Between two tries.
const BETWEEN_TRIES: Duration = Duration::from_secs(3);

/// Does what needs room on the engine's disk: when it is full, that may be what the job before has left and what is being
/// removed now.
pub fn with_room<T>(work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let mut tries = 1;
    loop {
        match work() {
            Err(error) if error.is_for_lack_of_room() && tries < TRIES => {
                std::thread::sleep(BETWEEN_TRIES);
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}
