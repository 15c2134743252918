//! The address of a project on its GitLab server.

/// The address of a project, from the URL of a git remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectAddress {
    /// `https` or `http`
    pub protocol: &'static str,
    /// The host name without a port.
    pub host: String,
    /// The port of the web server.
    pub port: u16,
    /// The port of the SSH server.
    pub ssh_port: u16,
    /// Namespace and name of the project.
    pub path: String,
}

impl ProjectAddress {
    /// Parses the URL of `origin`. Without a URL, the project is the directory on this host.
    pub fn new(remote: Option<&str>, directory: &str) -> Self {
        let local = |path: &str| Self {
            protocol: "https",
            host: "localhost".to_owned(),
            port: 443,
            ssh_port: 22,
            path: path.to_owned(),
        };
        remote.and_then(Self::from_url).unwrap_or_else(|| local(directory))
    }

    fn from_url(url: &str) -> Option<Self> {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) => (scheme, rest.to_owned()),
            // `git@host:path`, but neither `/path` nor `./path:x`.
            None => {
                let (host, path) = url.split_once(':').filter(|(host, _)| !host.contains('/'))?;
                ("ssh", format!("{host}/{path}"))
            }
        };
        let (authority, path) = rest.split_once('/')?;
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().ok()),
            None => (authority, None),
        };
        let path = path.trim_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        if host.is_empty() || path.is_empty() {
            return None;
        }
        let (protocol, port, ssh_port) = match scheme {
            "https" => ("https", port.unwrap_or(443), 22),
            "http" => ("http", port.unwrap_or(80), 22),
            "ssh" | "git" | "git+ssh" => ("https", 443, port.unwrap_or(22)),
            _ => return None,
        };
        Some(Self { protocol, host: host.to_owned(), port, ssh_port, path: path.to_owned() })
    }

    /// The host, with the port unless it is the default port of the protocol.
    pub fn fqdn(&self) -> String {
        match (self.protocol, self.port) {
            ("https", 443) | ("http", 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    pub fn server_url(&self) -> String {
        format!("{}://{}", self.protocol, self.fqdn())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_remote_urls() {
        for (url, server, ssh_port, path) in [
            ("https://git.example.test/team/app.git", "https://git.example.test", 22, "team/app"),
            ("https://user:pw@git.example.test:8443/a/b/c", "https://git.example.test:8443", 22, "a/b/c"),
            ("git@git.example.test:team/app.git", "https://git.example.test", 22, "team/app"),
            ("ssh://git@git.example.test:2222/team/app.git/", "https://git.example.test", 2222, "team/app"),
            ("http://git.example.test/team/app", "http://git.example.test", 22, "team/app"),
            ("/srv/git/app.git", "https://localhost", 22, "dir"),
            ("file:///srv/git/app.git", "https://localhost", 22, "dir"),
            ("nonsense", "https://localhost", 22, "dir"),
        ] {
            let project = ProjectAddress::new(Some(url), "dir");
            assert_eq!(
                (project.server_url().as_str(), project.ssh_port, project.path.as_str()),
                (server, ssh_port, path)
            );
        }
    }
}
