//! `mayfly exec` with containers: owners of the files that jobs create, engines that become unavailable, images of real
//! tools.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::exec::{assert_nothing_left, checkout, command, exec_with, in_checkout, run_directory};
use crate::support::docker::{Docker, docker, write_busybox};
use crate::support::git::git;
use crate::support::mayfly::Home;
use crate::support::registry::{PASSWORD, Registry, USER, login};
use crate::support::{output_text, send_signal, unique_number, wait_until};

/// Makes a user the owner of a directory and of all files below it.
fn change_owner_of_all(place: &Path, user: u32) {
    chown(place, Some(user), Some(user)).expect("change the owner");
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        match entry.file_type().expect("a type").is_dir() {
            true => change_owner_of_all(&entry.path(), user),
            false => std::os::unix::fs::lchown(entry.path(), Some(user), Some(user)).expect("change the owner"),
        }
    }
}

#[test]
fn files_of_the_user_of_a_container_do_not_prevent_the_next_run() {
    const DEVELOPER: u32 = 1234;
    let docker = docker();
    let file = "
make: {image: 'busybox:local', script: ['mkdir closed && touch closed/x && chmod 700 closed', 'id -u']}
look: {stage: deploy, image: 'busybox:local', script: ['test ! -e closed && echo clean', 'stat -c %u .gitlab-ci.yml']}
";
    let home = checkout(file);
    let program = home.path("mayfly");
    fs::copy(env!("CARGO_BIN_EXE_mayfly"), &program).expect("copy the program");
    change_owner_of_all(&home.path(""), DEVELOPER);
    let socket = docker.host().replace("unix://", "");
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o660)).expect("open the socket");
    let group = fs::metadata(&socket).expect("the socket").gid().to_string();
    let plain = command(&home, &[]);
    let user = DEVELOPER.to_string();
    for _ in 0..2 {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--groups", &group]).arg(&program).arg("exec");
        command.env_clear().envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.env("DOCKER_HOST", docker.host()).current_dir(home.path("checkout")).stdin(Stdio::null());
        let output = command.output().expect("run setpriv");
        let text = output_text(&output);
        assert!(output.status.success() && text.contains("\nclean\n") && text.contains("\n1234\n"), "{text}");
    }
    let projects = fs::read_dir(home.path("cache/mayfly/exec")).expect("list the directory").flatten();
    let trees: Vec<PathBuf> =
        projects.map(|project| project.path().join("trees")).filter(|trees| trees.exists()).collect();
    assert_eq!(fs::read_dir(&trees[0]).expect("list the directory").count(), 1, "the same tree is used again");
}

#[test]
fn an_engine_that_is_killed_fails_the_job_and_its_containers_are_removed_later() {
    let docker = Docker::start();
    let host = docker.host();
    let home = checkout("a: {image: 'busybox:local', script: [sleep 1000]}\n");
    let report = home.path("report.json");
    let arguments = ["--report", &report.display().to_string()];
    let mut command = command(&home, &arguments);
    let mut child =
        command.env("DOCKER_HOST", &host).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start mayfly");
    wait_until("the run begins", || run_directory(&home) != "none");
    let label = format!("io.mayfly.state={}", run_directory(&home));
    let runs = || docker.run(&["ps", "-q", "--filter", &format!("label={label}"), "--filter", "status=running"]);
    wait_until("the container runs", || !runs().is_empty());
    send_signal(docker.pid(), Signal::SIGKILL);
    assert_eq!(child.wait().expect("the run must end").code(), Some(1));
    let text = fs::read_to_string(&report).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("must be JSON");
    assert_eq!(report["jobs"]["a"]["failure_reason"], "runner_system_failure", "{text}");
    docker.restart();
    fs::write(home.path("checkout/.gitlab-ci.yml"), "a: {script: echo next}\n").expect("write a file");
    let (output, text) = exec_with(&home, &[], &[("DOCKER_HOST", &host)]);
    assert!(output.status.success() && text.contains("\nnext\n"), "{text}");
    wait_until("the containers of the earlier run are removed", || docker.containers(&label).is_empty());
    assert_nothing_left(&home);
}

#[test]
fn a_child_pipeline_may_need_containers_when_its_parent_does_not() {
    let docker = docker();
    let home = in_checkout(Home::empty(), "kid: {trigger: {include: child.yml, strategy: depend}}\n");
    let root = home.path("checkout");
    fs::write(root.join("child.yml"), "c: {image: 'busybox:local', script: [echo inside $(pwd)]}\n")
        .expect("write the file");
    git(&root, &["add", "-A"]);
    let (output, text) = exec_with(&home, &[], &[("DOCKER_HOST", &docker.host())]);
    assert!(output.status.success() && text.contains("\ninside /builds/"), "{text}");
    let (output, text) = exec_with(&home, &[], &[("DOCKER_HOST", "unix:///nonexistent")]);
    assert!(output.status.code() == Some(1) && text.contains("needs a container"), "{text}");
    let (output, text) = exec_with(&home, &["--shell"], &[("DOCKER_HOST", "unix:///nonexistent")]);
    assert!(output.status.success() && text.contains("\ninside /"), "{text}");
}

