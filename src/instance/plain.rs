//! A machine without a cloud: no notices, and nothing to terminate.

use std::fs;
use std::path::Path;
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

    fn cloud(&self) -> Option<&'static str> {
        cloud_of_firmware(Path::new("/sys/class/dmi/id"))
    }

    fn watch(&self, _: NoticeHandler) {}

    fn target_state(&self) -> Result<TargetState, Refusal> {
        Ok(TargetState::NoGroup)
    }

    fn set_activity(&self, _: Activity) {}

    fn terminate(&self, _: &dyn Fn() -> CapacityChange, _: Duration) -> Result<TerminateResult, Refusal> {
        Err(Refusal::NotInGroup)
    }

    fn start_hook_heartbeats(&self) {}

    fn complete_hooks(&self, _: Duration) -> Result<(), Refusal> {
        Ok(())
    }
}

/// The cloud that the firmware names: the strings by which cloud-init finds its data sources (ds-identify).
fn cloud_of_firmware(dmi: &Path) -> Option<&'static str> {
    const CLOUDS: [(&str, &str, &str); 11] = [
        ("sys_vendor", "Google", "Google Cloud"),
        ("product_name", "Google Compute Engine", "Google Cloud"),
        ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "Azure"),
        ("chassis_asset_tag", "OracleCloud.com", "Oracle Cloud"),
        ("sys_vendor", "Hetzner", "Hetzner Cloud"),
        ("sys_vendor", "DigitalOcean", "DigitalOcean"),
        ("sys_vendor", "Vultr", "Vultr"),
        ("sys_vendor", "Scaleway", "Scaleway"),
        ("product_name", "Exoscale", "Exoscale"),
        ("product_name", "Alibaba Cloud ECS", "Alibaba Cloud"),
        ("product_name", "OpenStack Nova", "OpenStack"),
    ];
    let text = |file: &str| fs::read_to_string(dmi.join(file)).unwrap_or_default();
    CLOUDS.iter().find(|(file, value, _)| text(file).trim() == *value).map(|(_, _, cloud)| *cloud)
}

/// The boot id of the kernel.
pub fn boot() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clouds_are_known_by_their_firmware() {
        let dmi = tempfile::tempdir().expect("a directory");
        assert_eq!(cloud_of_firmware(dmi.path()), None);
        for (file, text, cloud) in [
            ("product_name", "Standard PC (Q35 + ICH9, 2009)", None),
            ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", Some("Azure")),
            ("sys_vendor", "Hetzner", Some("Hetzner Cloud")),
        ] {
            fs::write(dmi.path().join(file), format!("{text}\n")).expect("write the file");
            assert_eq!(cloud_of_firmware(dmi.path()), cloud, "{text}");
            fs::remove_file(dmi.path().join(file)).expect("remove the file or directory");
        }
    }
}
