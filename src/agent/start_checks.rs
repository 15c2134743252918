//! Checks whether an agent or a manager can start on this machine with a configuration. `run --validate`, `check` and
//! `lint` share these checks, so that they accept the same configurations.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::config::{self, Config};
use crate::instance::{self, Instance, Requirement};
use crate::monitor::address::bind;

/// Checks that the state directory can be written: creates and removes a directory in it, or where it will be created.
/// Permission bits would not be enough: those of /proc, for example, are misleading. `table` is the table of the key
/// `state_dir`. Errors: why it cannot be written, and the key to change.
pub fn check_state_dir(state: &Path, table: &str) -> Result<(), String> {
    // The ancestors of a relative path do not include the directories above the current one.
    let absolute = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists());
    let probed = match existing.filter(|directory| directory.is_dir()) {
        Some(directory) => probe(directory),
        None => Err("not a directory".to_owned()),
    };
    probed.map_err(|why| format!("{} cannot be written: {why}; set `state_dir` below {table}", state.display()))
}

fn probe(directory: &Path) -> Result<(), String> {
    let probe = directory.join(format!(".mayfly-check-{}", std::process::id()));
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).map_err(|error| error.to_string())
}

/// Checks that the metrics listener can bind its address. If the address is in use, the check passes while a process
/// with the same state directory runs, because that process may have bound it. Errors: why the listener cannot bind it,
/// and the key.
pub fn check_listen_address(address: &str, state: &Path) -> Result<(), String> {
    // An agent locks the directory and the file, a manager only the file.
    let is_locked = |path: &Path| File::open(path).is_ok_and(|lock| lock.try_lock().is_err());
    let is_running = || is_locked(state) || is_locked(&state.join("lock"));
    match bind(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_running() => Ok(()),
        Err(error) => {
            Err(format!("`listen_address = \"{address}\"`: {error}; free the port, or choose another address"))
        }
        Ok(_) => Ok(()),
    }
}

/// Checks the address of the metrics listener, if there is one: that of the command line, or else of the configuration.
/// Errors: as [`check_listen_address`].
pub fn check_listener(command_line: Option<&str>, config: &Config, state: &Path) -> Result<(), String> {
    let address = command_line.or(config.listen_address.as_deref()).filter(|address| !address.is_empty());
    address.map_or(Ok(()), |address| check_listen_address(address, state))
}

/// Finds the instance for an agent that starts, possibly while the machine boots. Errors: the instance does not offer
/// what `leave` requires.
pub fn find_instance(config: &Config) -> Result<Arc<dyn Instance>, String> {
    instance::find(config.mayfly.aws.as_ref(), Requirement::new(&config.leave))
}

/// As [`find_instance`], on a machine that has booted: the metadata service must answer at once.
pub fn find_running_instance(config: &Config) -> Result<Arc<dyn Instance>, String> {
    instance::find_at_once(config.mayfly.aws.as_ref(), Requirement::new(&config.leave))
}

/// All problems on this machine that prevent the start of an agent, or of a manager if the configuration has one.
pub fn problems(config: &Config) -> Vec<String> {
    let (state, table, instance) = match &config.mayfly.manager {
        None => (config::state_dir(config), "[mayfly]", find_running_instance(config).map(drop)),
        Some(manager) => (config::manager_state_dir(config, manager), "[mayfly.manager]", Ok(())),
    };
    let listener = check_listener(None, config, &state);
    let state = check_state_dir(&state, table).map_err(|why| format!("the state directory {why}"));
    [state, listener, instance].into_iter().filter_map(Result::err).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_in_use_is_refused_unless_the_running_agent_holds_it() {
        let state = tempfile::tempdir().expect("create a directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind an address");
        let address = listener.local_addr().expect("the listener has an address").to_string();
        let why = check_listen_address(&address, state.path()).expect_err("the address is in use");
        assert!(why.contains(&address) && why.contains("listen_address"), "{why}");
        let lock = File::create(state.path().join("lock")).expect("create the lock");
        lock.lock().expect("take the lock");
        assert_eq!(check_listen_address(&address, state.path()), Ok(()));
        let why = check_listen_address("192.0.2.1:9252", state.path()).expect_err("no interface has the address");
        assert!(why.contains("192.0.2.1"), "{why}");
    }

    #[test]
    fn a_state_directory_is_probed_by_writing() {
        let directory = tempfile::tempdir().expect("create a directory");
        assert_eq!(check_state_dir(&directory.path().join("a/b"), "[mayfly]"), Ok(()));
        assert!(!directory.path().join("a").exists(), "nothing must be left");
        let file = directory.path().join("file");
        File::create(&file).expect("create a file");
        for unusable in [file.join("state"), "/proc/state".into()] {
            let why = check_state_dir(&unusable, "[mayfly]").expect_err("the directory cannot be written");
            assert!(why.contains("state_dir") && why.contains(&*unusable.to_string_lossy()), "{why}");
        }
    }
}
