//! `--graph`: the dependencies between jobs.

use std::collections::HashMap;
use std::fmt::Write;

use super::args::GraphFormat;
use crate::pipeline::plan::{Job, Plan};

/// The text of a graph.
pub fn draw(plan: &Plan, format: GraphFormat) -> String {
    let numbers: HashMap<&str, usize> = plan.jobs.iter().enumerate().map(|(at, job)| (&*job.name, at)).collect();
    match format {
        GraphFormat::Dot => dot(plan, &numbers),
        GraphFormat::Mermaid => mermaid(plan, &numbers),
    }
}

/// The names of the jobs that a job waits for: its needs, or the jobs of the last earlier stage that has jobs.
fn awaited_jobs<'a>(plan: &'a Plan, job: &'a Job) -> Vec<&'a str> {
    if let Some(needs) = &job.needs {
        return needs.iter().map(|need| &*need.job).collect();
    }
    let earlier = plan.jobs.iter().filter(|other| other.stage_index < job.stage_index);
    let Some(last) = earlier.clone().map(|other| other.stage_index).max() else { return Vec::new() };
    earlier.filter(|other| other.stage_index == last).map(|other| &*other.name).collect()
}

fn stages(plan: &Plan) -> impl Iterator<Item = (&str, Vec<(usize, &Job)>)> {
    let of_stage =
        |stage: usize| plan.jobs.iter().enumerate().filter(move |(_, job)| job.stage_index == stage).collect();
    let stages = plan.stages.iter().enumerate().map(move |(index, name)| (&**name, of_stage(index)));
    stages.filter(|(_, jobs): &(&str, Vec<_>)| !jobs.is_empty())
}

fn dot(plan: &Plan, numbers: &HashMap<&str, usize>) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = String::from("digraph pipeline {\n  rankdir=LR;\n  node [shape=box];\n");
    for (number, (stage, jobs)) in stages(plan).enumerate() {
        let _ = writeln!(text, "  subgraph cluster_{number} {{\n    label={};", quote(stage));
        for (index, job) in jobs {
            let style = if job.when.word() == "manual" { ", style=dashed" } else { "" };
            let _ = writeln!(text, "    j{index} [label={}{style}];", quote(&job.name));
        }
        text.push_str("  }\n");
    }
    for (index, job) in plan.jobs.iter().enumerate() {
        for other in awaited_jobs(plan, job).iter().filter_map(|name| numbers.get(name)) {
            let _ = writeln!(text, "  j{other} -> j{index};");
        }
    }
    text.push_str("}\n");
    text
}

/// A character of a label. `#` begins an entity, a backtick Markdown, and `<` HTML.
fn mermaid_character(character: char) -> String {
    match character {
        '"' | '#' | '&' | '<' | '>' | '`' | '\\' => format!("#{};", u32::from(character)),
        other => other.to_string(),
    }
}

fn mermaid(plan: &Plan, numbers: &HashMap<&str, usize>) -> String {
    let quote = |text: &str| format!("\"{}\"", text.chars().map(mermaid_character).collect::<String>());
    let mut text = String::from("flowchart LR\n");
    for (number, (stage, jobs)) in stages(plan).enumerate() {
        let _ = writeln!(text, "  subgraph s{number}[{}]", quote(stage));
        for (index, job) in jobs {
            let _ = writeln!(text, "    j{index}[{}]", quote(&job.name));
        }
        text.push_str("  end\n");
    }
    for (index, job) in plan.jobs.iter().enumerate() {
        for other in awaited_jobs(plan, job).iter().filter_map(|name| numbers.get(name)) {
            let _ = writeln!(text, "  j{other} --> j{index}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_mermaid_contain_no_markup() {
        let label: String = "a \"b\" <i> & j#2; `c` \u{fc}".chars().map(mermaid_character).collect();
        assert_eq!(label, "a #34;b#34; #60;i#62; #38; j#35;2; #96;c#96; \u{fc}");
    }
}
