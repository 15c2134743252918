//! Attacks by a program inside the sandbox, without a container. The results depend on the kernel, so
//! `tests/kernel/run` runs these tests on other kernels too.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

/// A sandbox as the agent creates it, for `builds` in a directory that also contains a configuration.
struct Sandbox {
    directory: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("builds")).expect("create the directory");
        fs::write(directory.path().join("config.toml"), "token = \"glrt-secret\"").expect("write the file");
        Self { directory }
    }

    /// A shell script in the sandbox; it can write to `$BUILDS`.
    fn command(&self, script: &str) -> Command {
        let builds = self.directory.path().join("builds");
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        command.args(["shim", "--try-confinement"]).arg(&builds).args(["1900000000", "/bin/sh", "-c", script]);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("BUILDS", &builds);
        command
    }

    /// Runs a script to its end; returns its output.
    fn run(&self, script: &str) -> String {
        let output = self.command(script).stdin(Stdio::null()).output().expect("a sandbox");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout) + &text(&output.stderr)
    }

    /// Starts a script that prints `ready` and ends when its standard input is closed.
    fn start(&self, script: &str) -> Running {
        let mut child = self.command(&format!("{script}\necho ready; read -r line; echo survived"));
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a sandbox");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Running { child, output }
    }
}

struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn end(mut self) -> String {
        self.child.stdin.take().expect("a pipe").write_all(b"end\n").expect("write all bytes");
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest).expect("read the output of the process");
        self.child.wait().expect("wait for the end of the process");
        rest
    }
}

#[test]
fn a_program_in_the_sandbox_has_no_privileges() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.directory.path().join("builds/probe.sh"), probe()).expect("write the file");
    let output = sandbox.run("cd $BUILDS && sh probe.sh");
    let findings = output.lines().filter_map(|line| line.strip_prefix("hostile ")?.split_once(' '));
    let findings = findings.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    assert_confined(&findings);
}

/// All sandboxes have the same user.
#[test]
fn a_program_in_one_sandbox_looks_for_another_ones() {
    let (victim, attacker) = (Sandbox::new(), Sandbox::new());
    let listen = "use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un(\"\\0mayfly-hostile\")) or die; \
                  listen(S, 1); open(F, \">\", \"$ENV{BUILDS}/listens\"); close STDOUT; sleep 600";
    let running = victim.start(&format!(
        "echo secret >/tmp/secret; echo secret >$BUILDS/secret; perl -e '{listen}' & \
         while [ ! -e $BUILDS/listens ]; do sleep 0.1; done"
    ));
    let connect = "use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); \
                   print connect(S, pack_sockaddr_un(\"\\0mayfly-hostile\")) ? \"reached\\n\" : \"closed\\n\"";
    let found = attacker.run(&format!(
        "perl -e '{connect}'; cat /tmp/secret {}/builds/secret 2>/dev/null; \
         for process in /proc/[0-9]*; do tr '\\0' ' ' <$process/cmdline; done 2>/dev/null | grep -c mayfly-hostile-; \
         kill -9 -1; true",
        victim.directory.path().display()
    ));
    assert!(found.contains("closed") && !found.contains("reached") && !found.contains("secret"), "{found}");
    assert_eq!(running.end(), "survived\n");
}

/// A control group below the root of the hierarchy that limits memory, of version 2 or 1; `None` if this machine has
/// none.
fn memory_group() -> Option<PathBuf> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
    let has_memory = fs::read_to_string(unified).is_ok_and(|all| all.split_whitespace().any(|one| one == "memory"));
    let of_version_1 = || Some(PathBuf::from("/sys/fs/cgroup/memory")).filter(|root| root.join("tasks").exists());
    let root = if has_memory { Some(PathBuf::from("/sys/fs/cgroup")) } else { of_version_1() };
    Some(root?.join(format!("mayfly-hostile-{}", std::process::id())))
}

