//! From the tree of a file to its jobs: every mistake of the file is reported, not only the first.

use super::keywords::{self, Support};
use super::yaml::{self, Node, Value};
use super::{AllowFailure, Job, Pipeline, Remark, Variable, When, duration};

/// How deep a `script` may nest lists (GitLab's own bound).
const SCRIPT_DEPTH: usize = 10;

const DEFAULT_STAGES: [&str; 3] = ["build", "test", "deploy"];

/// Reads a pipeline. Errors: every mistake found, in the order of the lines.
pub fn read(text: &str) -> Result<Pipeline, Vec<Remark>> {
    let document = yaml::parse(text).map_err(|error| vec![Remark { line: error.line, message: error.message }])?;
    let mut reader = Reader::default();
    for warning in document.warnings {
        reader.notes.push(Remark { line: warning.line, message: warning.message });
    }
    let pipeline = reader.pipeline(&document.root);
    if reader.errors.is_empty() {
        let mut notes = reader.notes;
        notes.sort_by_key(|note| note.line);
        return Ok(Pipeline { notes, ..pipeline });
    }
    reader.errors.sort_by_key(|error| error.line);
    Err(reader.errors)
}

#[derive(Default)]
struct Reader {
    errors: Vec<Remark>,
    notes: Vec<Remark>,
}

/// What jobs have unless they say otherwise.
#[derive(Default)]
struct Defaults {
    before_script: Vec<String>,
    after_script: Vec<String>,
    timeout: Option<std::time::Duration>,
    variables: Vec<Variable>,
    has_image: bool,
}

impl Reader {
    fn pipeline(&mut self, root: &Node) -> Pipeline {
        let mut pipeline = Pipeline { stages: Vec::new(), jobs: Vec::new(), notes: Vec::new() };
        let Value::Mapping(entries) = &root.value else {
            self.error(root.line, "the file is not a mapping of keywords and jobs");
            return pipeline;
        };
        let defaults = self.defaults(entries);
        pipeline.stages = self.stages(entries);
        let mut visible = false;
        for (key, value) in entries {
            let Some(name) = key.printed() else {
                self.error(key.line, "a key is neither a keyword nor the name of a job");
                continue;
            };
            if keywords::global(&name).is_some() || name.starts_with('.') {
                continue;
            }
            visible = true;
            pipeline.jobs.extend(self.job(&name, value, &defaults, &pipeline.stages));
        }
        if !visible {
            self.error(root.line, "no visible job: at least one key must be the name of a job");
        }
        pipeline
    }

    fn defaults(&mut self, entries: &[(Node, Node)]) -> Defaults {
        let mut defaults = Defaults::default();
        for (key, value) in entries {
            let Some(name) = key.text() else { continue };
            match keywords::global(name) {
                Some(Support::Noted(why)) => self.note(key.line, format!("`{name}` has no effect here: {why}")),
                Some(Support::Refused(why)) => self.error(key.line, format!("`{name}`: {why}")),
                _ => {}
            }
            match name {
                "default" => self.default_section(value, &mut defaults),
                "before_script" => defaults.before_script = self.script(name, value),
                "after_script" => defaults.after_script = self.script(name, value),
                "variables" => defaults.variables = self.variables(value),
                "image" => defaults.has_image = !value.is_null(),
                _ => {}
            }
        }
        defaults
    }

    fn default_section(&mut self, section: &Node, defaults: &mut Defaults) {
        let Some(entries) = self.mapping("default", section) else { return };
        for (key, value) in entries {
            let name = key.text().unwrap_or_default();
            self.judge("`default`", key, name, keywords::default(name));
            match name {
                "before_script" => defaults.before_script = self.script(name, value),
                "after_script" => defaults.after_script = self.script(name, value),
                "timeout" => defaults.timeout = self.timeout(value),
                "image" => defaults.has_image = !value.is_null(),
                _ => {}
            }
        }
    }

