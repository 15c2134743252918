//! A container engine for the test run: a dockerd in its own network and mount namespaces. It starts when the first
//! test needs it and ends with the process, however that ends.
//!
//! Tests share it: each creates its own images, and finds its containers by the labels of its job.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{unique_number, wait_or_explain, wait_until};

/// The engine. Its keeper process removes the engine and its directory when the keeper's standard input closes, at the
/// latest at the end of this process.
pub struct Docker {
    directory: PathBuf,
    keeper: Mutex<Child>,
}

/// The keeper: starts the daemon, restarts it for each line of input, and cleans up at the end of input. Mounts
/// disappear with the namespace.
const KEEPER: &str = r#"
ip link set lo up
[ -z "$SIZE" ] || mount -t tmpfs -o size=$SIZE none $D/data
case $ENGINE in
docker)
    begin() {
        rm -f $D/pid
        dockerd --data-root $D/data --exec-root $D/exec -H unix://$D/s -p $D/pid --log-level=warn $MORE >>$D/log 2>&1 </dev/null &
        daemon=$!
    };;
podman)
    begin() {
        rm -f $D/pid
        CONTAINERS_CONF=$D/containers.conf CONTAINERS_REGISTRIES_CONF=$D/registries.conf podman --root $D/data --runroot $D/exec --network-config-dir $D/networks \
            --volumepath $D/volumes --tmpdir $D/exec/tmp system service --time=0 unix://$D/s >>$D/log 2>&1 </dev/null &
        daemon=$!
        echo $daemon >$D/pid
    };;
rootless)
    # A user with subordinate ids, and the device for its networks.
    cp /etc/passwd $D/passwd; echo "podman:x:$ROOTLESS:$ROOTLESS::$D/home:/bin/sh" >>$D/passwd
    cp /etc/group $D/group; echo "podman:x:$ROOTLESS:" >>$D/group
    echo "podman:700000:65536" >$D/subuid; cp $D/subuid $D/subgid
    touch /etc/subuid /etc/subgid
    for name in passwd group subuid subgid; do mount --bind $D/$name /etc/$name; done
    mkdir -p $D/home $D/run
    mknod -m 666 $D/tun c 10 200; mount --bind $D/tun /dev/net/tun
    chown $ROOTLESS:$ROOTLESS $D $D/home $D/run
    begin() {
        rm -f $D/pid
        cd $D/home
        setpriv --reuid $ROOTLESS --regid $ROOTLESS --clear-groups env -i PATH="$PATH" HOME=$D/home XDG_RUNTIME_DIR=$D/run \
            CONTAINERS_CONF=$D/containers.conf CONTAINERS_REGISTRIES_CONF=$D/registries.conf podman system service --time=0 unix://$D/s >>$D/log 2>&1 </dev/null &
        daemon=$!
        echo $daemon >$D/pid
    };;