/// The task of a stage is in the control group of its step from its start: with too little memory, it cannot begin.
#[test]
fn a_task_needs_more_memory_than_its_step_may() {
    let Some(group) = memory_group() else {
        eprintln!("not tested: no hierarchy limits memory");
        return;
    };
    let sandbox = Sandbox::new();
    let path = |name: &str| sandbox.directory.path().join(name);
    for (memory, is_enough) in [(64_u64 << 20, true), (128 << 10, false)] {
        let limits = json!({"memory": memory, "processes": 64, "cpu_millis": null});
        let sandbox = json!({
            "writable": [path("builds")], "readable": [], "world_writable": false, "uid": 1_900_000_000, "network": null,
            "ambient_capabilities": false, "limits": limits,
        });
        let task = json!({"File": {"EmptyDirectory": path("builds")}}).to_string();
        let spec = json!({
            "id": "hostile-memory", "spool": path("log"), "status": path("status"),
            "filters": {"masks": [], "token_prefixes": [], "timestamps": false, "limit": 1 << 20},
            "user": null, "cgroups": [group], "grace": 5.0, "deadline": null,
            "task": {"AgentTask": {"task": task, "rights": {"Sandboxed": sandbox}}},
        });
        fs::write(path("builds/file"), "x").expect("write the file");
        let mut shim = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        let mut shim = shim.args(["shim", "hostile-memory"]).env_clear().stdin(Stdio::piped()).spawn().expect("a shim");
        shim.stdin.take().expect("a pipe").write_all(spec.to_string().as_bytes()).expect("write all bytes");
        assert!(shim.wait().expect("wait for the end of the process").success());
        let status: Value = serde_json::from_slice(&fs::read(path("status")).expect("a status")).expect("must be JSON");
        let ended_well = status["end"] == json!({"Exited": 0});
        assert_eq!((ended_well, path("builds/file").exists()), (is_enough, !is_enough), "{memory}: {status}");
    }
}

/// Names of this machine and its cloud, in every form that a client may use: IPv4 and IPv6 addresses, and names that
/// the relay resolves.
const NAMES: [&str; 26] = [
    "127.0.0.1",
    "localhost",
    "loop.test",
    "LOOP.test",
    "loop.test.",
    "metadata.test",
    "pods.test",
    "six.test",
    "mapped.test",
    "zero.test",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "fd00:ec2::254",
    "[fd00:ec2::254]",
    "fe80::1%lo",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe",
    "2852039166",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "127.1",
    "0",
    "::",
    "::1",
];

/// A Perl program that asks the relay to connect to the port in its first argument: for each name in the other
/// arguments as a domain (type 3), then for addresses of the types 1 and 4. It prints each destination with the relay's
/// response.
const ASK_RELAY: &str = "use IO::Socket::INET; my $port = shift; my $n = 0; sub ask { my $s = IO::Socket::INET->new(\"127.0.0.1:1080\") \
           or die; print $s \"\\5\\1\\0\"; read $s, my $x, 2; print $s \"\\5\\1\\0\" . $_[1] . pack(\"n\", $port); \
           read $s, my $r, 2; print \"$_[0] \" . ord(substr $r, 1) . \"\\n\" } \
           ask($_, \"\\3\" . chr(length) . $_) for @ARGV; \
           ask(\"four\", \"\\1\" . pack(\"C4\", @$_)) for [127,0,0,1], [169,254,169,254], [169,254,170,2], [0,0,0,0]; \
           ask(\"six\", \"\\4\" . pack(\"n8\", @$_)) for [0,0,0,0,0,0xffff,0xa9fe,0xa9fe], [0xfd00,0xec2,0,0,0,0,0,0x254], \
           [0,0,0,0,0,0,0,1], [0xfe80,0,0,0,0,0,0,1], [0x64,0xff9b,0,0,0,0,0xa9fe,0xa9fe], [0x2002,0xa9fe,0xa9fe,0,0,0,0,1];";

#[test]
fn the_relay_refuses_addresses_of_the_machine() {
    let sandbox = Sandbox::new();
    let hosts = sandbox.directory.path().join("hosts");
    fs::write(
        &hosts,
        "127.0.0.1 localhost loop.test\n169.254.169.254 metadata.test\n169.254.170.23 pods.test\n\
         fd00:ec2::254 six.test\n::ffff:169.254.169.254 mapped.test\n0.0.0.0 zero.test\n",
    )
    .expect("write the file");
    let script = format!("perl -e '{ASK_RELAY}' {} {}", witness(), NAMES.join(" "));
    let inner = sandbox.command(&script);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind $HOSTS /etc/hosts && exec \"$0\" \"$@\""]);
    command.arg(inner.get_program()).args(inner.get_args()).env("HOSTS", &hosts);
    let output = command.env("BUILDS", "").stdin(Stdio::null()).output().expect("a sandbox");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), NAMES.len() + 10, "{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines() {
        // 2: not allowed. 4: the name cannot be resolved on this machine.
        let is_refused = line.ends_with(" 2") || line.ends_with(" 4");
        assert!(is_refused, "{line}");
    }
    for name in ["loop.test", "metadata.test", "pods.test", "six.test", "mapped.test", "169.254.169.254", "127.0.0.1"] {
        assert!(text.lines().any(|line| line == format!("{name} 2")), "{name} in {text}");
    }
    assert_eq!(REACHED.load(Ordering::SeqCst), 0, "the machine's loopback was reached");
}
