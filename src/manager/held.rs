//! A second record of held jobs, outside of the state directory. If the state directory is lost, the manager fails
//! these jobs at GitLab, which can retry them. Otherwise GitLab would show them as running for an hour.
//!
//! The record contains ids and tokens, encrypted with a key that is derived from the runner's token. It is in systemd's
//! runtime directory, or else next to the configuration file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::store::Sealer;
use crate::digest::sha256;
use crate::sync;
use crate::sys;
use crate::token::Token;

const NAME: &str = "held-jobs";

/// A job that an earlier manager held.
#[derive(Debug)]
pub struct RecordedJob {
    pub pool: String,
    pub id: String,
    /// The encrypted token of the job.
    pub sealed_token: String,
}

/// Held jobs by pool and id, with their encrypted tokens.
type Jobs = BTreeMap<(String, String), String>;

/// The record.
pub struct HeldJobs {
    path: PathBuf,
    jobs: Mutex<Jobs>,
}

impl HeldJobs {
    /// Loads the record for this configuration file. Also returns the entries of an earlier manager.
    pub fn open(config: &Path) -> (Self, Vec<RecordedJob>) {
        let runtime = std::env::var_os("RUNTIME_DIRECTORY").filter(|directory| !directory.is_empty());
        // Two managers whose configurations are in one directory must not fail each other's jobs.
        let name = match config.file_name() {
            Some(file) if file != "config.toml" => format!("{NAME}-{}", &sha256(file.as_encoded_bytes())[..12]),
            _ => NAME.to_owned(),
        };
        let path = match runtime {
            Some(directory) => PathBuf::from(directory).join(name),
            None => config.with_file_name(format!(".mayfly-{name}")),
        };
        let text = fs::read_to_string(&path).unwrap_or_default();
        let recorded: Vec<RecordedJob> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let (pool, id, sealed_token) = (words.next()?, words.next()?, words.next()?);
                let (id, sealed_token) = (id.to_owned(), sealed_token.to_owned());
                Some(RecordedJob { pool: pool.replace("%20", " "), id, sealed_token })
            })
            .collect();
        let jobs = recorded.iter().map(|job| ((job.pool.clone(), job.id.clone()), job.sealed_token.clone()));
        (Self { path, jobs: Mutex::new(crate::ordered::map(jobs)) }, recorded)
    }

    /// Records that a job is held.
    pub fn add(&self, pool: &str, id: &str, runner: &Token, job: &Token) {
        let sealed = sealer(runner).and_then(|sealer| sealer.seal(&purpose(pool, id), job.reveal().as_bytes()).ok());
        let Some(sealed) = sealed else { return };
        self.change(|jobs| jobs.insert((pool.to_owned(), id.to_owned()), sealed).is_none());
    }

    /// Records that a job is no longer held. An agent may run the job only after this function has returned.
    pub fn remove(&self, pool: &str, id: &str) {
        self.change(|jobs| jobs.remove(&(pool.to_owned(), id.to_owned())).is_some());
    }

    fn change(&self, change: impl FnOnce(&mut Jobs) -> bool) {
        let mut jobs = sync::lock(&self.jobs);
        if !change(&mut jobs) {
            return;
        }
        let lines: String =
            jobs.iter().map(|((pool, id), sealed)| format!("{} {id} {sealed}\n", pool.replace(' ', "%20"))).collect();
        if let Err(error) = sys::replace_file(&self.path, lines.as_bytes()) {
            log::warn!(
                "cannot record the held jobs outside of the state directory path={} error={error}",
                self.path.display()
            );
        }
    }
}

/// The token of a job in the record; `None` if another runner took it.
pub fn token_of(runner: &Token, pool: &str, id: &str, sealed: &str) -> Option<Token> {
    let token = sealer(runner)?.open(&purpose(pool, id), sealed)?;
    String::from_utf8(token).ok().map(Token::new)
}

fn sealer(runner: &Token) -> Option<Sealer> {
    let text = format!("mayfly held jobs\0{}", runner.reveal());
    Sealer::with_key(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref())
}

fn purpose(pool: &str, id: &str) -> String {
    format!("held {pool} {id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_runners_token_decrypts_the_tokens_of_held_jobs() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.toml");
        let (runner, job) = (Token::new("glrt-secret"), Token::new("glcbt-job"));
        let (held, left) = HeldJobs::open(&config);
        assert!(left.is_empty());
        held.add("a pool", "7", &runner, &job);
        held.add("a pool", "8", &runner, &job);
        held.remove("a pool", "8");
        let (_, left) = HeldJobs::open(&config);
        let [RecordedJob { pool, id, sealed_token }] = &left[..] else { panic!("{left:?}") };
        assert_eq!((pool.as_str(), id.as_str()), ("a pool", "7"));
        assert_eq!(token_of(&runner, pool, id, sealed_token), Some(job));
        assert_eq!(token_of(&Token::new("glrt-other"), pool, id, sealed_token), None);
        assert!(!fs::read_to_string(held.path).expect("a file").contains("glcbt"));
        let (_, left) = HeldJobs::open(&config.with_file_name("second.toml"));
        assert!(left.is_empty(), "the record of another manager must not be read");
    }
}
