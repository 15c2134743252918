//! The limits of the sandbox beside the containers of a runner's jobs: the same as those of a container.

use crate::config::Runner;
use crate::shim::spec::Limits;

/// The limits of the sandbox for jobs of this runner.
pub(super) fn limits(runner: &Runner) -> Limits {
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let (memory, processor) = (&runner.docker.memory, &runner.docker.cpus);
    Limits {
        memory: memory.as_ref().and_then(|size| positive(size.0)).or(runner.confined.memory),
        processes: Some(runner.confined.processes),
        cpu_millis: processor.and_then(|cpus| positive(cpus.0 / 1_000_000)),
    }
}
