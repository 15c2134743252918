//! Virtual machines that boot and die: systemd-nspawn on a Debian tree with the package of this program. Each has its
//! own network, metadata service and cgroups.
//!
//! Mounts and networks belong to the thread of a test, processes to a PID namespace that ends with that thread. So
//! nothing is left behind, however a test ends, except empty cgroups, which the next machine removes.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::{holds_within, unique_number};

/// A machine image: a Debian tree with the package and the files of a test.
pub struct Image {
    /// The path of the tree, in the mount namespace of the thread that created it.
    root: PathBuf,
}

/// A running machine; it ends with the test.
pub struct Machine {
    child: Child,
    name: String,
    directory: PathBuf,
}

/// Creates an image and passes it to a test. `script` runs as root in the tree first.
pub fn with_image(script: &str, test: impl FnOnce(&Image) + Send) {
    in_namespaces(CloneFlags::CLONE_NEWNS, || test(&Image::bake(script)));
}

/// Runs `test` in a network namespace with only loopback and the address of the metadata service.
pub fn in_own_network(test: impl FnOnce() + Send) {
    in_namespaces(CloneFlags::CLONE_NEWNET, || {
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["address", "add", "169.254.169.254/32", "dev", "lo"]);
        test();
    });
}

/// Runs `inner` in a thread with its own namespaces.
fn in_namespaces(namespaces: CloneFlags, inner: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(namespaces).expect("namespaces need root");
            inner();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The Debian package of this program, built once per test run.
pub fn debian_package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        // Renamed when complete: an interrupted or concurrent run leaves no partial package.
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let made = tempfile::tempdir_in(directory).expect("a directory");
        let package = build_packages(made.path(), "deb").remove(0);
        let kept = directory.join("mayfly.deb");
        fs::rename(package, &kept).expect("rename the file");
        kept
    })
}

