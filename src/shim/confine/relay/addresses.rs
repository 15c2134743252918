//! The addresses that a task may reach only if the configuration names them.

use std::net::{IpAddr, Ipv4Addr};

/// Whether the address belongs to this machine, its link, or the services of its cloud.
pub fn is_of_the_machine(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_link_local()
                || address.is_broadcast()
                || address.is_multicast()
                || address.octets()[0] == 0
        }
        IpAddr::V6(address) => {
            let segments = address.segments();
            let last = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
            // IPv6 forms of an IPv4 address: mapped, compatible, NAT64, 6to4.
            let inner = match segments {
                [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0, 0, high, low] => Some(last(high, low)),
                [0, 0, 0, 0, 0xffff, 0, high, low] | [0x64, 0xff9b, .., high, low] => Some(last(high, low)),
                [0x2002, high, low, ..] => Some(last(high, low)),
                _ => None,
            };
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || segments[0] & 0xffc0 == 0xfe80
                || segments[..2] == [0xfd00, 0xec2]
                || inner.is_some_and(is_of_the_machine)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_machine_and_its_cloud_are_blocked_in_every_form() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
        ] {
            assert!(is_of_the_machine(address.parse().expect("an address")), "{address}");
        }
        for address in
            ["10.0.0.1", "192.168.1.1", "100.64.0.1", "8.8.8.8", "2001:db8::1", "fd12::1", "64:ff9b::8.8.8.8"]
        {
            assert!(!is_of_the_machine(address.parse().expect("an address")), "{address}");
        }
    }
}
