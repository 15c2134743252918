//! The runner of a job from a manager: the table that the manager sends, overridden by the agent's own file.

use toml::{Table, Value};

use super::Config;
use super::keys::CONNECTION_KEYS;
use crate::http::tls::TlsFiles;

/// The runner's data in the offer of a manager.
#[derive(Clone, Copy, Debug)]
pub struct OfferedRunner<'a> {
    /// The URL of GitLab.
    pub url: &'a str,
    /// Additional certificate authorities for GitLab, PEM.
    pub authorities: Option<&'a str>,
    /// The table of the runner (TOML).
    pub table: &'a str,
    /// The short form of the runner's token.
    pub short_token: &'a str,
    /// The number of concurrent jobs on an instance of the pool.
    pub capacity: u32,
}

impl Config {
    /// Adds the runner of an offered job to this configuration. Keys in the agent's own file take precedence. Fails if
    /// a table cannot be parsed or a value is invalid.
    pub fn with_offered_runner(&self, position: usize, offer: OfferedRunner<'_>) -> Result<Self, String> {
        let sent: Table = offer.table.parse().map_err(|error: toml::de::Error| {
            format!("the manager's table of the runner cannot be read: {}", error.message())
        })?;
        let own = self.runners.iter().find(|runner| runner.position == position);
        let (mut over, key) = own.map_or_else(Default::default, |own| (own.written.clone(), Some(own.key())));
        // The connection and the limit of the agent's own runner are for the manager, not for the job.
        CONNECTION_KEYS.iter().chain(&["limit"]).for_each(|key| drop(over.remove(*key)));
        let mut runner = sent;
        merge(&mut runner, over);
        runner.insert("url".to_owned(), Value::String(offer.url.to_owned()));
        runner.insert("token".to_owned(), Value::String(offer.short_token.to_owned()));
        let mut file = self.settings.clone();
        file.insert("runners".to_owned(), Value::Array(vec![Value::Table(runner)]));
        let mut config = Self::parse(&self.path, &file.to_string()).map_err(|error| error.to_string())?;
        config.concurrent = if self.concurrent_is_set { self.concurrent } else { offer.capacity.max(1) };
        for runner in &mut config.runners {
            // The short token in the table is not secret, so `Runner::key` must not derive a key from it.
            runner.key.clone_from(&key);
            if let Some(authorities) = offer.authorities {
                runner.tls = TlsFiles::from_authorities(authorities.to_owned());
            }
            // A manager asks for no client certificate and sends none, so the configured one is for GitLab.
            if let Some(own) = own {
                runner.tls.cert_file.clone_from(&own.tls.cert_file);
                runner.tls.key_file.clone_from(&own.tls.key_file);
            }
        }
        if let Some(unusable) = config.unusable.first() {
            return Err(unusable.why.clone());
        }
        Ok(config)
    }
}

/// Merges `over` into `under`, table by table; values of `over` take precedence.
fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(known)), Value::Table(more)) => merge(known, more),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ExecutorKind;

    fn offer(table: &str) -> OfferedRunner<'_> {
        OfferedRunner { url: "https://gitlab.test", authorities: None, table, short_token: "abcdefghi", capacity: 1 }
    }

    const OWN: &str = "[[runners]]\nurl = \"https://manager.test\"\ntoken = \"0123456789abcdef\"\n\
        [runners.docker]\nmemory = \"1g\"\n";

    #[test]
    fn keys_in_the_agents_own_file_win() {
        let own = Config::parse(Path::new("config.toml"), OWN).expect("a configuration");
        assert_eq!(own.runners[0].executor, ExecutorKind::FromManager);
        let sent = offer(
            "name = \"pool\"\nexecutor = \"docker-autoscaler\"\nenvironment = [\"A=1\"]\noutput_limit = 1\n\
             [docker]\nimage = \"busybox\"\nmemory = \"2g\"\n",
        );
        let config = own.with_offered_runner(0, sent).expect("a configuration");
        let runner = &config.runners[0];
        assert_eq!((runner.name.as_str(), runner.url.as_str()), ("pool", "https://gitlab.test"));
        assert_eq!(runner.executor, ExecutorKind::DockerAutoscaler);
        assert_eq!((runner.token.short().as_str(), runner.output_limit), ("abcdefghi", 1024));
        assert_eq!(runner.environment, [("A".to_owned(), "1".to_owned())]);
        let docker: Table = runner.docker_text.parse().expect("must be TOML");
        assert_eq!((docker["image"].as_str(), docker["memory"].as_str()), (Some("busybox"), Some("1g")));
    }

    #[test]
    fn gitlab_gets_the_client_certificate_of_the_agents_own_file_and_the_authorities_of_the_manager() {
        let text = OWN.replace(
            "[runners.docker]",
            "tls-ca-file = \"/manager.pem\"\ntls-cert-file = \"/client.pem\"\ntls-key-file = \"/client.key\"\n[runners.docker]",
        );
        let own = Config::parse(Path::new("config.toml"), &text).expect("a configuration");
        let sent = OfferedRunner { authorities: Some("PEM"), ..offer("name = \"pool\"\nexecutor = \"instance\"\n") };
        let tls = own.with_offered_runner(0, sent).expect("a configuration").runners.remove(0).tls;
        assert_eq!(tls.cert_file.as_deref(), Some(Path::new("/client.pem")));
        assert_eq!(tls.key_file.as_deref(), Some(Path::new("/client.key")));
        assert_eq!(tls.ca_file, TlsFiles::from_authorities("PEM".to_owned()).ca_file);
        let sent = offer("name = \"pool\"\nexecutor = \"instance\"\n");
        let tls = own.with_offered_runner(0, sent).expect("a configuration").runners.remove(0).tls;
        assert_eq!(tls.ca_file, None, "the manager's authority is not GitLab's");
    }

    #[test]
    fn an_invalid_table_is_refused_without_showing_the_token() {
        let own = Config::parse(Path::new("config.toml"), OWN).expect("a configuration");
        for (sent, part) in [("= x", "cannot be read"), ("executor = \"ssh\"", "does not exist"), ("executor = 1", "")]
        {
            let why = own.with_offered_runner(0, offer(sent)).expect_err(sent);
            assert!(why.contains(part) && !why.contains("0123456789abcdef"), "{why}");
        }
    }
}
