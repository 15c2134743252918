//! Many agents of one manager, and agents that break the rules of the protocol.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::gitlab::GitLab;
use crate::support::holds_within;
use crate::support::job::job;
use crate::support::light_agent::LightAgent;
use crate::support::pool::Pool;

const AGENTS: usize = 500;
const JOBS: usize = 1000;

/// Waits until a condition holds; longer than other tests, because there are many agents.
fn wait_for(what: &str, holds: impl Fn() -> bool) {
    assert!(holds_within(Duration::from_secs(300), holds), "{what}");
}

/// Each job is accepted once, although each tenth agent repeats its requests, accepts an expired offer, or loses its
/// connection after its first offer.
#[test]
fn five_hundred_agents_accept_a_thousand_jobs_once_each() {
    // Each agent is a socket of this process, too.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("set the resource limit");
    let gitlab = GitLab::start();
    let pool = Pool::relay().config("concurrent = 2000").runner("request_concurrency = 10");
    let fleet = pool.autoscaler("max_instances = 1000").fleet(&gitlab);
    let names: Vec<String> = (0..AGENTS).map(|number| format!("i-{number}")).collect();
    fleet.set_members(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let manager = fleet.start();
    let accepted: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let (registered, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for (number, name) in names.into_iter().enumerate() {
        let (accepted, port) = (Arc::clone(&accepted), fleet.port);
        let (registered, done) = (Arc::clone(&registered), Arc::clone(&done));
        let work = move || {
            let mut agent = LightAgent::register(port, &name);
            registered.fetch_add(1, Ordering::SeqCst);
            let mut is_first = true;
            while done.load(Ordering::SeqCst) < JOBS {
                let Some(offered) = agent.job() else { continue };
                if std::mem::take(&mut is_first) && number % 100 == 7 {
                    agent.reconnect();
                    continue;
                }
                if agent.accept(&offered) != 200 {
                    continue;
                }
                *accepted.lock().expect("the thread must not panic").entry(offered.id.clone()).or_default() += 1;
                if number % 10 == 3 {
                    assert_eq!(agent.accept(&offered), 200, "an acceptance may be repeated");
                }
                agent.end(&offered.id);
                if number % 10 == 3 {
                    assert_eq!(agent.accept(&offered), 409, "an offer of the past is void");
                }
                done.fetch_add(1, Ordering::SeqCst);
            }
        };
        thread::Builder::new().stack_size(128 * 1024).spawn(work).expect("a thread");
    }
    wait_for("all agents must register", || registered.load(Ordering::SeqCst) == AGENTS);
    let ids: Vec<i64> = (0..JOBS).map(|_| gitlab.queue(job(&["true"]).build())).collect();
    wait_for("all jobs must be accepted", || done.load(Ordering::SeqCst) >= JOBS);
    let accepted = accepted.lock().expect("the thread must not panic").clone();
    assert_eq!(accepted.len(), JOBS);
    for id in ids {
        assert_eq!(accepted.get(&id.to_string()), Some(&1), "job {id}");
    }
    for text in ["agent registered", "job accepted", "job ended"] {
        let count = manager.log().matches(text).count();
        assert_eq!(count, if text == "agent registered" { AGENTS } else { JOBS }, "{text}");
    }
}