    fn stages(&mut self, entries: &[(Node, Node)]) -> Vec<String> {
        let given = entries.iter().find(|(key, _)| key.text() == Some("stages")).map(|(_, value)| value);
        let mut stages = vec![".pre".to_owned()];
        match given {
            Some(node) if !node.is_null() => {
                for stage in self.script("stages", node) {
                    if ![".pre", ".post"].contains(&stage.as_str()) && !stages.contains(&stage) {
                        stages.push(stage);
                    }
                }
            }
            _ => stages.extend(DEFAULT_STAGES.map(str::to_owned)),
        }
        stages.push(".post".to_owned());
        stages
    }

    fn job(&mut self, name: &str, node: &Node, defaults: &Defaults, stages: &[String]) -> Option<Job> {
        let place = format!("job `{name}`");
        if name.chars().count() > 255 {
            self.error(node.line, "the name of a job may have 255 characters");
        }
        let entries = self.mapping(&place, node)?;
        let mut job = Job {
            name: name.to_owned(),
            stage: "test".to_owned(),
            script: Vec::new(),
            after_script: defaults.after_script.clone(),
            variables: defaults.variables.clone(),
            has_image: defaults.has_image,
            allow_failure: AllowFailure::No,
            timeout: defaults.timeout,
            when: When::OnSuccess,
        };
        let mut before_script = defaults.before_script.clone();
        let (mut stage_line, mut allow_failure, mut elsewhere) = (node.line, None, false);
        for (key, value) in entries {
            let keyword = key.text().unwrap_or_default();
            let support = keywords::job(keyword);
            elsewhere |= matches!(support, Support::Refused(_));
            self.judge(&place, key, keyword, support);
            if value.is_null() {
                continue;
            }
            match keyword {
                "script" => job.script = self.script(keyword, value),
                "before_script" => before_script = self.script(keyword, value),
                "after_script" => job.after_script = self.script(keyword, value),
                "variables" => override_variables(&mut job.variables, self.variables(value)),
                "timeout" => job.timeout = self.timeout(value),
                "image" => job.has_image = true,
                "when" => job.when = self.when(&place, value),
                "allow_failure" => allow_failure = Some(self.allow_failure(&place, value)),
                "stage" => {
                    job.stage = self.text(keyword, value);
                    stage_line = value.line;
                }
                _ => {}
            }
        }
        if job.script.is_empty() && !elsewhere {
            self.error(node.line, format!("{place} has no `script`"));
        }
        if !stages.contains(&job.stage) {
            let message = format!("{place}: stage `{}` is not declared; `stages` has {}", job.stage, stages.join(", "));
            self.error(stage_line, message);
        }
        job.script.splice(0..0, before_script);
        let manual = job.when == When::Manual;
        job.allow_failure = allow_failure.unwrap_or(if manual { AllowFailure::Yes } else { AllowFailure::No });
        Some(job)
    }

    /// Says what becomes of a keyword that is not acted on.
    fn judge(&mut self, place: &str, key: &Node, keyword: &str, support: Support) {
        match support {
            Support::Run => {}
            Support::Noted(why) => self.note(key.line, format!("{place}: `{keyword}` has no effect here: {why}")),
            Support::Refused(why) => self.error(key.line, format!("{place}: `{keyword}`: {why}")),
            Support::Unknown => {
                let hint = nearest(keyword).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                self.error(key.line, format!("{place}: unknown keyword `{keyword}`{hint}"));
            }
        }
    }

    fn script(&mut self, keyword: &str, node: &Node) -> Vec<String> {
        let mut lines = Vec::new();
        self.flatten(keyword, node, 0, &mut lines);
        lines
    }

