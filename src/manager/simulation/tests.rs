use jiff::tz::TimeZone;

use super::load::even;
use super::*;
use crate::manager::scaling::testing::{DYNAMIC, pool};

const MINUTE: Duration = Duration::from_secs(60);

fn scenario(executor: &str, runner: &str, keys: &str, begins: &str) -> Scenario {
    Scenario {
        sizing: Sizing::from_pool(&pool(executor, runner, keys)),
        group_maximum: None,
        begins: begins.parse().expect("a time"),
        length: MINUTE * 60 * 24,
        boot: Duration::from_secs(90),
        jobs: Vec::new(),
    }
}

#[test]
fn ten_jobs_on_demand_start_one_boot_after_the_other() {
    // Worked example 1.4: limit 10, IdleCount 0, MaxGrowthRate 1, a boot of 90 s: the last starts after about 15
    // minutes.
    let mut scenario = scenario(
        "docker+machine",
        "limit = 10\n",
        "IdleCount = 0\nIdleTime = 300\nMaxGrowthRate = 1\n",
        "2026-07-06T00:00:00Z",
    );
    scenario.jobs = even(10, MINUTE * 60, MINUTE * 60, Duration::ZERO);
    let day = simulate(&scenario);
    let mut waits: Vec<u64> = day.waits.iter().map(|wait| wait.expect("the job must have started").as_secs()).collect();
    waits.sort_unstable();
    assert_eq!(waits, [90, 180, 270, 360, 450, 540, 630, 720, 810, 900]);
    // An instance that has been idle for 300 s is terminated; all instances are surplus.
    let last = day.samples.last().expect("a sample");
    assert_eq!((day.started, last.idle + last.busy + last.starting), (10, 0));
    let expected = MINUTE * 60 * 10 + (Duration::from_secs(90) + MINUTE * 5) * 10;
    assert_eq!((day.instance_time, day.busy_time), (expected, MINUTE * 60 * 10));
}

#[test]
fn without_a_growth_limit_all_instances_start_at_once() {
    let mut scenario = scenario("docker-autoscaler", "", "max_instances = 10\n", "2026-07-06T00:00:00Z");
    scenario.jobs = even(10, MINUTE * 5, MINUTE, Duration::ZERO);
    let day = simulate(&scenario);
    assert!(day.waits.iter().all(|wait| *wait == Some(Duration::from_secs(90))), "{:?}", day.waits);
}

#[test]
fn with_idle_capacity_no_job_waits_for_a_boot() {
    // Worked example 2.2: idle 5, capacity 1, at most 10.
    let keys = "max_instances = 10\n[[runners.autoscaler.policy]]\nidle_count = 5\nidle_time = \"20m\"\n";
    let mut scenario = scenario("docker-autoscaler", "", keys, "2026-07-06T00:00:00Z");
    scenario.jobs = even(3, MINUTE * 10, MINUTE * 10, Duration::ZERO);
    let day = simulate(&scenario);
    assert_eq!(day.waits, [Some(Duration::ZERO); 3]);
    let at = |minute: usize| day.samples[minute];
    assert_eq!((at(5).idle, at(5).wanted), (5, 5));
    assert_eq!((at(15).busy, at(15).idle, at(15).wanted), (3, 5, 8));
    assert_eq!((at(60).busy, at(60).idle, at(60).wanted), (0, 5, 5));
    // With six jobs, there are ten instances, four of them idle. With ten jobs, there are still ten.
    scenario.jobs = even(6, MINUTE * 10, MINUTE * 10, Duration::ZERO);
    let sample = simulate(&scenario).samples[15];
    assert_eq!((sample.busy, sample.idle, sample.wanted), (6, 4, 10));
    scenario.jobs = even(12, MINUTE * 10, MINUTE * 10, Duration::ZERO);
    let sample = simulate(&scenario).samples[15];
    assert_eq!((sample.busy, sample.idle, sample.wanted, sample.queued), (10, 0, 10, 2));
}

#[test]
fn several_jobs_share_an_instance() {
    let keys = "capacity_per_instance = 5\n[[runners.autoscaler.policy]]\nidle_count = 5\nidle_time = \"1m\"\n";
    let mut scenario = scenario("docker-autoscaler", "", keys, "2026-07-06T00:00:00Z");
    scenario.jobs = even(7, MINUTE * 30, MINUTE * 10, Duration::ZERO);
    let sample = simulate(&scenario).samples[20];
    assert_eq!((sample.running, sample.wanted, sample.busy), (7, 3, 2));
}

