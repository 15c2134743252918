use std::path::Path;

use super::*;
use crate::config::Config;

/// Parses the table with these lines as part of a whole file. The error is the message with its line.
fn read(lines: &str) -> Result<DockerConfig, String> {
    let text = format!(
        "[[runners]]\nname = \"a\"\nurl = \"https://h\"\ntoken = \"t\"\nexecutor = \"shell\"\n[runners.docker]\n{lines}\n"
    );
    let config = Config::parse(Path::new("config.toml"), &text).map_err(|error| error.to_string())?;
    Ok(config.runners[0].docker.clone())
}

#[test]
fn reads_what_gitlab_runner_reads() {
    let docker = read(
        "image = \"alpine\"\npull_policy = \"if-not-present\"\nallowed_pull_policies = [\"never\", \"if-not-present\"]\n\
         memory = \"512m\"\nmemory_swap = \"-1\"\nmemory_reservation = \"1.5kb\"\ncpus = \"1/4\"\nshm_size = 65536\n\
         devices = [\"/dev/a\", \"/dev/b:rw\", \"/dev/c:/dev/d:r\"]\ndns = [\"::1\"]\nextra_hosts = [\"a:::1\"]\n\
         allowed_images = [\"registry.test/*/**\"]\nmac_address = \"92-D0-C6-0A-29-33\"\n\
         [runners.docker.ulimit]\nnofile = \"10:20\"\nnproc = \"5\"\n\
         [runners.docker.services_devices]\n\"postgres:*\" = [\"/dev/kvm\"]\n\
         [[runners.docker.services]]\nname = \"redis\"\nenvironment = [\"A=B=C\"]\n",
    )
    .expect("the options must be valid");
    assert_eq!(docker.pull_policy, [PullPolicy::IfNotPresent]);
    assert_eq!(docker.permitted_policies(), [PullPolicy::Never, PullPolicy::IfNotPresent]);
    assert_eq!((docker.memory, docker.memory_swap), (Some(Size(512 << 20)), Some(Swap::Unlimited)));
    assert_eq!((docker.memory_reservation, docker.shm_size), (Some(Size(1536)), Size(65536)));
    assert_eq!(docker.cpus, Some(Cpus(250_000_000)));
    let devices: Vec<_> = docker.devices.iter().map(|d| (d.container.as_str(), d.permissions.as_str())).collect();
    assert_eq!(devices, [("/dev/a", "rwm"), ("/dev/b", "rw"), ("/dev/d", "r")]);
    assert!(docker.allowed_images.match_name("registry.test/a/b/c:1") && !docker.allowed_images.match_name("alpine"));
    assert_eq!(docker.ulimit[0], Ulimit { name: "nofile".to_owned(), soft: 10, hard: 20 });
    assert_eq!((docker.ulimit[1].soft, docker.ulimit[1].hard), (5, 5));
    assert!(docker.services_devices[0].0.match_name("postgres:16"));
    assert_eq!(docker.services[0].environment, [("A".to_owned(), "B=C".to_owned())]);
    assert_eq!(docker.mac_address, Some(MacAddress("92:d0:c6:0a:29:33".to_owned())));
    assert!(docker.contradictions().is_empty(), "{:?}", docker.contradictions());
}

#[test]
fn parses_gpus_as_the_docker_command_line_does() {
    let gpus = |text: &str| text.parse::<Gpus>().map(|gpus| (gpus.count, gpus.devices, gpus.capabilities.len()));
    assert_eq!(gpus("all"), Ok((-1, vec![], 1)));
    assert_eq!(gpus("2"), Ok((2, vec![], 1)));
    assert_eq!(gpus("\"device=0,GPU-1\""), Ok((0, vec!["0".to_owned(), "GPU-1".to_owned()], 1)));
    assert_eq!(gpus("count=1,capabilities=utility"), Ok((1, vec![], 2)));
    assert_eq!(gpus("driver=nvidia"), Ok((-1, vec![], 1)));
    for wrong in ["none", "0", "count=x", "colour=red", "2,device=0"] {
        assert!(gpus(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_invalid_value_shows_its_line() {
    for (line, part) in [
        ("memory = \"much\"", "is not a size"),
        ("memory = \"-5m\"", "is not a size"),
        ("memory = \"5x\"", "is not a size"),
        ("shm_size = -1", "is not a size"),
        ("cpus = \"zero\"", "number of CPUs"),
        ("cpus = \"0\"", "number of CPUs"),
        ("pull_policy = \"sometimes\"", "is not a pull policy"),
        ("pull_policy = [\"always\", \"x\"]", "is not a pull policy"),
        ("devices = [\"kvm:kvm:kvm\"]", "is not a device"),
        ("ulimit = { nofile = \"many\" }", "is not a limit for nofile"),
        ("extra_hosts = [\"db\"]", "NAME:ADDRESS"),
        ("dns = [\"one\"]", "IP address"),
        ("mac_address = \"1:2\"", "MAC address"),
        ("isolation = \"hyperv\"", "Windows"),
        ("log_options = { max-size = \"1m\" }", "max-size"),
        ("allowed_images = [\"a{\"]", "is not a pattern"),
        ("gpus = \"some\"", "GPUs"),
        ("services = [{ name = \"x\", environment = [\"A\"] }]", "entry number 1"),
        ("privileged = \"yes\"", "boolean"),
    ] {
        let error = read(line).expect_err(line);
        assert!(error.contains("line 7") && error.contains(part), "{line}: {error}");
    }
}

#[test]
fn reports_contradictions() {
    for (lines, key) in [
        ("memory = \"2g\"\nmemory_swap = \"1g\"", "docker.memory_swap"),
        ("memory_swap = \"1g\"", "docker.memory_swap"),
        ("service_memory = \"1g\"\nservice_memory_reservation = \"2g\"", "docker.service_memory_reservation"),
        ("ulimit = { nofile = \"20:10\" }", "docker.ulimit"),
        ("user = \"root\"\nallowed_users = [\"ci\"]", "docker.allowed_users"),
        ("network_mode = \"host\"\nlinks = [\"a:b\"]", "docker.links"),
        ("network_mode = \"container:x\"\nhostname = \"y\"", "docker.hostname"),
    ] {
        let found = read(lines).expect("the options must be valid").contradictions();
        assert!(found.len() == 1 && found[0].key == key, "{lines}: {found:?}");
    }
}

#[test]
fn the_example_of_the_documentation_is_valid() {
    let manual = include_str!("../../../docs/reference/docker.md");
    let example = manual.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = Config::parse(Path::new("config.toml"), example).unwrap_or_else(|error| panic!("{error}"));
    let docker = &config.runners[0].docker;
    assert!(docker.contradictions().is_empty() && docker.services.len() == 1);
    assert!(docker.allowed_images.match_name("registry.example.com/team/app:1") && docker.memory.is_some());
}