#[test]
fn the_engine_of_the_docker_context_is_used() {
    let docker = docker();
    let home = checkout("a: {image: 'busybox:local', script: [echo inside]}\n");
    let configuration = home.path("docker");
    let context = ["context", "create", "mine", "--docker", &format!("host={}", docker.host())];
    let mut command = Command::new("docker");
    command.args(context).env_remove("DOCKER_HOST").env("DOCKER_CONFIG", &configuration).stdout(Stdio::null());
    assert!(command.status().expect("docker").success());
    let place = configuration.display().to_string();
    let environment = [("DOCKER_CONFIG", place.as_str()), ("DOCKER_CONTEXT", "mine")];
    let (output, text) = exec_with(&home, &[], &environment);
    assert!(output.status.success() && text.contains("\ninside\n"), "{text}");
    let (output, text) = exec_with(&home, &[], &[environment[0], ("DOCKER_CONTEXT", "other")]);
    assert!(output.status.code() == Some(2) && text.contains("Docker context `other`"), "{text}");
}

#[test]
fn images_are_pulled_with_the_logins_of_the_docker_configuration() {
    let docker = docker();
    let registry = Registry::start(docker);
    let image = registry.push(&docker.image(&[]), "team/exec:1");
    let home = checkout(&format!("a: {{image: '{image}', script: echo pulled}}\n"));
    let environment = [("DOCKER_HOST", docker.host())];
    let environment = environment.each_ref().map(|(key, value)| (*key, value.as_str()));
    let (output, text) = exec_with(&home, &[], &environment);
    assert!(output.status.code() == Some(2) && text.contains("no job was started"), "{text}");
    fs::create_dir(home.path(".docker")).expect("create the directory");
    let logins = login(&registry.address, USER, PASSWORD);
    fs::write(home.path(".docker/config.json"), logins).expect("write a file");
    let (output, text) = exec_with(&home, &[], &environment);
    assert!(output.status.success() && text.contains("\npulled\n"), "{text}");
    // The same login as a variable of the project.
    docker.run(&["rmi", "--force", &image]);
    fs::rename(home.path(".docker/config.json"), home.path("logins")).expect("move the file");
    let variables = serde_json::json!({"DOCKER_AUTH_CONFIG": login(&registry.address, USER, PASSWORD)});
    fs::write(home.path("vars.json"), variables.to_string()).expect("write a file");
    let file = home.path("vars.json").display().to_string();
    let (output, text) = exec_with(&home, &["--vars-file", &file], &environment);
    assert!(output.status.success() && text.contains("\npulled\n"), "{text}");
}

#[test]
fn an_earlier_job_may_create_the_image_of_a_later_one() {
    let docker = docker();
    let host = docker.host();
    let name = format!("built-by-a-job:{}", unique_number());
    let file = format!(
        "build: {{stage: build, script: 'docker tag busybox:local {name}'}}\n\
         test: {{stage: test, image: {{name: '{name}', pull_policy: never}}, script: echo in the image}}\n"
    );
    let home = checkout(&file);
    let environment = [("DOCKER_HOST", host.as_str())];
    let (output, text) = exec_with(&home, &["--var", &format!("DOCKER_HOST={host}")], &environment);
    docker.run(&["rmi", &name]);
    assert!(output.status.success() && text.contains("\nin the image\n"), "{text}");
    assert!(text.contains(".gitlab-ci.yml:2: job `test`: warning: ") && text.contains(&name), "{text}");
    // An image with a fixed name is expected to be in a registry.
    let fixed =
        "build: {stage: build, script: echo ran}\ntest: {stage: test, image: '127.0.0.1:9/no:1', script: echo ran}\n";
    fs::write(home.path("checkout/.gitlab-ci.yml"), fixed).expect("write a file");
    let (output, text) = exec_with(&home, &[], &environment);
    assert!(output.status.code() == Some(2) && !text.contains("\nran\n"), "{text}");
    fs::write(home.path("checkout/.gitlab-ci.yml"), file).expect("write a file");
    // Alone, the job waits for no other job.
    let (output, text) = exec_with(&home, &["test"], &environment);
    assert!(output.status.code() == Some(2) && text.contains("no job was started"), "{text}");
}

#[test]
fn a_service_without_an_image_is_refused_before_the_first_job() {
    let services = "services: [{name: 'nowhere:1', pull_policy: never}]";
    let file = format!("a: {{script: echo ran}}\nb: {{image: 'busybox:local', {services}, script: echo ran}}\n");
    let home = checkout(&file);
    let (output, text) = exec_with(&home, &[], &[("DOCKER_HOST", &docker().host())]);
    assert!(output.status.code() == Some(2) && !text.contains("\nran\n"), "{text}");
    assert!(text.contains(".gitlab-ci.yml:2: job `b`") && text.contains("nowhere:1"), "{text}");
}

