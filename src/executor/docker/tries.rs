//! Work of an engine that may come off after a while.

use std::time::Duration;

use super::engine::Error;

/// How often it is tried (gitlab-runner: three tries of a preparation).
const TRIES: u32 = 3;
/// Between two tries.
pub const BETWEEN_TRIES: Duration = Duration::from_secs(3);

/// Does something again while what went wrong is worth it, of which `tell` hears.
pub fn again<T>(
    work: impl Fn() -> Result<T, Error>,
    is_worth_it: impl Fn(&Error) -> bool,
    tell: impl Fn(&Error),
) -> Result<T, Error> {
    for _ in 1..TRIES {
        match work() {
            Err(error) if is_worth_it(&error) => {
                tell(&error);
                std::thread::sleep(BETWEEN_TRIES);
            }
            outcome => return outcome,
        }
    }
    work()
}

/// Does what needs room on the engine's disk: when it is full, that may be what the job before has left and what is being
/// removed now.
pub fn with_room<T>(work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    again(work, Error::is_for_lack_of_room, |_| {})
}
