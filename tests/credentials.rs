//! The agent blocks jobs from the instance metadata service. Each test has its own network with a metadata service.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::support::docker::Docker;
use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::output_text;
use crate::support::scenario::Scenario;

const SECRET: &str = "the-credentials";
const V4: &str = "169.254.169.254";
const V6: &str = "fd00:ec2::254";
/// The address of another AWS service.
const OTHER: &str = "169.254.169.253";

/// Runs a test, and all processes that it starts, in a new network namespace.
fn secluded(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("namespaces need root");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("run ip");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Sends the secret to every client.
fn serve(address: &str, port: u16) {
    let address: IpAddr = address.parse().expect("an address");
    let listener = TcpListener::bind(SocketAddr::new(address, port)).expect("bind the address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(SECRET.as_bytes());
        }
    });
}

/// The metadata service, in the machine's network namespace.
fn serve_metadata() {
    ip(&format!("addr add {V4}/32 dev lo"));
    ip(&format!("addr add {V6}/128 dev lo nodad"));
    serve(V4, 80);
    serve(V6, 80);
}

/// The response to a request of this process, which runs as root.
fn ask(address: &str) -> io::Result<String> {
    let address: IpAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 80), Duration::from_secs(10))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A job that requests the metadata service.
fn asking() -> serde_json::Value {
    let ask = |name: &str, address: &str| {
        format!(
            "echo {name}=$(timeout 10 bash -c 'exec 3<>/dev/tcp/{address}/80 && cat <&3' 2>/dev/null || echo shut out)"
        )
    };
    job(&[&ask("four", V4), &ask("six", V6), &ask("mapped", &format!("::ffff:{V4}"))]).build()
}

fn table() -> Output {
    Command::new("nft").args(["list", "table", "inet", "mayfly"]).output().expect("run nft")
}

#[test]
fn a_job_is_blocked_root_is_not_and_removed_rules_are_restored() {
    secluded(|| {
        serve_metadata();
        let gitlab = GitLab::start();
        let scenario = Scenario::shell().config("user = \"nobody\"");
        let home = scenario.home(&gitlab);
        let ran = |id: i64| gitlab.finished(id).lines();
        let has = |lines: &[String], line: &str| lines.iter().any(|other| other == line);
        let mut agent = home.start(&[]);
        let lines = ran(gitlab.queue(asking()));
        for name in ["four", "six", "mapped"] {
            assert!(has(&lines, &format!("{name}={SECRET}")), "{name}: {lines:#?}");
        }
        assert!(!table().status.success(), "nobody asked for a table");
        agent.drain();

        let block = |on: bool| {
            scenario.clone().mayfly(&format!("block_instance_metadata = {on}")).write(&home, &gitlab.url);
        };
        block(true);
        for _ in 0..2 {
            let mut agent = home.start(&[]);
            agent.wait_for_log("access of jobs to the instance metadata is blocked");
            let lines = ran(gitlab.queue(asking()));
            for name in ["four", "six", "mapped"] {
                assert!(has(&lines, &format!("{name}=shut out")), "{name}: {lines:#?}");
            }
            assert_eq!([V4, V6].map(|address| ask(address).expect("an answer")), [SECRET, SECRET]);
            agent.drain();
            assert!(table().status.success(), "what jobs leave behind stays shut out");
        }

        let mut agent = home.start(&[]);
        agent.wait_for_log("mayfly is up");
        let flushed = Command::new("nft").args(["flush", "ruleset"]).status().expect("run nft");
        assert!(flushed.success());
        let lines = ran(gitlab.queue(asking()));
        assert!(has(&lines, "four=shut out") && has(&lines, "six=shut out"), "{lines:#?}");
        assert!(agent.log().contains("restoring it"), "{}", agent.log());
        block(false);
        agent.wait_for_log("no longer blocked");
        let lines = ran(gitlab.queue(asking()));
        assert!(has(&lines, &format!("four={SECRET}")), "{lines:#?}");
        assert!(!table().status.success());
        agent.drain();
        gitlab.assert_strict();
    });
}

/// A process in a new network namespace; killed when the test ends.
struct Elsewhere(Child);

impl Elsewhere {
    fn start() -> Self {
        let child = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut elsewhere = Self(child.expect("run unshare"));
        // The process answers as soon as it is in the namespace.
        let mut echo = [0; 3];
        elsewhere.0.stdin.as_mut().expect("a pipe").write_all(b"in\n").expect("write a file");
        elsewhere.0.stdout.as_mut().expect("a pipe").read_exact(&mut echo).expect("read the echo");
        elsewhere.run("ip link set lo up");
        elsewhere
    }

