//! `--explain JOB`: why rules include or exclude a job, and where each of its values is written.

use std::fmt::Write;

use crate::pipeline::JobRun;
use crate::pipeline::plan::{Decision, EnvSource, Job, Plan, VariableLevel};
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{Node, Origin};

/// The explanation of a job. Fails for an unknown job.
pub fn explanation(plan: &Plan, run: &dyn Fn(usize, &Job) -> JobRun, name: &str) -> Result<String, String> {
    let jobs: Vec<&Job> = plan.jobs.iter().filter(|job| *job.name == *name || *job.group == *name).collect();
    if !jobs.is_empty() {
        return Ok(jobs.iter().map(|job| explain_job(plan, &run(0, job), job)).collect::<Vec<_>>().join("\n"));
    }
    if let Some(absent) = plan.absent.iter().find(|absent| *absent.name == *name) {
        let text = format!("{name} ({}) is not in this pipeline: {}\n", position(plan, absent.at), absent.why);
        return Ok(text);
    }
    if let Some(why) = &plan.not_created {
        return Ok(format!("no pipeline is created: {why}\n"));
    }
    let absent = plan.absent.iter().map(|absent| &*absent.name);
    let known: Vec<&str> = plan.jobs.iter().map(|job| &*job.name).chain(absent).collect();
    Err(format!("unknown job `{name}`{}", did_you_mean(name, &known)))
}

/// File and line in the configuration.
fn position(plan: &Plan, at: Origin) -> String {
    let (file, line) = plan.file_and_line(at);
    if line > 0 { format!("{file}:{line}") } else { file.to_owned() }
}

fn explain_job(plan: &Plan, run: &JobRun, job: &Job) -> String {
    let when = job.when.word();
    let mut text = format!("{} ({}, stage {}, when: {when})\n", job.name, position(plan, job.at), job.stage);
    let _ = writeln!(text, "  in the pipeline: {}", reason_for_presence(plan, job));
    let _ = writeln!(text, "  {}", start_condition(job));
    text.push_str("  keywords:\n");
    add_keywords(&mut text, plan, job);
    text.push_str("  variables of the configuration:\n");
    for variable in &job.variables {
        let level = level(variable.level);
        let _ = writeln!(text, "    {}: {}  # {}, {level}", variable.key, variable.value, position(plan, variable.at));
    }
    text.push_str("  variables of the job at run time:\n");
    for variable in plan.printable_env(job, run) {
        let value = first_line(&variable.value);
        let from = if variable.source == EnvSource::Given { "  # given" } else { "" };
        let _ = writeln!(text, "    {}={value}{from}", variable.key);
    }
    text
}

fn reason_for_presence(plan: &Plan, job: &Job) -> String {
    match &job.decision {
        Decision::Rule { number, at, why } => format!("rule {number} ({}) matched: {why}", position(plan, *at)),
        Decision::NoRules => "the job has no rules, and the pipeline includes such jobs".to_owned(),
        Decision::OnlyExcept(why) => why.clone(),
    }
}

fn start_condition(job: &Job) -> String {
    match &job.needs {
        None => "starts when all jobs of earlier stages have finished".to_owned(),
        Some(needs) if needs.is_empty() => "starts at once (needs: [])".to_owned(),
        Some(needs) => {
            let names: Vec<&str> = needs.iter().map(|need| &*need.job).collect();
            format!("starts when these have finished: {}", names.join(", "))
        }
    }
}

fn add_keywords(text: &mut String, plan: &Plan, job: &Job) {
    let entries = job.definition.mapping().into_iter().flat_map(|entries| entries.iter());
    for (key, entry) in entries.filter(|(_, entry)| !entry.node.is_null()) {
        let from = if job.from_default.contains(key) { " (default)" } else { "" };
        // A value from an anchor, a reference or another file is not written where its key is.
        let at = if entry.node.at.line > 0 { entry.node.at } else { entry.key_at };
        let _ = writeln!(text, "    {key}: {}  # {}{from}", short(&entry.node), position(plan, at));
    }
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

/// The beginning of a value, on one line.
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
