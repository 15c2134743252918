//! The notifications that the agent sends to its service manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::Signal;

use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::Home;
use crate::support::scenario::Scenario;
use crate::support::{TIMEOUT, send_signal};

/// The service manager's end of the notification socket. A thread receives all notifications: the agent drops those
/// for which a full socket has no room within a second.
struct Manager(mpsc::Receiver<String>);

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("bind the address");
        let (sender, received) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length) = socket.recv(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self(received)
    }

    /// The next notification with a line that starts with `wanted`.
    fn next(&self, wanted: &str) -> String {
        loop {
            let notice = self.0.recv_timeout(TIMEOUT).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
            if notice.lines().any(|line| line.starts_with(wanted)) {
                return notice;
            }
        }
    }
}

#[test]
fn notifies_the_service_manager_of_each_phase() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let manager = Manager::listen(&home.path("notify"));
    let socket = home.path("notify").display().to_string();
    let mut agent = home.start_with(&[], &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", "400000")]);
    let ready = format!("READY=1\nMAINPID={}", agent.pid());
    assert_eq!(manager.next("READY"), ready);
    agent.wait_for_log("mayfly is up");
    manager.next("STATUS=0 of 1 jobs");
    manager.next("WATCHDOG=1");
    manager.next("WATCHDOG=1");

    agent.signal("HUP");
    assert!(manager.next("RELOADING=1").contains("MONOTONIC_USEC="));
    assert_eq!(manager.next("READY"), ready);

    let go = home.path("go");
    let id = gitlab.queue(job(&["env | cut -d= -f1", "echo begun", &until_there(go.display())]).build());
    manager.next("STATUS=1 of 1 jobs");
    gitlab.wait_for_log(id, "begun");
    agent.signal("USR2");
    manager.next("RELOADING=1");
    assert_eq!(manager.next("READY"), ready, "the program took its place in the same process");
    manager.next("WATCHDOG=1");
    std::fs::write(&go, "").expect("write a file");
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success");
    assert!(!job.lines().iter().any(|line| line.starts_with("NOTIFY_") || line.starts_with("WATCHDOG_")));

    agent.signal("QUIT");
    manager.next("STATUS=taking no more jobs (signal)");
    manager.next("STOPPING=1");
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn works_without_a_service_manager() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    // A socket without a listener.
    drop(UnixDatagram::bind(home.path("notify")).expect("bind the address"));
    let socket = home.path("notify").display().to_string();
    let mut agent = home.start_with(&["--once"], &[("NOTIFY_SOCKET", &socket)]);
    let id = gitlab.queue(job(&["true"]).build());
    assert!(agent.wait().success());
    assert!(agent.log().contains("cannot notify the service manager"), "{}", agent.log());
    assert_eq!(gitlab.job(id).state, "success");
}

#[test]
fn a_failed_start_is_logged_once_and_delays_the_exit() {
    let home = Home::empty();
    std::fs::write(home.config(), "concurrent = 0\n").expect("write a file");
    let runtime = home.path("runtime");
    std::fs::create_dir(&runtime).expect("create the directory");
    let socket = home.path("notify").display().to_string();
    let start = || {
        let variables = [
            ("NOTIFY_SOCKET", socket.as_str()),
            ("RUNTIME_DIRECTORY", runtime.to_str().expect("the path must be UTF-8")),
        ];
        let mut agent = home.start_with(&[], &variables);
        assert_eq!(agent.wait().code(), Some(1));
        agent.log()
    };
    assert!(start().contains("`concurrent` must be at least 1"));
    assert_eq!(start(), "", "the same error within a minute");
    std::fs::write(home.config(), "concurrent = \n").expect("write a file");
    assert!(start().contains("line 1"), "another error");
    // Stopping the unit must not wait for the delay after the fourth failure, which is eight seconds.
    let mut agent = home.start_with(
        &[],
        &[("NOTIFY_SOCKET", &socket), ("RUNTIME_DIRECTORY", runtime.to_str().expect("the path must be UTF-8"))],
    );
    let record = || std::fs::read_to_string(runtime.join("start-failures")).unwrap_or_default();
    agent.wait_until("the fourth failure", || record().contains("\"count\":4"));
    send_signal(agent.pid(), Signal::SIGTERM);
    assert_eq!(agent.wait().code(), None, "ended by the signal");
}