    fn run(&self, line: &str) {
        let target = self.0.id().to_string();
        let done = Command::new("nsenter").args(["--net", "--target", &target, "sh", "-c", line]).output();
        let done = done.expect("run nsenter");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Runs a function in this network namespace.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.0.id())).expect("a network");
        let thread = thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).expect("namespaces need root");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn only_forwarded_traffic_to_the_metadata_service_is_blocked() {
    secluded(|| {
        // A container and the cloud in two network namespaces, and the machine as the router between them.
        let (container, cloud) = (Elsewhere::start(), Elsewhere::start());
        ip(&format!("link add c0 type veth peer name eth0 netns {}", container.0.id()));
        ip(&format!("link add u0 type veth peer name eth0 netns {}", cloud.0.id()));
        for (device, address) in [("c0", "10.9.0.1/24"), ("u0", "169.254.1.1/16")] {
            ip(&format!("addr add {address} dev {device}"));
            ip(&format!("link set {device} up"));
        }
        container.run("ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.9.0.1");
        cloud.run(&format!(
            "ip addr add {V4}/16 dev eth0; ip addr add {OTHER}/32 dev eth0; ip link set eth0 up; \
             ip route add 10.9.0.0/24 via 169.254.1.1"
        ));
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("write the file");
        cloud.inside(|| [V4, OTHER].map(|address| serve(address, 80)));
        let ask = |address: &'static str| container.inside(move || ask(address).unwrap_or_default());
        assert_eq!([ask(V4), ask(OTHER)], [SECRET, SECRET]);

        let gitlab = GitLab::start();
        let scenario = Scenario::shell().config("user = \"nobody\"").mayfly("block_instance_metadata = true");
        let home = scenario.home(&gitlab);
        let mut agent = home.start(&[]);
        agent.wait_for_log("mayfly is up");
        assert_eq!([ask(V4).as_str(), ask(OTHER).as_str()], ["", SECRET]);
        agent.drain();
    });
}

#[test]
fn a_container_is_blocked_from_the_metadata_service_only() {
    let engine = Docker::start();
    engine.within(|| {
        // The daemon's network namespace is the machine; the cloud is behind it.
        let cloud = Elsewhere::start();
        ip(&format!("link add u0 type veth peer name eth0 netns {}", cloud.0.id()));
        ip("addr add 169.254.1.1/16 dev u0");
        ip("link set u0 up");
        cloud.run(&format!("ip addr add {V4}/16 dev eth0; ip addr add {OTHER}/32 dev eth0; ip link set eth0 up"));
        cloud.inside(|| [V4, OTHER].map(|address| serve(address, 80)));
        let gitlab = GitLab::start();
        let scenario = Scenario::containers().engine(&engine.host());
        let home = scenario.home(&gitlab);
        let ask = |name: &str, address: &str| {
            format!("echo {name}=$(timeout 10 nc {address} 80 </dev/null || echo shut out)")
        };
        for (block, four) in [(false, SECRET), (true, "shut out")] {
            if block {
                scenario.clone().mayfly("block_instance_metadata = true").write(&home, &gitlab.url);
            }
            let mut agent = home.start(&[]);
            let id = gitlab.queue(job(&[&ask("four", V4), &ask("other", OTHER)]).build());
            let lines = gitlab.finished(id).lines();
            for line in [format!("four={four}"), format!("other={SECRET}")] {
                assert!(lines.contains(&line), "{line} in {lines:#?}\n{}", agent.log());
            }
            agent.drain();
        }
        gitlab.assert_strict();
    });
}

/// Asserts that `run` and `check` refuse the configuration, with all these words in the error.
fn assert_refused(gitlab: &GitLab, scenario: Scenario, parts: &[&str]) {
    let home = scenario.mayfly("block_instance_metadata = true").home(gitlab);
    let config = home.config().display().to_string();
    for command in ["run", "check"] {
        let refused = home.call(&[command, "--config", &config]);
        let error = output_text(&refused);
        assert!(!refused.status.success(), "{error}");
        for part in [&["block_instance_metadata"], parts].concat() {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
    assert_eq!(gitlab.count("POST jobs/request"), 0);
}

#[test]
fn the_agent_does_not_start_if_jobs_cannot_be_blocked() {
    let gitlab = GitLab::start();
    assert_refused(&gitlab, Scenario::shell(), &["runner `test`", "jobs run as the agent's own user"]);
    for key in ["privileged = true", "network_mode = \"host\"", "volumes = [\"/var/run/docker.sock:/s\"]"] {
        let scenario = Scenario::containers().engine("unix:///run/none.sock").docker(key);
        let (name, _) = key.split_once(' ').expect("a key");
        assert_refused(&gitlab, scenario, &["runner `test`", &format!("`{name}` below [runners.docker]")]);
    }
}

#[test]
fn the_agent_does_not_start_if_it_cannot_load_rules() {
    let gitlab = GitLab::start();
    thread::scope(|scope| {
        let without_the_tool = || {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces need root");
            let hide = "mount --make-rprivate / && mount --bind /bin/false \"$(command -v nft)\"";
            assert!(Command::new("sh").args(["-c", hide]).status().expect("run sh").success());
            assert_refused(&gitlab, Scenario::shell().config("user = \"nobody\""), &["nft"]);
        };
        scope.spawn(without_the_tool).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
