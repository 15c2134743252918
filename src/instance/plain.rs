//! A machine without a cloud: no notices, and nothing to terminate.

use std::fs;
use std::time::Duration;

use super::{Activity, CapacityChange, Identity, Instance, NoticeHandler, Refusal, TargetState, TerminateResult};

/// A machine that is identified by its machine id.
pub struct Plain;

impl Instance for Plain {
    fn identity(&self) -> Identity {
        let machine = ["/etc/machine-id", "/var/lib/dbus/machine-id"].map(first_line);
        Identity { instance: machine.into_iter().find(|id| !id.is_empty()).unwrap_or_default(), boot: boot() }
    }

    fn cloud_id(&self) -> Option<String> {
        None
    }

    fn watch(&self, _: NoticeHandler) {}

    fn target_state(&self) -> Result<TargetState, Refusal> {
        Ok(TargetState::NoGroup)
    }

    fn set_activity(&self, _: Activity) {}

    fn terminate(&self, _: &dyn Fn() -> CapacityChange, _: Duration) -> Result<TerminateResult, Refusal> {
        Err(Refusal::NotHere)
    }

    fn start_hook_heartbeats(&self) {}

    fn complete_hooks(&self, _: Duration) -> Result<(), Refusal> {
        Ok(())
    }
}

/// The boot id of the kernel.
pub fn boot() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
