//! `mayfly manager simulate`: the worked examples of both kinds of fleets, and a day with load.

use std::fs;

use crate::support::mayfly::Home;
use crate::support::output_text;

/// A fleet of docker+machine with three periods, and one of the autoscaler with five idle instances.
const POOLS: &str = r#"concurrent = 40
[[runners]]
name = "dynamic"
url = "https://gitlab.example.com"
token = "t1"
executor = "docker+machine"
limit = 40
[runners.docker]
image = "alpine"
[runners.mayfly]
auto_scaling_group = "dynamic"
[runners.machine]
IdleCount = 10
IdleCountMin = 1
IdleScaleFactor = 1.0
IdleTime = 600
MaxBuilds = 250
[[runners.machine.autoscaling]]
Periods = ["* * 9-17 * * mon-fri *"]
Timezone = "Europe/Amsterdam"
IdleCount = 20
IdleCountMin = 5
IdleScaleFactor = 1.5
IdleTime = 3600
[[runners.machine.autoscaling]]
Periods = ["* * * * * sat,sun *"]
Timezone = "UTC"
IdleCount = 0
IdleTime = 120
[[runners]]
name = "static"
url = "https://gitlab.example.com"
token = "t2"
executor = "docker+machine"
limit = 10
[runners.docker]
image = "alpine"
[runners.mayfly]
auto_scaling_group = "static"
[runners.machine]
IdleCount = 0
IdleTime = 300
MaxGrowthRate = 1
[[runners]]
name = "autoscaler"
url = "https://gitlab.example.com"
token = "t3"
executor = "docker-autoscaler"
[runners.docker]
image = "alpine"
[runners.autoscaler]
plugin = "aws"
capacity_per_instance = 1
max_instances = 10
[runners.autoscaler.plugin_config]
name = "autoscaler"
[[runners.autoscaler.policy]]
idle_count = 5
idle_time = "20m0s"
timezone = "UTC"
"#;

fn simulate(arguments: &[&str]) -> String {
    let home = Home::empty();
    fs::write(home.config(), POOLS).expect("write a file");
    fs::write(home.path("load.csv"), "start,duration\n09:00,10m\n09:00,10m\n09:00:30,600\n").expect("write a file");
    let config = home.config().display().to_string();
    let all = [&["manager", "simulate", "--config", &config], arguments].concat();
    let output = home.call(&all);
    let report = output_text(&output);
    assert!(output.status.success(), "{report}");
    report
}

/// The columns for idle capacity and instances.
fn columns(text: &str) -> (Vec<u32>, Vec<u32>) {
    let rows = text.lines().skip_while(|line| !line.starts_with("running jobs")).skip(1);
    let numbers = rows.map(|row| row.split_whitespace().map(|word| word.parse().expect("a number")).collect());
    numbers.map(|row: Vec<u32>| (row[1], row[2])).unzip()
}

#[test]
fn targets_by_the_number_of_running_jobs_are_those_of_docker_machine() {
    let used = "0,1,3,4,5,10,13,14,20,24,32,35,40";
    for (at, policy, expected) in [
        ("Mon 20:00", "root values", [1, 1, 3, 4, 5, 10, 10, 10, 10, 10, 8, 5, 0]),
        ("Mon 09:00", "autoscaling 1", [5, 5, 5, 6, 7, 15, 19, 20, 20, 16, 8, 5, 0]),
        ("Sat 12:00", "autoscaling 2", [0; 13]),
        // Saturday in Amsterdam, Friday in UTC.
        ("Sat 01:30", "root values", [1, 1, 3, 4, 5, 10, 10, 10, 10, 10, 8, 5, 0]),
    ] {
        let arguments = [
            "--pool",
            "dynamic",
            "--at",
            at,
            "--running",
            used,
            "--timezone",
            "Europe/Amsterdam",
            "--day",
            "2026-07-06",
        ];
        let report = simulate(&arguments);
        assert!(report.contains(&format!("policy in force: {policy}")), "{at}: {report}");
        assert_eq!(columns(&report).0, expected, "{at}: {report}");
    }
}

#[test]
fn targets_by_the_number_of_running_jobs_are_those_of_the_autoscaler() {
    let report = simulate(&["--pool", "autoscaler", "--at", "2026-07-06 12:00", "--running", "0,3,6,10"]);
    assert_eq!(columns(&report), (vec![5, 5, 4, 0], vec![5, 8, 10, 10]), "{report}");
    assert!(
        report.contains("policy in force: policy 1 (`* * * * *`, UTC)\n  idle target 5; idle time 1200 s; relay"),
        "{report}"
    );
}

#[test]
fn on_demand_instances_that_boot_one_by_one_keep_the_last_job_waiting() {
    let report = simulate(&[
        "--pool",
        "static",
        "--jobs",
        "10",
        "--duration",
        "1h",
        "--start",
        "01:00",
        "--over",
        "0",
        "--boot",
        "90s",
        "--day",
        "2026-07-06",
        "--timezone",
        "UTC",
    ]);
    assert!(report.contains("waiting time     median 9m00s, 95 % 15m00s, longest 15m00s"), "{report}");
    assert!(report.contains("instances        10 started, at most 10 at once"), "{report}");
}

