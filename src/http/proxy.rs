//! Which proxy a request takes: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the agent's environment, in either case.
//!
//! Every request goes through a tunnel (`CONNECT`), those over plain http too.

use std::net::IpAddr;

use ureq::http::Uri;

/// A proxy that can be used.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy(ureq::Proxy);

impl Proxy {
    /// Reads the value of a variable. Errors: it is no URL, or of a kind that is not spoken; the value, which may hold a
    /// password, is not in them.
    fn read(value: &str) -> Result<Self, String> {
        let proxy = ureq::Proxy::new(value)
            .map_err(|_| "the proxy of the environment is not a URL like http://proxy.example:3128".to_owned())?;
        match proxy.protocol() {
            ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https => Ok(Self(proxy)),
            _ => Err("the proxy of the environment is none for HTTP; SOCKS is not spoken".to_owned()),
        }
    }

    /// True when the proxy itself is spoken to over TLS.
    pub fn is_tls(&self) -> bool {
        self.0.protocol() == ureq::ProxyProtocol::Https
    }

    /// In the form that an agent takes.
    pub fn for_agent(&self) -> ureq::Proxy {
        self.0.clone()
    }
}

/// The proxy that the environment asks for. Errors: it cannot be used.
pub fn of_environment(url: &Uri) -> Result<Option<Proxy>, String> {
    let (scheme, host) = (url.scheme_str().unwrap_or_default(), url.host().unwrap_or_default());
    for_url(scheme, host, |name| std::env::var(name).ok()).map(|value| Proxy::read(&value)).transpose()
}

/// The proxy for a URL, if any. Loopback never takes one.
fn for_url(scheme: &str, host: &str, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
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
    if let Ok(address) = entry.trim_matches(['[', ']']).parse::<IpAddr>() {
        return host.parse() == Ok(address);
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
            "no_proxy" => Some("internal.test, 10.0.0.0/8 ,.example.org,fd00::/8,2001:db8::1".to_owned()),
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
            "[2001:db8::1]",
        ] {
            assert!(!proxied("https", exempt), "{exempt}");
        }
        assert!(proxied("https", "notinternal.test") && proxied("https", "11.1.2.3"));
    }

    #[test]
    fn only_proxies_that_can_be_used_are_taken() {
        assert!(Proxy::read("proxy.test:3128").is_ok_and(|proxy| !proxy.is_tls()));
        assert!(Proxy::read("https://user:pass@proxy.test").is_ok_and(|proxy| proxy.is_tls()));
        for value in ["socks5://user:secret@proxy.test", "ftp://user:secret@proxy.test", "http://"] {
            let why = Proxy::read(value).err().unwrap_or_default();
            assert!(!why.is_empty() && !why.contains("secret"), "{value}: {why}");
        }
    }
}