    fn flatten(&mut self, keyword: &str, node: &Node, depth: usize, lines: &mut Vec<String>) {
        if let Some(tag) = &node.tag {
            let message = format!("`{keyword}`: `!{tag}` is not resolved yet by a local run; write the lines out");
            return self.error(node.line, message);
        }
        match &node.value {
            Value::List(items) if depth <= SCRIPT_DEPTH => {
                for item in items {
                    self.flatten(keyword, item, depth + 1, lines);
                }
            }
            Value::Scalar { text, plain } if !plain || (node.boolean().is_none() && !node.is_null()) => {
                lines.push(text.clone());
            }
            _ => {
                let message = format!(
                    "`{keyword}` takes text, or lists of text nested up to {SCRIPT_DEPTH} deep; quote a line that \
                     holds `: ` or that YAML would read as a boolean"
                );
                self.error(node.line, message);
            }
        }
    }

    fn variables(&mut self, node: &Node) -> Vec<Variable> {
        let Some(entries) = self.mapping("variables", node) else { return Vec::new() };
        let mut variables = Vec::new();
        for (key, value) in entries {
            let name = key.printed().unwrap_or_default();
            let (value, raw) = match &value.value {
                Value::Mapping(parts) => self.variable_parts(&name, parts),
                Value::Scalar { .. } if value.is_null() => (String::new(), false),
                _ => (self.text(&name, value), false),
            };
            variables.push(Variable { name, value, raw });
        }
        variables
    }

    fn variable_parts(&mut self, name: &str, parts: &[(Node, Node)]) -> (String, bool) {
        let (mut text, mut raw) = (String::new(), false);
        for (key, value) in parts {
            match key.text().unwrap_or_default() {
                "value" => text = self.text(name, value),
                "expand" => raw = value.boolean() == Some(false),
                "description" | "options" => {}
                other => self.error(key.line, format!("variable `{name}`: unknown keyword `{other}`")),
            }
        }
        (text, raw)
    }

    fn timeout(&mut self, node: &Node) -> Option<std::time::Duration> {
        let text = self.text("timeout", node);
        let timeout = duration::parse(&text);
        if timeout.is_none() {
            self.error(node.line, format!("`timeout: {text}` is not a duration; write for example `1h 30m`"));
        }
        timeout
    }

    fn when(&mut self, place: &str, node: &Node) -> When {
        match node.text().unwrap_or_default() {
            "on_success" => When::OnSuccess,
            "on_failure" => When::OnFailure,
            "always" => When::Always,
            "manual" => When::Manual,
            "delayed" => When::Delayed,
            other => {
                let words = "on_success, on_failure, always, manual, delayed";
                self.error(node.line, format!("{place}: `when: {other}` is none of {words}"));
                When::OnSuccess
            }
        }
    }

    fn allow_failure(&mut self, place: &str, node: &Node) -> AllowFailure {
        if let Some(allowed) = node.boolean() {
            return if allowed { AllowFailure::Yes } else { AllowFailure::No };
        }
        let codes = match &node.value {
            Value::Mapping(parts) if parts.len() == 1 && parts[0].0.text() == Some("exit_codes") => &parts[0].1,
            _ => {
                self.error(node.line, format!("{place}: `allow_failure` takes true, false or `exit_codes`"));
                return AllowFailure::No;
            }
        };
        let items = match &codes.value {
            Value::List(items) => items.iter().collect(),
            _ => vec![codes],
        };
        let numbers: Option<Vec<i32>> = items.iter().map(|item| item.printed()?.parse().ok()).collect();
        if numbers.is_none() {
            self.error(codes.line, format!("{place}: `exit_codes` takes a number or a list of numbers"));
        }
        AllowFailure::ExitCodes(numbers.unwrap_or_default())
    }

    fn text(&mut self, what: &str, node: &Node) -> String {
        let text = node.printed();
        if text.is_none() || node.tag.is_some() {
            self.error(node.line, format!("`{what}` takes text"));
        }
        text.unwrap_or_default()
    }

