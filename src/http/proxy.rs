//! Selects the proxy of a request: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the agent's environment, in upper or
//! lower case.
//!
//! A request for an `https` URL goes through a tunnel (`CONNECT`); the proxy forwards a request for an `http` URL.

use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

/// How a request reaches its server.
#[derive(Clone, PartialEq, Eq)]
pub enum Route {
    /// Without a proxy.
    Direct,
    /// Through a tunnel that the proxy opens.
    Tunnel(Proxy),
    /// The proxy reads the request and forwards it.
    Forward(Proxy),
}

impl Route {
    /// The route to a URL according to the environment. Fails if the environment names an unusable proxy.
    pub fn from_environment(url: &Uri) -> Result<Self, String> {
        Ok(match configured_proxy(url)? {
            None => Self::Direct,
            Some(proxy) if url.scheme_str() == Some("https") => Self::Tunnel(proxy),
            Some(proxy) => Self::Forward(proxy),
        })
    }

    /// The proxy of the route.
    pub fn proxy(&self) -> Option<&Proxy> {
        match self {
            Self::Direct => None,
            Self::Tunnel(proxy) | Self::Forward(proxy) => Some(proxy),
        }
    }

    /// Whether a request for a URL with this scheme uses TLS, to the server or to the proxy.
    pub fn needs_tls(&self, scheme: Option<&str>) -> bool {
        scheme == Some("https") || self.proxy().is_some_and(Proxy::is_tls)
    }
}

/// Appends the proxy to messages about a failed request.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.proxy() {
            None => Ok(()),
            Some(proxy) => write!(f, " (through the proxy {})", proxy.origin()),
        }
    }
}

/// A proxy that can be used.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy(ureq::Proxy);

impl Proxy {
    /// Parses the value of a variable. Fails if it is not a URL, or for an unsupported protocol. The messages do not
    /// show the value, which may contain a password.
    pub(super) fn read(value: &str) -> Result<Self, String> {
        let proxy = ureq::Proxy::new(value)
            .map_err(|_| "HTTP_PROXY or HTTPS_PROXY is not a URL such as http://proxy.example:3128".to_owned())?;
        match proxy.protocol() {
            ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https => Ok(Self(proxy)),
            _ => Err("HTTP_PROXY or HTTPS_PROXY is not an http or https proxy; SOCKS is not supported".to_owned()),
        }
    }

    /// Whether the connection to the proxy itself uses TLS.
    pub fn is_tls(&self) -> bool {
        self.0.protocol() == ureq::ProxyProtocol::Https
    }

    /// The proxy in the HTTP library's type.
    pub fn to_library(&self) -> ureq::Proxy {
        self.0.clone()
    }

    /// Scheme, host and port, without name and password.
    pub fn origin(&self) -> String {
        let scheme = if self.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.0.host(), self.0.port())
    }

    /// `name:password`, if the URL contains them.
    pub fn credentials(&self) -> Option<String> {
        let (name, password) = (self.0.username(), self.0.password());
        (name.is_some() || password.is_some())
            .then(|| format!("{}:{}", name.unwrap_or_default(), password.unwrap_or_default()))
    }
}

/// The proxy in the environment for a URL. Fails if the proxy is unusable.
fn configured_proxy(url: &Uri) -> Result<Option<Proxy>, String> {
    let (scheme, host) = (url.scheme_str().unwrap_or_default(), url.host().unwrap_or_default());
    select_proxy(scheme, host, |name| std::env::var(name).ok()).map(|value| Proxy::read(&value)).transpose()
}

/// The proxy for a URL. Requests to loopback addresses never use a proxy.
pub fn select_proxy(scheme: &str, host: &str, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
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

/// Whether an entry of `NO_PROXY` covers a host: `*`, an address, a network (`10.0.0.0/8`), or a domain with all its
/// subdomains.
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
    fn selects_by_scheme_and_no_proxy() {
        let environment = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://proxy:3128".to_owned()),
            "no_proxy" => Some("internal.test, 10.0.0.0/8 ,.example.org,fd00::/8,2001:db8::1".to_owned()),
            _ => None,
        };
        let proxied = |scheme, host| select_proxy(scheme, host, environment).is_some();
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
    fn refuses_unsupported_proxies() {
        assert!(Proxy::read("proxy.test:3128").is_ok_and(|proxy| !proxy.is_tls()));
        assert!(Proxy::read("https://user:pass@proxy.test").is_ok_and(|proxy| proxy.is_tls()));
        for value in ["socks5://user:secret@proxy.test", "ftp://user:secret@proxy.test", "http://"] {
            let why = Proxy::read(value).err().unwrap_or_default();
            assert!(!why.is_empty() && !why.contains("secret"), "{value}: {why}");
        }
    }
}