#[test]
fn a_load_from_a_file_gives_a_table_and_a_chart() {
    let home = Home::empty();
    let chart = home.path("day.svg").display().to_string();
    let load = home.path("load.csv");
    fs::write(&load, "start,duration\n09:00,10m\n09:00,10m\n09:00:30,600\n").expect("write a file");
    let load = load.display().to_string();
    let report = simulate(&[
        "--pool",
        "autoscaler",
        "--load",
        &load,
        "--svg",
        &chart,
        "--day",
        "2026-07-06",
        "--timezone",
        "UTC",
    ]);
    assert!(report.contains("jobs             3 created, 3 started"), "{report}");
    let nine = report.lines().find(|line| line.starts_with("Mon 09:00")).unwrap_or_else(|| panic!("{report}"));
    let words: Vec<&str> = nine.split_whitespace().collect();
    assert_eq!(words[2..], ["0", "3", "8", "3", "6", "3", "0s", "0s"], "{report}");
    let svg = fs::read_to_string(&chart).expect("a chart");
    assert!(svg.starts_with("<svg ") && svg.contains("busy instances"), "{svg:.200}");
}

/// The file of a manager that is to be replaced has no group yet; its policies can be compared all the same.
#[test]
fn a_file_of_gitlab_runner_is_simulated_as_it_is() {
    let home = Home::empty();
    let wrong = "[[runners]]\nname = \"wrong\"\nurl = \"https://gitlab.example.com\"\ntoken = \"t\"\nexecutor = \"instance\"\n\
                 [runners.autoscaler]\nmax_instances = -1\n";
    let text = POOLS
        .replace("[runners.mayfly]\nauto_scaling_group = \"dynamic\"\n", "")
        .replace("plugin = \"aws\"", "plugin = \"fleeting-plugin-googlecloud:latest\"");
    fs::write(home.config(), &text).expect("write a file");
    let config = home.config().display().to_string();
    let simulate = || {
        let output = home.call(&["manager", "simulate", "--config", &config, "--at", "Mon 09:00"]);
        let report = output_text(&output);
        (output.status.success(), report)
    };
    let (success, report) = simulate();
    assert!(success, "{report}");
    for pool in ["dynamic", "static", "autoscaler"] {
        assert!(report.contains(&format!("pool {pool} at Mon")), "{pool}: {report}");
    }
    fs::write(home.config(), format!("{text}{wrong}")).expect("write a file");
    let (success, report) = simulate();
    assert!(!success && report.contains("pool `wrong`"), "{report}");
    assert!(report.contains("pool static at Mon") && report.contains("pool autoscaler at Mon"), "{report}");
}

#[test]
fn each_pool_has_a_chart_and_dates_of_a_load_choose_the_day() {
    let home = Home::empty();
    let load = home.path("load.csv").display().to_string();
    fs::write(&load, "2026-07-11 09:00,10m\n2026-07-12T09:00,10m\n").expect("write a file");
    let chart = home.path("day.svg").display().to_string();
    let report = simulate(&["--load", &load, "--svg", &chart, "--timezone", "UTC"]);
    assert!(report.contains("\nSat 09:00 ") && report.contains("policy from Sat 00:00: autoscaling 2"), "{report}");
    assert!(report.contains("jobs             1 created, 1 started"), "{report}");
    assert!(report.contains("not simulated    1 jobs that begin later; raise --length"), "{report}");
    for pool in ["dynamic", "static", "autoscaler"] {
        let svg = fs::read_to_string(home.path(&format!("day-{pool}.svg"))).expect("a chart");
        assert!(svg.starts_with("<svg "), "{pool}");
    }
}

#[test]
fn a_throttle_adds_instances_second_by_second() {
    let home = Home::empty();
    let text = POOLS.replace("idle_count = 5", "idle_count = 0").replace("max_instances = 10\n", "").replace(
        "[[runners.autoscaler.policy]]",
        "[runners.autoscaler.scale_throttle]\nlimit = 1\n[[runners.autoscaler.policy]]",
    );
    fs::write(home.config(), text).expect("write a file");
    let config = home.config().display().to_string();
    let load = ["--jobs", "31", "--duration", "1h", "--over", "0", "--boot", "30s", "--timezone", "UTC"];
    let all = [&["manager", "simulate", "--config", &config, "--pool", "autoscaler"], &load[..]].concat();
    let output = home.call(&all);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    // The first one at once, one more each second, and 30 s for each boot.
    assert!(report.contains("waiting time     median 45s, 95 % 59s, longest 1m00s"), "{report}");
}

#[test]
fn what_is_wrong_is_named() {
    let home = Home::empty();
    fs::write(home.config(), POOLS).expect("write a file");
    let config = home.config().display().to_string();
    let early = home.path("early.csv").display().to_string();
    fs::write(&early, "09:00,5m\n25:70,5m\n").expect("write a file");
    for (arguments, expected) in [
        (vec!["--load", early.as_str()], "line 2: `25:70,5m` is not `start,duration`"),
        (vec!["--jobs", "4000000000", "--duration", "1s"], "4000000000 is not in"),
        (vec!["--pool", "other", "--at", "Mon 9:00"], "has no pool `other`"),
        (vec!["--at", "noon"], "`noon` is not a time; write for example 'Sat 01:30'"),
        (vec![], "no load; name a CSV file with --load"),
        (vec!["--load", "/nowhere.csv"], "the load /nowhere.csv"),
    ] {
        let all = [vec!["manager", "simulate", "--config", &config], arguments].concat();
        let output = home.call(&all);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(expected), "{error}");
    }
}
