//! `--explain JOB`: why rules include or exclude a job, and where each of its values is written.

use std::fmt::Write;

use crate::pipeline::JobRun;
use crate::pipeline::plan::{Decision, Job, Plan, VariableLevel};
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{Node, Origin};

/// The explanation of a job. Fails for an unknown job.
pub fn of(plan: &Plan, run: &dyn Fn(usize, &Job) -> JobRun, name: &str) -> Result<String, String> {
    let jobs: Vec<&Job> = plan.jobs.iter().filter(|job| *job.name == *name || *job.group == *name).collect();
    if let Some(absent) = plan.absent.iter().find(|absent| *absent.name == *name && jobs.is_empty()) {
        let text = format!("{name} ({}) is not in this pipeline: {}\n", place(plan, absent.at), absent.why);
        return Ok(text);
    }
    if let (Some(why), true) = (&plan.not_created, jobs.is_empty()) {
        return Ok(format!("no pipeline is created: {why}\n"));
    }
    match jobs.is_empty() {
        true => {
            let absent = plan.absent.iter().map(|absent| &*absent.name);
            let known: Vec<&str> = plan.jobs.iter().map(|job| &*job.name).chain(absent).collect();
            Err(format!("unknown job `{name}`{}", did_you_mean(name, &known)))
        }
        false => Ok(jobs.iter().map(|job| one(plan, &run(0, job), job)).collect::<Vec<_>>().join("\n")),
    }
}

fn place(plan: &Plan, at: Origin) -> String {
    let (file, line) = plan.place(at);
    if line > 0 { format!("{file}:{line}") } else { file.to_owned() }
}

fn one(plan: &Plan, run: &JobRun, job: &Job) -> String {
    let mut text = format!("{} ({}, stage {}, when: {})\n", job.name, place(plan, job.at), job.stage, job.when.word());
    let why = match &job.decision {
        Decision::Rule { number, at, why } => format!("rule {number} ({}) matched: {why}", place(plan, *at)),
        Decision::NoRules => "the job has no rules, and the pipeline includes such jobs".to_owned(),
        Decision::Only(why) | Decision::Left(why) => why.clone(),
    };
    let _ = writeln!(text, "  in the pipeline: {why}");
    match &job.needs {
        None => text.push_str("  starts when all jobs of earlier stages have finished\n"),
        Some(needs) if needs.is_empty() => text.push_str("  starts at once (needs: [])\n"),
        Some(needs) => {
            let names: Vec<&str> = needs.iter().map(|need| &*need.job).collect();
            let _ = writeln!(text, "  starts when these have finished: {}", names.join(", "));
        }
    }
    text.push_str("  keywords:\n");
    if let Some(entries) = job.definition.mapping() {
        for (key, entry) in entries.iter().filter(|(_, entry)| !entry.node.is_null()) {
            let from = if job.from_default.contains(key) { " (default)" } else { "" };
            // A value from an anchor, a reference or another file is not written where its key is.
            let at = if entry.node.at.line > 0 { entry.node.at } else { entry.key_at };
            let _ = writeln!(text, "    {key}: {}  # {}{from}", short(&entry.node), place(plan, at));
        }
    }
    text.push_str("  variables of the configuration:\n");
    for variable in &job.variables {
        let level = level(variable.level);
        let _ = writeln!(text, "    {}: {}  # {}, {level}", variable.key, variable.value, place(plan, variable.at));
    }
    text.push_str("  variables of the job at run time:\n");
    for variable in plan.printable_env(job, run) {
        let value = first_line(&variable.value);
        let from = if variable.given { "  # given" } else { "" };
        let _ = writeln!(text, "    {}={value}{from}", variable.key);
    }
    text
}

fn level(level: VariableLevel) -> &'static str {
    match level {
        VariableLevel::Default => "top level",
        VariableLevel::Workflow => "rule of the workflow",
        VariableLevel::Job => "job",
        VariableLevel::Matrix => "matrix",
        VariableLevel::Rule => "rule of the job",
    }
}

fn first_line(text: &str) -> String {
    match text.split_once('\n') {
        Some((first, _)) => format!("{first} …"),
        None => text.to_owned(),
    }
}

fn short(node: &Node) -> String {
    let text = match node.printed() {
        Some(text) => text.to_string(),
        None => node.to_json().to_string(),
    };
    let text = first_line(&text);
    match text.chars().count() > 100 {
        true => text.chars().take(99).chain(['…']).collect(),
        false => text,
    }
}