esac
end() {
    kill $daemon
    # Containers that ignore TERM have 10 s, one after the other.
    for _ in $(seq 1 450); do kill -0 $daemon 2>/dev/null || return; sleep 0.1; done
    kill -9 $daemon
}
begin
while read -r _; do end; begin; done
for id in $(docker ps -q 2>/dev/null); do docker kill $id >/dev/null 2>&1; done
end
# The process that keeps the user namespace of rootless Podman.
[ ! -e $D/run/libpod/tmp/pause.pid ] || kill $(cat $D/run/libpod/tmp/pause.pid)
# Its service runs in a child of the daemon.
for pid in $(ps -eo pid=,args= | awk -v socket="unix://$D/s" 'index($0, socket) && !/awk/ {print $1}'); do kill $pid; done
umount -l $D/data/overlay $D/data $D/exec/netns/* 2>/dev/null
rm -rf $D
"#;

/// Podman without higher limits than this process has, and with a runtime that supports cgroups of both versions at
/// once.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#;

/// The ports for the tests' registries on the loopback of an engine.
pub const REGISTRY_PORTS: Range<u16> = 20_000..20_100;

/// Podman speaks plain HTTP only to the registries that are listed. Docker does so with every one on loopback.
fn registries_conf() -> String {
    let of_port = |port| format!("[[registry]]\nlocation = \"127.0.0.1:{port}\"\ninsecure = true\n");
    REGISTRY_PORTS.map(of_port).collect()
}

/// The user that rootless Podman runs as; it exists in the engine's mount namespace only.
pub const ROOTLESS_UID: u32 = 64100;

/// The program that serves the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    Docker,
    Podman,
    RootlessPodman,
}

impl EngineKind {
    /// The engine of all tests: `MAYFLY_TEST_ENGINE=podman` replaces dockerd with the service of Podman.
    fn of_run() -> Self {
        match std::env::var("MAYFLY_TEST_ENGINE").as_deref() {
            Ok("podman") => Self::Podman,
            _ => Self::Docker,
        }
    }
}

/// Whether this test run uses Podman instead of Docker.
pub fn is_podman_run() -> bool {
    EngineKind::of_run() == EngineKind::Podman
}

/// The shared engine of this test run.
pub fn docker() -> &'static Docker {
    static SHARED: OnceLock<Docker> = OnceLock::new();
    SHARED.get_or_init(Docker::start)
}

impl Docker {
    /// An engine for a single test, which may restart or break it.
    pub fn start() -> Self {
        Self::start_with(EngineKind::of_run(), "", "")
    }

    /// The same of this kind, whatever the other tests use.
    pub fn of_kind(kind: EngineKind) -> Self {
        Self::start_with(kind, "", "")
    }

    /// The same on its own disk of this size (`48m`).
    pub fn on_small_disk(size: &str) -> Self {
        Self::start_with(EngineKind::of_run(), size, "")
    }

    /// The same with further arguments for the daemon.
    pub fn with_arguments(arguments: &str) -> Self {
        Self::start_with(EngineKind::Docker, "", arguments)
    }

    fn start_with(kind: EngineKind, size: &str, arguments: &str) -> Self {
        // A short path: a socket path is limited to 108 bytes.
        let directory = PathBuf::from(format!("/tmp/mayfly-{}", unique_number()));
        fs::create_dir_all(directory.join("data")).expect("create the directory");
        fs::write(directory.join("containers.conf"), CONTAINERS_CONF).expect("write a file");
        fs::write(directory.join("registries.conf"), registries_conf()).expect("write a file");
        let engine = match kind {
            EngineKind::Docker => "docker",
            EngineKind::Podman => "podman",
            EngineKind::RootlessPodman => "rootless",
        };
        let keeper = Command::new("unshare")
            .args(["--net", "--mount", "setsid", "sh", "-c", KEEPER])
            .env("D", &directory)
            .env("ENGINE", engine)
            .env("ROOTLESS", ROOTLESS_UID.to_string())
            .env("SIZE", size)
            .env("MORE", arguments)
            .env("DOCKER_HOST", format!("unix://{}/s", directory.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start unshare");
        let docker = Self { keeper: Mutex::new(keeper), directory };
        docker.wait_until_up();
        docker.import("busybox:local", &busybox(), &["CMD [\"sh\"]"]);
        docker
    }

    /// Waits until the daemon answers.
    pub fn wait_until_up(&self) {
        let is_up = || self.command(&["version"]).output().is_ok_and(|output| output.status.success());
        let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
        wait_or_explain(is_up, || format!("the start of dockerd, which needs root and docker.io:\n{}", log()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The value for `host` below `[runners.docker]` and for `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("s").display())
    }

    /// The process id of the daemon.
    pub fn pid(&self) -> i32 {
        fs::read_to_string(self.path("pid")).expect("a pid").trim().parse().expect("a number")
    }

    /// A command in the daemon's network namespace, not yet started.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/proc/{}/ns/net", self.pid()), program]);
        command
    }

    /// Runs a function in the daemon's network namespace, with all threads and programs that it starts.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.pid())).expect("a namespace");
        let enter =
            || nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A directory that is removed with the engine.
    pub fn private_directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("create the directory");
        path
    }

    /// Bind-mounts a file or directory over one of the machine, visible only to the daemon.
    pub fn mount(&self, source: &Path, target: &str) {
        let target_of = format!("--target={}", self.pid());
        let mut command = Command::new("nsenter");
        command.args([&target_of, "--mount", "mount", "--bind"]).arg(source).arg(target);
        assert!(command.status().expect("run nsenter").success(), "{target}");
    }

    /// Bind-mounts a directory to a path that need not exist on the machine. The daemon does not see other entries of
    /// the path's parent.
    pub fn share(&self, source: &Path, target: &str) {
        let parent = Path::new(target).parent().expect("a parent").display();
        let script =
            format!("mount -t tmpfs share {parent} && mkdir {target} && mount --bind {} {target}", source.display());
        let done = Command::new("nsenter")
            .args([&format!("--target={}", self.pid()), "--mount", "sh", "-c", &script])
            .status();
        assert!(done.expect("run nsenter").success(), "{target}");
    }

    /// A docker command for this engine, not yet started. It is limited to two minutes, because `docker exec` can hang
    /// for ever if the container ends meanwhile.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["120", "docker"])
            .args(arguments)
            .env("DOCKER_HOST", self.host())
            .env("HOME", &self.directory)
            .stdin(Stdio::null());
        command
    }

    /// Runs a docker command, which must succeed; returns its output.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("run docker");
        output_of(arguments, &output)
    }

    /// Creates a busybox image with changes (`USER 1000`, `ENTRYPOINT […]`, …) and a unique name.
    pub fn image(&self, changes: &[&str]) -> String {
        self.image_of(&busybox(), changes)
    }

    /// Creates an image from a directory.
    pub fn image_of(&self, root: &Path, changes: &[&str]) -> String {
        let name = format!("test-{}:local", unique_number());
        self.import(&name, root, changes);
        name
    }

    pub fn import(&self, name: &str, root: &Path, changes: &[&str]) {
        let mut tar = Command::new("tar")
            .args(["--owner=0", "--group=0", "-c", "."])
            .current_dir(root)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start tar");
        let changes = changes.iter().flat_map(|change| ["-c", change]);
        let arguments: Vec<&str> = ["import"].into_iter().chain(changes).chain(["-", name]).collect();
        let archive = tar.stdout.take().expect("a pipe");
        let output = self.command(&arguments).stdin(archive).output().expect("run docker");
        assert!(tar.wait().expect("wait for the end of the process").success());
        output_of(&arguments, &output);
    }

    /// Ids of the containers with a label.
    pub fn containers(&self, label: &str) -> Vec<String> {
        let filter = format!("label={label}");
        self.run(&["ps", "-aq", "--no-trunc", "--filter", &filter]).lines().map(str::to_owned).collect()
    }

    /// The output of `docker inspect`.
    pub fn inspect(&self, id: &str) -> serde_json::Value {
        let mut list: serde_json::Value = serde_json::from_str(&self.run(&["inspect", id])).expect("must be JSON");
        list[0].take()
    }

    /// Restarts the daemon as a service manager would.
    pub fn restart(&self) {
        let before = self.pid();
        let mut keeper = self.keeper.lock().expect("the thread must not panic");
        keeper.stdin.as_mut().expect("a pipe").write_all(b"again\n").expect("write to the keeper");
        let pid = || fs::read_to_string(self.path("pid")).unwrap_or_default().trim().to_owned();
        wait_until("the restart of dockerd", || !pid().is_empty() && pid() != before.to_string());
        self.wait_until_up();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(keeper.stdin.take());
        let _ = keeper.wait();
    }
}

fn output_of(arguments: &[&str], output: &Output) -> String {
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A directory with the files of an image that contains only busybox.
pub fn busybox() -> PathBuf {
    static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let root = tempfile::tempdir().expect("a directory");
        write_busybox(root.path());
        root
    });
    root.path().to_owned()
}

/// Installs busybox with all its command names into the root of an image.
pub fn write_busybox(root: &Path) {
    let bin = root.join("bin");
    fs::create_dir_all(&bin).expect("create the directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::create_dir_all(root.join("tmp")).expect("create the directory");
    fs::set_permissions(root.join("tmp"), open).expect("set the permissions");
    fs::create_dir_all(root.join("etc")).expect("create the directory");
    let users = "root:x:0:0:root:/root:/bin/sh\nbuilder:x:1234:1234::/home/builder:/bin/sh\n";
    fs::File::create(root.join("etc/passwd"))
        .and_then(|mut file| file.write_all(users.as_bytes()))
        .expect("write a file");
    fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
    let names = Command::new("/bin/busybox").arg("--list").output().expect("run busybox");
    for name in String::from_utf8_lossy(&names.stdout).lines().filter(|name| *name != "busybox") {
        symlink("busybox", bin.join(name)).expect("create the link");
    }
}
