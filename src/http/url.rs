//! URLs of http and https: parsing, origins, and redirects.

use ureq::http::Uri;

use super::error::HttpError;

/// Parses an absolute http or https URL. Errors show only its origin.
pub(super) fn parse(url: &str) -> Result<Uri, HttpError> {
    let uri: Uri =
        url.parse().map_err(|why| HttpError::Configuration(format!("`{}` is not a URL: {why}", origin(url))))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(HttpError::Configuration(format!("`{}` is not an http or https URL", origin(url))));
    }
    Ok(uri)
}

/// Scheme, host and port of a URL, for comparisons and messages; never path or query, which may contain secrets.
pub fn origin(url: &str) -> String {
    let end = url.find("://").map_or(0, |at| at + 3);
    let host_end = url[end..].find(['/', '?', '#']).map_or(url.len(), |at| end + at);
    let authority = &url[end..host_end];
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}{}", &url[..end], host).to_ascii_lowercase()
}

/// Whether two URLs have the same scheme, host and port.
pub fn is_same_server(one: &str, other: &str) -> bool {
    let with_port = |url: &str| {
        let origin = origin(url);
        let default = if origin.starts_with("https:") { ":443" } else { ":80" };
        origin.strip_suffix(default).map(str::to_owned).unwrap_or(origin)
    };
    with_port(one) == with_port(other)
}

/// Resolves a `Location` header relative to `base` (RFC 3986, without dot segments, which servers do not send). Fails
/// if the result is not an http or https URL.
pub fn resolve(base: &str, location: &str) -> Result<String, HttpError> {
    let location = location.trim();
    let target = match location.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()) {
        Some(scheme) if scheme == "http" || scheme == "https" => {
            format!("{scheme}{}", location.get(scheme.len()..).unwrap_or_default())
        }
        Some(_) if location.contains("://") && !location.starts_with(['/', '?']) => location.to_owned(),
        _ if location.starts_with("//") => {
            format!("{}:{location}", base.split(':').next().unwrap_or("https"))
        }
        _ if location.starts_with('/') => format!("{}{location}", origin(base)),
        _ => {
            let path = base.split(['?', '#']).next().unwrap_or(base);
            let directory = path.rfind('/').filter(|at| *at >= origin(base).len()).map_or(path, |at| &path[..at]);
            format!("{directory}/{location}")
        }
    };
    match parse(&target) {
        Ok(_) => Ok(target),
        Err(_) => Err(HttpError::Transport(format!("{} redirects to an invalid URL", origin(base)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_contains_no_secrets() {
        assert_eq!(origin("https://user:pass@Host.test:8443/a?private_token=x"), "https://host.test:8443");
        assert_eq!(origin("http://h"), "http://h");
    }

    #[test]
    fn resolves_locations() {
        assert_eq!(resolve("http://h:1/a", "/b").expect("a URL"), "http://h:1/b");
        assert_eq!(resolve("http://h:1/a", "https://x/b").expect("a URL"), "https://x/b");
        assert_eq!(resolve("https://h/a", "//x/b").expect("a URL"), "https://x/b");
        assert_eq!(resolve("http://h/a/b?c=/d", "e?f").expect("a URL"), "http://h/a/e?f");
        assert_eq!(resolve("http://h", "HTTPS://X/b").expect("a URL"), "https://X/b");
        for nonsense in ["ftp://x/b", "https://", "http://a b/", "//"] {
            assert!(resolve("http://h:1/a", nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn an_explicit_default_port_is_the_same_server() {
        assert!(is_same_server("https://h/a", "https://H:443/b"));
        assert!(is_same_server("http://h:80", "http://h/"));
        for other in ["http://h/", "https://h:80/", "https://h.test/", "https://h@evil.test/"] {
            assert!(!is_same_server("https://h/a", other), "{other}");
        }
    }
}
