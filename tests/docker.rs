//! Jobs in containers, with a real engine.

use crate::support::docker::docker;

#[test]
fn the_engine_of_the_tests_runs_containers() {
    assert_eq!(docker().run(&["run", "--rm", "busybox:local", "echo", "hello"]), "hello");
}