    fn mapping<'a>(&mut self, what: &str, node: &'a Node) -> Option<&'a [(Node, Node)]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            Value::Scalar { .. } if node.is_null() && !what.starts_with("job") => Some(&[]),
            _ => {
                self.error(node.line, format!("{what} is not a mapping of keywords"));
                None
            }
        }
    }

    fn error(&mut self, line: usize, message: impl Into<String>) {
        self.errors.push(Remark { line, message: message.into() });
    }

    fn note(&mut self, line: usize, message: impl Into<String>) {
        self.notes.push(Remark { line, message: message.into() });
    }
}

fn override_variables(variables: &mut Vec<Variable>, own: Vec<Variable>) {
    for variable in own {
        variables.retain(|present| present.name != variable.name);
        variables.push(variable);
    }
}

/// The keyword that a misspelt one probably meant: at most two letters away.
fn nearest(keyword: &str) -> Option<&'static str> {
    let candidates = keywords::OF_JOB.iter().map(|candidate| (distance(keyword, candidate), *candidate));
    candidates.filter(|(distance, _)| *distance <= 2).min().map(|(_, candidate)| candidate)
}

/// Edit distance of two words.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn errors(text: &str) -> String {
        let errors = read(text).expect_err("refused");
        errors.iter().map(Remark::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn puts_defaults_and_globals_into_jobs() {
        let text = "
stages: [one, two]
default:
  before_script: [echo before]
  timeout: 10 minutes
variables: {A: global, B: 010}
unit:
  stage: two
  script: [[echo a, [echo b]], echo c]
  variables: {A: own}
  allow_failure: {exit_codes: [3, 4]}
";
        let pipeline = read(text).expect("a pipeline");
        assert_eq!(pipeline.stages, [".pre", "one", "two", ".post"]);
        let job = &pipeline.jobs[0];
        assert_eq!(job.script, ["echo before", "echo a", "echo b", "echo c"]);
        assert_eq!(job.timeout, Some(Duration::from_secs(600)));
        let values: Vec<_> = job.variables.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect();
        assert_eq!(values, [("B", "8"), ("A", "own")]);
        assert!(job.allow_failure.forgives(Some(3)) && !job.allow_failure.forgives(Some(1)));
    }

    #[test]
    fn a_keyword_without_effect_is_said_with_its_line() {
        let pipeline = read("unit:\n  tags: [x]\n  script: echo\n").expect("a pipeline");
        assert_eq!(pipeline.notes[0].line, 2);
        assert!(pipeline.notes[0].message.contains("`tags`"));
    }

    #[test]
    fn reports_every_mistake() {
        let text = "
a:
  scirpt: echo
b:
  stage: nowhere
  script: echo
c:
  script: [{echo: x}]
  when: sometimes
  timeout: soon
d:
  extends: .base
";
        let errors = errors(text);
        for part in [
            "line 3: job `a`: unknown keyword `scirpt`; did you mean `script`?",
            "job `a` has no `script`",
            "line 5: job `b`: stage `nowhere` is not declared",
            "line 8: `script` takes text",
            "line 9: job `c`: `when: sometimes`",
            "line 10: `timeout: soon`",
            "line 12: job `d`: `extends`",
        ] {
            assert!(errors.contains(part), "{part} in:\n{errors}");
        }
    }

    #[test]
    fn a_manual_job_may_fail() {
        let pipeline = read("a: {script: x, when: manual}\n").expect("a pipeline");
        assert_eq!(pipeline.jobs[0].allow_failure, AllowFailure::Yes);
    }

    #[test]
    fn refuses_what_is_no_pipeline() {
        assert!(errors("- a\n").contains("not a mapping"));
        assert!(errors("stages: [a]\n").contains("no visible job"));
        assert!(errors(".hidden: {script: x}\n").contains("no visible job"));
        assert!(errors("a: [b\n").contains("line"));
        assert!(errors("include: other.yml\na: {script: x}\n").contains("`include`"));
        assert!(errors("a: {script: !reference [b, script]}\n").contains("!reference"));
    }
}