#[test]
fn services_of_jobs_in_the_shell_are_reported() {
    let home = checkout("a: {services: [redis], script: echo ran}\nb: {script: echo}\n");
    let (output, text) = exec_with(&home, &[], &[]);
    assert!(output.status.success() && text.contains("a run in the shell without their services"), "{text}");
}

/// Copies programs of this machine, the libraries that they load, and further files into the root of an image.
fn install(root: &Path, programs: &[String], others: &[String]) {
    let mut list = others.to_vec();
    for program in programs {
        list.push(program.clone());
        let libraries = Command::new("ldd").arg(program).output().expect("run ldd").stdout;
        let libraries = String::from_utf8_lossy(&libraries).into_owned();
        for word in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            // The path of a library beside its program contains `..`, which tar does not accept.
            let real = fs::canonicalize(word).ok().filter(|_| word.contains(".."));
            list.push(real.map_or_else(|| word.to_owned(), |real| real.display().to_string()));
        }
    }
    list.retain(|path| Path::new(path).exists());
    list.sort();
    list.dedup();
    fs::write(root.join("list"), list.join("\n")).expect("write a file");
    let script = "tar -C / -chf - -T \"$1/list\" 2>/dev/null | tar -C \"$1\" -xf - && rm \"$1/list\"";
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(root).status().expect("run tar");
    assert!(status.success());
}

/// The standard output of a program.
fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Writes the root of an image with the compilers and package managers of this machine. Returns the value for its
/// `PATH`.
fn write_tools(root: &Path) -> String {
    write_busybox(root);
    let (rust, go) = (output_of("rustc", &["--print", "sysroot"]), output_of("go", &["env", "GOROOT"]));
    let found = |name: &str| output_of("sh", &["-c", &format!("PATH=/usr/local/bin:/usr/bin command -v {name}")]);
    let mut programs: Vec<String> = ["make", "cmake", "cc", "as", "ld", "ar", "node", "python3"].map(found).into();
    programs.extend(["cc1", "collect2"].map(|name| output_of("cc", &[&format!("-print-prog-name={name}")])));
    programs.extend([format!("{rust}/bin/rustc"), format!("{rust}/bin/cargo"), format!("{go}/bin/go")]);
    let gcc = output_of("cc", &["-print-libgcc-file-name"]);
    let mut others =
        vec![gcc.replace("/libgcc.a", ""), format!("{go}/src"), format!("{go}/pkg"), format!("{go}/VERSION")];
    others.push(format!("{rust}/lib/rustlib/x86_64-unknown-linux-gnu"));
    let listed = "ls -d /usr/include/*.h /usr/include/x86_64-linux-gnu /usr/include/linux /usr/include/asm-generic \
        /usr/lib/x86_64-linux-gnu/*crt*.o /usr/lib/x86_64-linux-gnu/lib{c,m,rt,dl,util,pthread,mvec}.{a,so} \
        /usr/lib/x86_64-linux-gnu/libc_nonshared.a /lib/x86_64-linux-gnu/libmvec.so.1 /usr/share/cmake-* \
        /usr/lib/node_modules/npm /usr/lib/python3* 2>/dev/null";
    others.extend(output_of("bash", &["-c", listed]).lines().map(str::to_owned));
    install(root, &programs, &others);
    fs::create_dir_all(root.join("tmp")).expect("create the directory");
    let npm = "#!/bin/sh\nexec node /usr/lib/node_modules/npm/bin/npm-cli.js \"$@\"\n";
    fs::write(root.join("usr/bin/npm"), npm).expect("write a file");
    fs::set_permissions(root.join("usr/bin/npm"), fs::Permissions::from_mode(0o755)).expect("set the mode");
    format!("/usr/local/bin:/usr/bin:/bin:{rust}/bin:{go}/bin")
}

#[test]
fn pipelines_of_many_tools_run_in_containers() {
    let docker = docker();
    let root = tempfile::tempdir().expect("a directory");
    let path = write_tools(root.path());
    let image = docker.image_of(root.path(), &[&format!("ENV PATH={path}"), "CMD [\"sh\"]"]);
    let file = format!(
        "
default: {{image: '{image}'}}
stages: [build, test]
make: {{stage: build, script: [make -s], artifacts: {{paths: [hello]}}}}
hello: {{stage: test, script: [./hello]}}
cmake: {{stage: test, script: [cmake -S . -B out >/dev/null, cmake --build out >/dev/null, ./out/hello]}}
go: {{stage: test, script: [go run hello.go], variables: {{GOCACHE: $CI_PROJECT_DIR/.gocache, CGO_ENABLED: '0'}}}}
cargo: {{stage: test, script: [cargo run --quiet --offline]}}
npm: {{stage: test, script: [npm --silent test]}}
pip: {{stage: test, script: [python3 -m pip --version, python3 -c 'print(\"hello from python\")']}}
"
    );
    let home = checkout(&file);
    crate::exec::add_many_tools(&home);
    let (output, text) = exec_with(&home, &[], &[("DOCKER_HOST", &docker.host())]);
    assert!(output.status.success(), "{text}");
    for word in ["hello from c", "hello from go", "hello from rust", "hello from node", "hello from python"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_nothing_left(&home);
}