#[test]
fn instances_at_their_use_limit_are_replaced() {
    let keys = "max_use_count = 1\nmax_instances = 2\n[[runners.autoscaler.policy]]\nidle_time = \"5m\"\n";
    let mut scenario = scenario("docker-autoscaler", "", keys, "2026-07-06T00:00:00Z");
    scenario.jobs = even(6, MINUTE, MINUTE, Duration::ZERO);
    let day = simulate(&scenario);
    assert_eq!(day.started, 6);
    assert!(day.waits.iter().all(Option::is_some), "{:?}", day.waits);
    assert!(day.samples.iter().all(|sample| sample.busy + sample.idle + sample.starting <= 2));
}

#[test]
fn policies_follow_the_clocks_over_a_change_of_summer_time() {
    // On Sunday, 29 March 2026, clocks in Amsterdam go from 2:00 to 3:00. Friday 9:00 is 8:00 UTC, Monday 9:00 is 7:00.
    for (begins, winter) in [("2026-03-27T00:00:00Z", true), ("2026-03-30T00:00:00Z", false)] {
        let scenario = scenario("docker+machine", "limit = 40\n", DYNAMIC, begins);
        let day = simulate(&scenario);
        let hours: Vec<(u64, bool)> =
            day.policies.iter().map(|(at, label)| (at.as_secs() / 60, label.starts_with("autoscaling 1"))).collect();
        let from = if winter { 8 * 60 } else { 7 * 60 };
        assert_eq!(hours, [(0, false), (from, true), (from + 9 * 60, false)], "{begins}");
        assert_eq!(day.samples[12 * 60].idle, 5);
        assert_eq!(day.samples[23 * 60].idle, 1);
    }
    // The weekend by UTC: no instances are kept. A policy whose hour occurs twice in that night applies twice.
    let day = simulate(&scenario("docker+machine", "limit = 40\n", DYNAMIC, "2026-03-29T00:00:00Z"));
    assert_eq!((day.started, day.policies.len()), (0, 1));
    let keys =
        "[[runners.autoscaler.policy]]\nperiods = [\"* 2 * * *\"]\ntimezone = \"Europe/Amsterdam\"\nidle_count = 1\n";
    let minutes = |begins: &str| {
        let day = simulate(&scenario("docker-autoscaler", "", keys, begins));
        day.samples.iter().filter(|sample| sample.wanted == 1).count()
    };
    // The hour from 2:00 is left out in spring and comes twice in autumn: at 0:00 and at 1:00 by UTC.
    let all = ["2026-03-28T00:00:00Z", "2026-03-29T00:00:00Z", "2026-10-25T00:00:00Z"].map(minutes);
    assert_eq!(all, [60, 0, 120]);
}

#[test]
fn a_report_has_hours_totals_and_a_chart() {
    let mut scenario = scenario("docker-autoscaler", "", "max_instances = 10\n", "2026-07-06T00:00:00Z");
    scenario.jobs = even(48, MINUTE * 5, Duration::ZERO, MINUTE * 60 * 24);
    let day = simulate(&scenario);
    let table = report::table(&day, &scenario.jobs, scenario.begins, &TimeZone::UTC);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].starts_with("Mon 00:00"), "{table}");
    assert!(table.contains("jobs             48 created, 48 started"), "{table}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("Mon ")).count(), 24, "{table}");
    let svg = report::chart(&day, scenario.begins, &TimeZone::UTC);
    roxmltree::Document::parse(&svg).expect("must be XML");
}

#[test]
fn a_day_of_many_jobs_is_quick() {
    let mut scenario = scenario("docker-autoscaler", "", "max_instances = 40\n", "2026-07-06T00:00:00Z");
    scenario.jobs = even(5000, MINUTE * 7, Duration::ZERO, MINUTE * 60 * 24);
    let began = std::time::Instant::now();
    let day = simulate(&scenario);
    assert!(day.waits.iter().filter(|wait| wait.is_some()).count() > 4900);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}
