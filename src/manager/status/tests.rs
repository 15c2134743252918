use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::*;
use crate::manager::engine::{EngineError, ErrorKind, FailedStart, FailureKind, Group, Member, MemberState};
use crate::manager::scaling::plan::ScalingPlan;
use crate::manager::scaling::wanted::{JobCounts, WantedInstances};
use crate::manager::workload::{AgentJob, AgentState, AgentView, RemainingJobs, Snapshot};

/// Jobs and agents that do not change.
struct Fixed(Mutex<Snapshot>);

impl Workload for Fixed {
    fn snapshot(&self) -> Snapshot {
        self.0.lock().expect("no panic").clone()
    }
    fn dismiss(&self, _instance: &str, _reason: &str) -> bool {
        false
    }
    fn close_instance(&self, _instance: &str, _reason: &str, _decided_at: Instant) -> bool {
        false
    }
    fn lost(&self, _instance: &str) {}
    fn set_hold_budget(&self, _jobs: u32) {}
    fn wait_for_change(&self, _timeout: Duration) {}
    fn wake(&self) {}
    fn set_members(&self, _members: &[String]) {}
}

const EVIL: &str = "<script>alert('x')</script>\"&";

fn agent(instance: &str, state: AgentState, jobs: Vec<AgentJob>) -> AgentView {
    AgentView {
        instance: instance.to_owned(),
        state,
        registered: SystemTime::now(),
        version: EVIL.to_owned(),
        capacity: 1,
        builds: 3,
        jobs,
        last_heard: Instant::now(),
    }
}

fn job(link: &str) -> AgentJob {
    AgentJob {
        id: "42".to_owned(),
        project_url_or_name: EVIL.to_owned(),
        link: link.to_owned(),
        since: SystemTime::now(),
        phase: "script",
    }
}

fn member(instance: &str, state: MemberState) -> Member {
    Member { instance: instance.to_owned(), state, healthy: true, protected: true, detail: String::new() }
}

/// A pool with a value in each field; some values come from a hostile source.
fn status_pages() -> (Arc<StatusBoard>, Pages) {
    let (board, pages, _) = status_pages_with_jobs();
    (board, pages)
}

fn status_pages_with_jobs() -> (Arc<StatusBoard>, Pages, Arc<Fixed>) {
    let snapshot = Snapshot {
        held: 2,
        running: 2,
        agents: vec![
            agent(
                "i-busy",
                AgentState::Busy,
                vec![job("https://gitlab.example.com/-/jobs/42"), job("javascript:alert(1)")],
            ),
            agent("i-idle", AgentState::Idle { since: Instant::now() }, Vec::new()),
            agent("i-leaving", AgentState::Leaving(RemainingJobs::None), Vec::new()),
        ],
    };
    let members = [
        member("i-busy", MemberState::Running),
        member("i-idle", MemberState::Running),
        member("i-leaving", MemberState::Running),
        member("i-starting", MemberState::Running),
        member("i-creating", MemberState::Creating),
        member("i-held", MemberState::TerminationDelayed),
    ];
    let group =
        Group { name: EVIL.to_owned(), desired: 6, max_size: Some(9), members: members.to_vec(), ..Group::default() };
    let plan = ScalingPlan {
        wanted: WantedInstances {
            instances: 6,
            jobs: JobCounts { held: 2, running: 2 },
            idle: 2,
            reason: "6 wanted: because".to_owned(),
        },
        policy: EVIL.to_owned(),
        stopped: Some(EVIL.to_owned()),
        hold_budget: 5,
        ..ScalingPlan::default()
    };
    let board = Arc::new(StatusBoard::new());
    board.decided("fleet", &plan, &snapshot, Some(&group));
    board.happened("fleet", EVIL);
    let error = EngineError { kind: ErrorKind::Temporary, call: "x".to_owned(), why: EVIL.to_owned() };
    board.engine_failed("fleet", "list", &error);
    let failed = FailedStart { at: jiff::Timestamp::now(), cause: EVIL.to_owned(), kind: FailureKind::Quota };
    board.start_failed("fleet", &failed);
    board.start_failed("fleet", &failed);
    board.booted("fleet", Duration::from_secs(70));
    board.waited("fleet", Duration::from_secs(80));
    board.handed_over("fleet", Duration::from_millis(3));
    board.api_error("fleet", "gitlab");
    let jobs = Arc::new(Fixed(Mutex::new(snapshot)));
    let workload: Arc<dyn Workload> = jobs.clone();
    let pages = pages(Arc::clone(&board), move || vec![("fleet".to_owned(), Arc::clone(&workload))]);
    (board, pages, jobs)
}

/// Loads the page in a browser, which `tests/setup.sh` installs; returns its text and the errors on its console.
fn browse(address: &str, arguments: &[&str]) -> (String, String) {
    let profile = tempfile::tempdir().expect("a directory");
    let output = std::process::Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--enable-logging=stderr", "--window-size=1200,1400", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(format!("http://{address}"))
        .stdin(std::process::Stdio::null())
        .output()
        .expect("run chromium");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(output.stdout), text(output.stderr))
}

/// Serves pages, and reports each request for `/`.
fn serve(pages: Pages, on_request: impl Fn() + Send + Sync + 'static) -> (crate::monitor::listener::Listener, String) {
    let counted: Pages = Arc::new(move |path| {
        if path == "/" {
            on_request();
        }
        pages(path)
    });
    for _ in 0..20 {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let address = format!("127.0.0.1:{port}");
        if let Ok(listener) = crate::monitor::listener::Listener::start(&address, Arc::clone(&counted)) {
            return (listener, address);
        }
    }
    panic!("no port is free");
}

