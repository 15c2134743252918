//! Detects EC2 instances by their firmware, without a request.

use std::fs;
use std::path::Path;

/// The machine according to its firmware.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FirmwareInfo {
    /// The machine is an EC2 instance.
    pub is_ec2: bool,
    /// The instance id; only the firmware of Nitro instances has it.
    pub instance: Option<String>,
}

/// Reads the firmware information below `sys` (`/sys`).
pub fn read_firmware(sys: &Path) -> FirmwareInfo {
    let line = |path: &str| fs::read_to_string(sys.join(path)).unwrap_or_default().trim().to_owned();
    let vendors = ["class/dmi/id/sys_vendor", "class/dmi/id/board_vendor", "class/dmi/id/bios_vendor"];
    let by_vendor = vendors.iter().any(|path| line(path) == "Amazon EC2");
    // The guest UUID of a Xen instance starts with `ec2`.
    let by_xen = line("hypervisor/uuid").to_ascii_lowercase().starts_with("ec2");
    let is_ec2 = by_vendor || by_xen;
    let instance = Some(line("class/dmi/id/board_asset_tag")).filter(|tag| is_ec2 && is_instance_id(tag));
    FirmwareInfo { is_ec2, instance }
}

/// `i-` and hexadecimal digits.
pub fn is_instance_id(text: &str) -> bool {
    let digits = text.strip_prefix("i-").unwrap_or_default();
    (8..=32).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> FirmwareInfo {
        let directory = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("create the directory");
            fs::write(path, format!("{text}\n")).expect("write the file");
        }
        read_firmware(directory.path())
    }

    #[test]
    fn recognizes_ec2_firmware() {
        let nitro =
            [("class/dmi/id/sys_vendor", "Amazon EC2"), ("class/dmi/id/board_asset_tag", "i-0123456789abcdef0")];
        assert_eq!(machine(&nitro), FirmwareInfo { is_ec2: true, instance: Some("i-0123456789abcdef0".to_owned()) });
        let xen = [("hypervisor/uuid", "EC2E1916-9099-7CAF-FD21-012345ABCDEF")];
        assert_eq!(machine(&xen), FirmwareInfo { is_ec2: true, instance: None });
        for files in [vec![], vec![("class/dmi/id/sys_vendor", "QEMU"), ("class/dmi/id/board_asset_tag", "i-01234567")]]
        {
            assert_eq!(machine(&files), FirmwareInfo::default());
        }
    }
}
