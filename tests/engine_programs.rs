//! The engine programs below `docs/fleet/engines`, tested with the protocol of the manager.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::documents::root;
use crate::support::gitlab::GitLab;
use crate::support::kill_process;

/// The directory of the agents that `local.sh` starts; they outlive a manager, but not the test.
pub struct LocalAgents(pub PathBuf);

impl Drop for LocalAgents {
    fn drop(&mut self) {
        for agent in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let pid = fs::read_to_string(agent.path().join("pid")).unwrap_or_default();
            let Ok(pid) = pid.trim().parse() else { continue };
            // The kernel may have given the number of an agent that has ended to another process.
            if fs::read_link(format!("/proc/{pid}/cwd")).ok() != fs::canonicalize(agent.path()).ok() {
                continue;
            }
            kill_process(pid);
        }
    }
}

/// A running program; the test sends the requests of a manager.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(name: &str, arguments: &[&str], path: &str) -> Self {
        let mut child = Command::new(root().join("docs/fleet/engines").join(name))
            .args(arguments)
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an engine program");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.input, "{request}").expect("write a request");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn members(&mut self) -> Vec<String> {
        let answer = self.ask(&json!({"call": "group"}));
        let members = answer["members"].as_array().unwrap_or_else(|| panic!("{answer}"));
        members.iter().map(|member| member["instance"].as_str().expect("an id").to_owned()).collect()
    }

    fn terminate(&mut self, instance: &str, decrement: bool) -> Value {
        self.ask(&json!({"call": "terminate", "instance": instance, "decrement": decrement}))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ok() -> Value {
    json!({})
}

#[test]
fn the_shell_is_clean() {
    for name in ["hetzner.sh", "local.sh"] {
        let script = root().join("docs/fleet/engines").join(name);
        let output = Command::new("dash").arg("-n").arg(&script).output().expect("run dash");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Writes a program `hcloud` that stores its servers as files in a directory.
fn fake_hcloud(directory: &Path) -> String {
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).expect("a directory");
    let script = format!(
        "#!/bin/sh\ncd {}\ncase \"$1 $2\" in\n\
         'server list') [ ! -e down ] || exit 1; for server in server-*; do [ -e \"$server\" ] && echo \"${{server#server-}} $(cat \"$server\")\"; done; true ;;\n\
         'server create') [ ! -e full ] && echo running >\"server-$4\" ;;\n\
         'server delete') rm \"server-$3\" ;;\n*) exit 1 ;;\nesac\nexit $?\n",
        directory.display()
    );
    // Written by another process: a fork of a test in parallel must not hold the file open for writing.
    let path = bin.join("hcloud");
    let mut writer = Command::new("sh")
        .args(["-c", "cat >\"$1\"", "sh"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("start sh");
    writer.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("write a file");
    assert!(writer.wait().expect("wait for the end of the process").success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set the permissions");
    format!("{}:/usr/bin:/bin", bin.display())
}

#[test]
fn servers_of_hetzner_cloud_come_and_go() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = fake_hcloud(directory.path());
    let mut program = Program::start("hetzner.sh", &["ci", "cx32", "mayfly", "agent.yaml"], &path);
    assert_eq!(program.ask(&json!({"call": "init", "pool": "ci", "settings": {}})), ok());
    assert!(program.members().is_empty());
    assert_eq!(program.ask(&json!({"call": "set_target", "instances": 3})), ok());
    let members = program.members();
    assert!(members.len() == 3 && members.iter().all(|name| name.starts_with("ci-")), "{members:?}");
    // A target is absolute, and the program never terminates an instance for it.
    assert_eq!(program.ask(&json!({"call": "set_target", "instances": 2})), ok());
    assert_eq!(program.members(), members);
    assert_eq!(program.terminate(&members[0], true), ok());
    assert_eq!(program.members(), members[1..]);
    assert_eq!(program.terminate(&members[1], false), ok());
    let after = program.members();
    assert!(after.len() == 2 && !after.contains(&members[1]), "{after:?}");
    assert_eq!(program.ask(&json!({"call": "failures", "since": "2026-07-06T12:00:00Z"})), ok());
    // A refusal of the cloud is a temporary error, and the program continues.
    fs::write(directory.path().join("full"), "").expect("write a file");
    let refused = program.ask(&json!({"call": "set_target", "instances": 9}));
    assert_eq!(refused["temporary"], true, "{refused}");
    fs::write(directory.path().join(format!("server-{}", after[0])), "deleting").expect("write a file");
    let answer = program.ask(&json!({"call": "group"}));
    let states: Vec<&str> = answer["members"]
        .as_array()
        .expect("a list of members")
        .iter()
        .filter_map(|one| one["state"].as_str())
        .collect();
    assert!(states.contains(&"terminating") && states.contains(&"running"), "{answer}");
    // A cloud that does not answer has not lost its servers, and gets no new ones.
    fs::remove_file(directory.path().join("full")).expect("remove a file");
    fs::write(directory.path().join("down"), "").expect("write a file");
    for request in [json!({"call": "group"}), json!({"call": "set_target", "instances": 9})] {
        let refused = program.ask(&request);
        assert!(refused["temporary"] == true && refused.get("members").is_none(), "{refused}");
    }
    fs::remove_file(directory.path().join("down")).expect("remove a file");
    assert_eq!(program.members().len(), after.len());
}

#[test]
fn agents_on_this_machine_come_and_go() {
    let gitlab = GitLab::start();
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    fs::write(&token, "fleet-token").expect("write a file");
    let fleet = directory.path().join("fleet");
    let _agents = LocalAgents(fleet.clone());
    let arguments = [
        fleet.display().to_string(),
        gitlab.url.clone(),
        token.display().to_string(),
        env!("CARGO_BIN_EXE_mayfly").to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut program = Program::start("local.sh", &arguments, "/usr/bin:/bin");
    assert!(program.members().is_empty());
    assert_eq!(program.ask(&json!({"call": "set_target", "instances": 2})), ok());
    let members = program.members();
    assert_eq!(members.len(), 2, "{members:?}");
    let config = fs::read_to_string(fleet.join(&members[0]).join("config.toml")).expect("a configuration");
    assert!(config.contains(&format!("instance_id = \"{}\"", members[0])), "{config}");
    // The agents outlive the program as they outlive a manager.
    drop(program);
    let mut program = Program::start("local.sh", &arguments, "/usr/bin:/bin");
    assert_eq!(program.members(), members);
    for instance in &members {
        assert_eq!(program.terminate(instance, true), ok());
    }
    crate::support::wait_until("the end of all agents", || program.members().is_empty());
}
