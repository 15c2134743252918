//! The machine the agent lives on: who it is, what is coming, how to leave it.

pub mod aws;

use std::fs;

/// What the journal is bound to: an image made from a used machine must not inherit its jobs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The instance: its cloud id, or else the machine id of the operating system.
    pub instance: String,
    /// The boot it is in.
    pub boot: String,
}

/// A machine that an agent can live on and leave.
pub trait Instance: Send + Sync {
    /// Who this machine is, and in which boot.
    fn identity(&self) -> Identity;
}

/// A machine without a cloud: known by its machine id; leaving it is ending the process.
pub struct Plain;

impl Instance for Plain {
    fn identity(&self) -> Identity {
        let first_line = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().to_owned()
        };
        let machine = ["/etc/machine-id", "/var/lib/dbus/machine-id"].map(first_line);
        Identity {
            instance: machine.into_iter().find(|id| !id.is_empty()).unwrap_or_default(),
            boot: first_line("/proc/sys/kernel/random/boot_id"),
        }
    }
}
