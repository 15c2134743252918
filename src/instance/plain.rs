//! A machine without a cloud: nothing is coming, and leaving it is ending the process.

use std::fs;
use std::time::Duration;

use super::{Capacity, Hear, Identity, Instance, Refusal, Target, Terminated, Work};

/// A machine that is known by its machine id.
pub struct Plain;

impl Instance for Plain {
    fn identity(&self) -> Identity {
        let machine = ["/etc/machine-id", "/var/lib/dbus/machine-id"].map(first_line);
        Identity { instance: machine.into_iter().find(|id| !id.is_empty()).unwrap_or_default(), boot: boot() }
    }

    fn cloud_id(&self) -> Option<String> {
        None
    }

    fn watch(&self, _: Hear) {}

    fn target(&self) -> Result<Target, Refusal> {
        Ok(Target::Alone)
    }

    fn protect(&self, _: Work) {}

    fn terminate(&self, _: &dyn Fn() -> Capacity, _: Duration) -> Result<Terminated, Refusal> {
        Err(Refusal::NotHere)
    }

    fn hold_hooks(&self) {}

    fn complete_hooks(&self, _: Duration) -> Result<(), Refusal> {
        Ok(())
    }
}

/// The id of this boot.
pub fn boot() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
