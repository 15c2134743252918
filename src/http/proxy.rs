//! Which proxy a request takes: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the agent's environment, in either case.

use std::net::IpAddr;

/// The proxy for a URL, if any. Loopback never takes one.
pub fn for_url(scheme: &str, host: &str, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let either = |name: &str| {
        let value = variable(name).or_else(|| variable(&name.to_ascii_lowercase()));
        value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let proxy = either(if scheme == "https" { "HTTPS_PROXY" } else { "HTTP_PROXY" })?;
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let exempt = either("NO_PROXY").is_some_and(|list| list.split(',').any(|entry| covers(entry.trim(), &host)));
    (!loopback && !exempt).then_some(proxy)
}

/// Whether an entry of `NO_PROXY` covers a host: `*`, an address, a network (`10.0.0.0/8`), a domain with everything
/// below it.
fn covers(entry: &str, host: &str) -> bool {
    if entry.is_empty() {
        return false;
    }
    if entry == "*" {
        return true;
    }
    if let (Some((network, bits)), Ok(address)) = (entry.split_once('/'), host.parse::<IpAddr>()) {
        return match (network.parse::<IpAddr>(), bits.parse::<u32>()) {
            (Ok(network), Ok(bits)) => contains(network, bits, address),
            _ => false,
        };
    }
    let domain = entry.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
    let domain = domain.split(':').next().unwrap_or_default();
    host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

fn contains(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (u32::from(network).into(), u32::from(address).into(), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => (u128::from(network), u128::from(address), 128),
        _ => return false,
    };
    bits <= width && (bits == 0 || (network ^ address) >> (width - bits) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_by_scheme_and_exemption() {
        let environment = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://proxy:3128".to_owned()),
            "no_proxy" => Some("internal.test, 10.0.0.0/8 ,.example.org,fd00::/8".to_owned()),
            _ => None,
        };
        let proxied = |scheme, host| for_url(scheme, host, environment).is_some();
        assert!(proxied("https", "gitlab.com"));
        assert!(!proxied("http", "gitlab.com"), "no proxy for plain http is set");
        for exempt in [
            "internal.test",
            "a.internal.test",
            "10.1.2.3",
            "x.example.org",
            "localhost",
            "127.0.0.2",
            "[::1]",
            "[fd00::1]",
        ] {
            assert!(!proxied("https", exempt), "{exempt}");
        }
        assert!(proxied("https", "notinternal.test") && proxied("https", "11.1.2.3"));
    }
}