/// Builds packages of the program under test, without debugging symbols; returns their files.
pub fn build_packages(directory: &Path, formats: &str) -> Vec<PathBuf> {
    fs::create_dir_all(directory).expect("create the directory");
    let program = directory.join("mayfly");
    run("strip", &["-o", &program.display().to_string(), env!("CARGO_BIN_EXE_mayfly")]);
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("packages/build");
    let mut build = Command::new(build);
    // With these variables of the outer cargo, the inner cargo would rebuild all dependencies.
    let is_of_package = |name: &str| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
    for (name, _) in
        std::env::vars().filter(|(name, _)| is_of_package(name) || matches!(&**name, "OUT_DIR" | "MAYFLY_REVISION"))
    {
        build.env_remove(name);
    }
    let output = build.args(["--only", formats, "--binary"]).arg(&program).arg(directory).output();
    let output = output.expect("run packages/build");
    assert!(output.status.success(), "packages/build: {}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(program).expect("remove the file");
    String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect()
}

impl Image {
    fn bake(script: &str) -> Self {
        let tree = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine-tree.sh")).output();
        let tree = tree.expect("run machine-tree.sh");
        assert!(tree.status.success(), "no tree: {}", String::from_utf8_lossy(&tree.stderr));
        let tree = String::from_utf8_lossy(&tree.stdout).trim().to_owned();
        // In memory and in this mount namespace; removed with it.
        let base = std::env::temp_dir().join(format!("mayfly-image-{}", unique_number()));
        fs::create_dir(&base).expect("create the directory");
        let at = |name: &str| base.join(name).display().to_string();
        run("mount", &["--make-rprivate", "/"]);
        run("mount", &["-t", "tmpfs", "-o", "mode=0755", "image", &at("")]);
        for name in ["upper", "work", "root"] {
            fs::create_dir(base.join(name)).expect("create the directory");
        }
        let layers = format!("lowerdir={tree},upperdir={},workdir={}", at("upper"), at("work"));
        run("mount", &["-t", "overlay", "-o", &layers, "image", &at("root")]);
        let image = Self { root: base.join("root") };
        fs::copy(debian_package(), image.root.join("mayfly.deb")).expect("copy the file");
        image.run_inside("dpkg --install /mayfly.deb");
        image.run_inside(script);
        image
    }

    /// Runs a script in the tree, which must succeed; returns its output.
    pub fn run_inside(&self, script: &str) -> String {
        let root = self.root.display();
        let all = format!(
            "mount -t proc proc {root}/proc && chroot {root} sh -euc \"$SCRIPT\"; s=$?; umount {root}/proc; exit $s"
        );
        let output = Command::new("sh").args(["-c", &all]).env("SCRIPT", script).output().expect("run sh");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{stdout}{}", String::from_utf8_lossy(&output.stderr));
        stdout
    }

    /// Gives the agent's unit these environment variables.
    pub fn set_environment(&self, variables: &[(String, String)]) {
        let directory = self.root.join("etc/systemd/system/mayfly.service.d");
        fs::create_dir_all(&directory).expect("create the directory");
        let lines: String = variables.iter().map(|(name, value)| format!("Environment={name}={value}\n")).collect();
        fs::write(directory.join("environment.conf"), format!("[Service]\n{lines}")).expect("write a file");
    }

    /// The path of the tree, for this thread.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Boots a machine in the network namespace of this thread.
    pub fn boot(&self) -> Machine {
        self.boot_with(&[])
    }

    /// A directory that outlives machines, for [`Image::boot_with`].
    pub fn disk(&self) -> PathBuf {
        let disk = self.root.with_file_name(format!("disk-{}", unique_number()));
        fs::create_dir(&disk).expect("create the directory");
        disk
    }

    /// Boots a machine with bind mounts: source on this machine, target in the booted one.
    pub fn boot_with(&self, mounts: &[(&Path, &str)]) -> Machine {
        let name = format!("mayfly-test-{}-{}", std::process::id(), unique_number());
        sweep_control_groups();
        let directory = self.root.with_file_name(&name);
        fs::create_dir_all(directory.join("journal")).expect("create the directory");
        let output = fs::File::create(directory.join("console")).expect("create the file");
        let groups = control_group_roots()
            .iter()
            .map(|root| root.join(&name).display().to_string())
            .collect::<Vec<_>>()
            .join(" ");
        let mount = |(source, target): &(&Path, &str)| format!("--bind={}:{target}", source.display());
        let mounts = mounts.iter().map(mount).collect::<Vec<_>>().join(" ");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc"])
            .arg(BOOT)
            .env("GROUPS_OF_MACHINE", groups)
            .env("ROOT", &self.root)
            .env("NAME", &name)
            .env("JOURNAL", directory.join("journal"))
            .env("MOUNTS", mounts)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file"))
            .stderr(output)
            .spawn()
            .expect("start setpriv");
        Machine { child, name, directory }
    }
}

/// Enters the machine's own cgroups and becomes the container manager.
const BOOT: &str = r#"
for group in $GROUPS_OF_MACHINE; do mkdir "$group"; echo $$ >"$group/cgroup.procs"; done
exec systemd-nspawn --quiet --directory="$ROOT" --volatile=overlay --register=no --keep-unit --boot --machine="$NAME" \
    --network-namespace-path=/proc/self/ns/net --capability=CAP_NET_ADMIN --console=pipe \
    --bind="$JOURNAL:/var/log/journal" $MOUNTS
"#;

impl Drop for Image {
    fn drop(&mut self) {
        // The mounts disappear with the namespace, but not the directory of the mount point.
        let base = self.root.with_file_name("");
        for mounted in [self.root.as_path(), &base] {
            let _ = Command::new("umount").arg("--lazy").arg(mounted).status();
        }
        let _ = fs::remove_dir(base);
    }
}

impl Machine {
    /// Waits until the machine has powered off by itself.
    pub fn wait_until_off(&mut self) {
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "the machine did not power off but ended by {:?}", status.signal());
    }

    /// Waits until the machine reboots; the caller boots it again.
    pub fn wait_until_rebooted(&mut self) {
        let status = self.wait();
        assert_eq!(status.code(), Some(133), "the machine did not reboot but ended by {:?}", status.signal());
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = || {
            status = self.child.try_wait().expect("read the state of the process");
            status.is_some()
        };
        super::wait_until("the end of the machine", ended);
        status.expect("the machine must have ended")
    }

    /// Waits until a condition holds.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        super::wait_until(what, || holds(self));
    }

    /// Waits until the journal of the agent's unit contains a text `count` times.
    pub fn wait_for_journal(&self, text: &str, count: usize) {
        self.wait_until(&format!("`{text}`"), |machine| machine.unit_journal().matches(text).count() >= count);
    }

    /// Runs a script in the machine, which must succeed; returns its output.
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{stdout}{error}");
        stdout
    }

    /// Runs a script in the machine.
    pub fn try_run(&self, script: &str) -> Output {
        let init = self.init().expect("a machine that runs").to_string();
        Command::new("nsenter")
            .args(["--all", "--target", &init, "sh", "-c", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .expect("run nsenter")
    }

    /// Whether the machine can run commands.
    pub fn can_run_commands(&self) -> bool {
        self.init().is_some()
    }

    /// The init process of the machine, once systemd answers.
    fn init(&self) -> Option<u32> {
        // setpriv executed unshare; its child executed nspawn; the child of that is the machine's init.
        let nspawn = first_child(self.child.id())?;
        first_child(nspawn)
    }

    /// The journal of the agent's unit.
    pub fn unit_journal(&self) -> String {
        self.read_journal(&["--unit", "mayfly.service"])
    }

    /// The whole journal of the machine.
    pub fn journal(&self) -> String {
        let console = fs::read_to_string(self.directory.join("console")).unwrap_or_default();
        format!("{console}\n{}", self.read_journal(&[]))
    }

    /// The output of journalctl with these arguments.
    pub fn read_journal(&self, arguments: &[&str]) -> String {
        let directory = self.directory.join("journal");
        let output =
            Command::new("journalctl").arg("--directory").arg(directory).args(["--no-pager"]).args(arguments).output();
        String::from_utf8_lossy(&output.expect("run journalctl").stdout).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.journal());
        }
        // Killing the init of the PID namespace ends all its processes; unshare exits with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for root in control_group_roots() {
            let group = root.join(&self.name);
            holds_within(Duration::from_secs(5), || !group.exists() || remove_control_groups(&group));
        }
    }
}

fn first_child(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// The cgroup hierarchies that systemd uses.
fn control_group_roots() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let hybrid = [base.join("systemd"), base.join("unified")].map(|root| root.is_dir().then_some(root));
    let hybrid: Vec<PathBuf> = hybrid.into_iter().flatten().collect();
    if hybrid.is_empty() { vec![base.to_owned()] } else { hybrid }
}

/// Removes a tree of empty cgroups; false if a cgroup is in use.
fn remove_control_groups(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_control_groups(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}

/// Removes cgroups that a killed test run left.
fn sweep_control_groups() {
    for root in control_group_roots() {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let run = name.strip_prefix("mayfly-test-").and_then(|rest| rest.split('-').next()).map(str::to_owned);
            if run.is_some_and(|run| !Path::new("/proc").join(run).exists()) {
                remove_control_groups(&entry.path());
            }
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