#[test]
fn a_browser_shows_the_page_and_keeps_it_live() {
    let (_, pages, jobs) = status_pages_with_jobs();
    // The second response has another number of waiting jobs, which the updated page must show.
    let count = std::sync::atomic::AtomicU32::new(0);
    let (_listener, address) = serve(pages, move || {
        if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0 {
            jobs.0.lock().expect("no panic").held = 77;
        }
    });
    let (page, printed) = browse(&address, &["--dump-dom", "--virtual-time-budget=9000"]);
    assert!(page.contains("· live"), "{page}\n{printed}");
    assert!(page.contains("<dt>jobs waiting</dt><dd>77</dd>"), "{page}\n{printed}");
    assert!(page.contains("&lt;script&gt;alert('x')") && !page.contains("<script>alert"), "{page}");
    assert_eq!(page.matches("<svg").count(), 2, "{page}");
    for error in ["Content Security Policy", "Uncaught", "SyntaxError", "TypeError"] {
        assert!(!printed.contains(error), "{printed}");
    }
}

#[test]
fn without_scripts_the_page_is_complete_and_reloads_itself() {
    let (_, pages) = status_pages();
    let page = pages("/").expect("a page").body;
    for part in ["<dt>jobs waiting</dt><dd>2</dd>", "i-starting", "<svg", "Growth is stopped", "Recent decisions"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(page.contains("<noscript><meta http-equiv=\"refresh\" content=\"30\"></noscript>"), "{page}");
}

#[test]
fn hostile_text_is_escaped() {
    let (_, pages) = status_pages();
    let page = pages("/").expect("a page").body;
    assert_eq!(page.matches("<script").count(), 1, "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)"), "{page}");
    assert!(page.contains("<a href=\"https://gitlab.example.com/-/jobs/42\""), "{page}");
    assert!(!page.contains("href=\"javascript:"), "{page}");
    for external in ["src=", "@import", "url(", "<link"] {
        assert!(!page.contains(external), "{external}");
    }
}

#[test]
fn each_instance_has_its_state() {
    let (_, pages) = status_pages();
    let status: view::ManagerView =
        serde_json::from_str(&pages("/status").expect("must be JSON").body).expect("a status");
    let pool = &status.pools[0];
    let states: Vec<&str> = pool.instances.iter().map(|instance| instance.state.as_str()).collect();
    assert_eq!(states, ["held", "busy", "starting", "creating", "shutting_down", "idle"]);
    assert_eq!(pool.instances[1].jobs.len(), 2);
    assert_eq!((pool.wanted, pool.held, pool.running, pool.hold_budget), (6, 2, 2, 5));
    assert_eq!((pool.history.busy.clone(), pool.history.idle.clone()), (vec![1], vec![3]));
    assert_eq!(pool.group.as_ref().map(|group| group.desired), Some(6));
    assert_eq!(pool.decisions.len(), 2);
}

#[test]
fn metrics_have_every_state_and_component() {
    let (_, pages) = status_pages();
    let text = pages("/metrics").expect("the page must be served").body;
    for line in [
        "mayfly_manager_instances{pool=\"fleet\",state=\"busy\"} 1",
        "mayfly_manager_instances{pool=\"fleet\",state=\"missing\"} 0",
        "mayfly_manager_jobs{pool=\"fleet\",state=\"held\"} 2",
        "mayfly_manager_wanted_instances{pool=\"fleet\"} 6",
        "mayfly_manager_wanted_jobs{pool=\"fleet\",component=\"idle\"} 2",
        "mayfly_manager_growth_stopped{pool=\"fleet\"} 1",
        "mayfly_manager_failed_starts_total{pool=\"fleet\",cause=\"quota\"} 1",
        "mayfly_manager_failed_starts_total{pool=\"fleet\",cause=\"image\"} 0",
        "mayfly_manager_api_errors_total{pool=\"fleet\",call=\"list\"} 1",
        "mayfly_manager_api_errors_total{pool=\"fleet\",call=\"gitlab\"} 1",
        "mayfly_manager_boot_seconds_count{pool=\"fleet\"} 1",
        "mayfly_manager_job_waiting_seconds_sum{pool=\"fleet\"} 80",
        "mayfly_manager_hand_over_seconds_bucket{pool=\"fleet\",le=\"0.005\"} 1",
        "mayfly_manager_group_maximum{pool=\"fleet\"} 9",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} in {text}");
    }
}

#[test]
fn the_documentation_names_every_metric() {
    let (_, pages) = status_pages();
    let text = pages("/metrics").expect("the page must be served").body;
    let heads = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
    let served: std::collections::BTreeSet<&str> = heads.filter(|name| !name.starts_with("process_")).collect();
    let page = include_str!("../../../docs/reference/metrics.md");
    let section = page.split("\n## Metrics of a manager\n").nth(1).expect("a section");
    let section = section.split("\n## ").next().expect("a section");
    let documented = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(served, documented.collect());
}

#[test]
fn a_healthy_manager_answers_200_and_the_error_of_the_engine_is_cleared() {
    let (board, pages) = status_pages();
    assert_eq!(pages("/healthz").expect("the page must be served").status, 200);
    board.engine_answered("fleet");
    assert!(pages("/").expect("a page").body.contains("Growth is stopped"));
    assert!(!pages("/").expect("a page").body.contains("An engine call fails"));
    assert!(pages("/nowhere").is_none());
}
