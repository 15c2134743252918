//! The header of a file, `spec`: the inputs that the file declares.

use std::sync::Arc;

use crate::pipeline::hash::Index;
use crate::pipeline::pattern::RegexPattern;
use crate::pipeline::problem::{Class, ProblemReport};
use crate::pipeline::rules::expression::Expression;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{MappingEntry, Node, Origin, YamlValue};

/// The number of options that an input may have, as on GitLab.
const MAX_OPTIONS: usize = 50;

/// The maximum length of `spec:description` in characters.
const MAX_DESCRIPTION_LENGTH: usize = 256;

const INPUT_KEYS: [&str; 6] = ["type", "default", "options", "regex", "description", "rules"];

const RULE_KEYS: [&str; 3] = ["if", "options", "default"];

/// The header of a file.
#[derive(Debug, Default)]
pub struct Spec {
    pub inputs: Index<Arc<str>, DeclaredInput>,
    /// The component facts (`name`, `sha`, …) that the file may use.
    pub component: Vec<Arc<str>>,
    /// Files that declare further inputs.
    pub include: Option<Node>,
    /// The position of the value of `spec`.
    pub at: Origin,
}

/// A declared input.
#[derive(Debug)]
pub struct DeclaredInput {
    pub kind: InputType,
    pub default: Option<Node>,
    pub options: Option<Vec<Node>>,
    pub regex: Option<(Arc<str>, RegexPattern)>,
    pub rules: Vec<InputRule>,
    pub at: Origin,
}

/// A default and options under a condition.
#[derive(Debug)]
pub struct InputRule {
    pub condition: Option<InputCondition>,
    pub options: Option<Vec<Node>>,
    pub default: Option<Node>,
    pub at: Origin,
}

/// `if` of a rule.
#[derive(Debug)]
pub struct InputCondition {
    /// The expression, with the variables `$I0`, `$I1`, … in the place of the inputs.
    pub expression: Expression,
    /// The names of the inputs, by the numbers of their variables.
    pub inputs: Vec<Arc<str>>,
}

/// The type of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    Text,
    Number,
    Boolean,
    Array,
}

impl InputType {
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Array => "array",
        }
    }

    pub fn fits(self, value: &Node) -> bool {
        match self {
            Self::Text => value.text().is_some(),
            Self::Number => matches!(value.value, YamlValue::Integer(_) | YamlValue::Float(_)),
            Self::Boolean => value.boolean().is_some(),
            Self::Array => value.list().is_some(),
        }
    }
}

/// Reads the value of `spec`.
pub fn read_spec(node: &Node, report: &mut ProblemReport) -> Spec {
    let mut spec = Spec { at: node.at, ..Spec::default() };
    if node.is_null() {
        return spec;
    }
    let Some(mapping) = node.mapping() else {
        report.error(Class::InputSpec, node.at, format!("`spec` takes a mapping, not {}", node.kind()));
        return spec;
    };
    for (key, entry) in mapping.iter().filter(|(_, entry)| !entry.node.is_null()) {
        match &**key {
            "inputs" => read_inputs(&entry.node, &mut spec.inputs, report),
            "component" => read_component(&entry.node, &mut spec.component, report),
            "include" => spec.include = Some(entry.node.clone()),
            "description" => {
                if entry.node.text().is_none_or(|text| text.chars().count() > MAX_DESCRIPTION_LENGTH) {
                    let message = format!("`spec:description` takes text of up to {MAX_DESCRIPTION_LENGTH} characters");
                    report.error(Class::InputSpec, entry.node.at, message);
                }
            }
            _ => {
                let hint = did_you_mean(key, &["inputs", "component", "include", "description"]);
                report.unknown_keyword(entry.key_at, format!("unknown keyword `spec:{key}`{hint}"));
            }
        }
    }
    spec
}

fn read_component(node: &Node, out: &mut Vec<Arc<str>>, report: &mut ProblemReport) {
    let known = |name: &&Arc<str>| ["name", "sha", "version", "reference"].contains(&&***name);
    let names: Option<Vec<Arc<str>>> =
        node.list().and_then(|items| items.iter().map(|item| item.text().filter(known).cloned()).collect());
    match names {
        Some(names) => *out = names,
        None => {
            report.error(Class::InputSpec, node.at, "`spec:component` takes a list of name, sha, version, reference");
        }
    }
}

/// Reads input declarations. All inputs of a file have different names.
pub fn read_inputs(node: &Node, inputs: &mut Index<Arc<str>, DeclaredInput>, report: &mut ProblemReport) {
    if node.is_null() {
        return;
    }
    let Some(mapping) = node.mapping() else {
        report.error(Class::InputSpec, node.at, format!("`spec:inputs` takes a mapping, not {}", node.kind()));
        return;
    };
    for (name, entry) in mapping.iter() {
        if inputs.contains_key(name) {
            let message = format!("input `{name}` is declared more than once");
            report.error(Class::InputSpec, entry.key_at, message);
        } else if let Some(input) = read_input(name, &entry.node, entry.key_at, report) {
            inputs.insert(Arc::clone(name), input);
        }
    }
}

/// A declaration of an input. `None`: there is a problem, which is already reported.
fn read_input(name: &str, node: &Node, at: Origin, report: &mut ProblemReport) -> Option<DeclaredInput> {
    let mut input =
        DeclaredInput { kind: InputType::Text, default: None, options: None, regex: None, rules: vec![], at };
    if node.is_null() {
        return Some(input);
    }
    let Some(mapping) = node.mapping() else {
        report.error(Class::InputSpec, node.at, format!("input `{name}` takes a mapping, not {}", node.kind()));
        return None;
    };
    for (key, entry) in mapping.iter() {
        read_keyword(name, key, entry, &mut input, report)?;
    }
    if let Some(conflict) = input.conflict() {
        report.error(Class::InputSpec, at, format!("input `{name}`: {conflict}"));
        return None;
    }
    if let Some(default) = input.default.take() {
        match input.checked(name, default, input.options.as_deref()) {
            Ok(default) => input.default = Some(default),
            Err((class, why)) => {
                report.error(class, at, format!("the default of {why}"));
                return None;
            }
        }
    }
    Some(input)
}

/// Reads a keyword of a declaration.
fn read_keyword(
    name: &str,
    key: &str,
    entry: &MappingEntry,
    input: &mut DeclaredInput,
    report: &mut ProblemReport,
) -> Option<()> {
    let node = &entry.node;
    match key {
        // With `default: null`, the input is optional, and empty without a value.
        "default" => input.default = Some(node.clone()),
        "type" => input.kind = read_type(name, node, report)?,
        _ if node.is_null() => {}
        "description" if node.printed().is_some() => {}
        "description" => {
            let message = format!("input `{name}`: `description` takes text, not {}", node.kind());
            report.error(Class::InputSpec, node.at, message);
            return None;
        }
        "options" => input.options = Some(read_options(name, node, report)?),
        "regex" => input.regex = Some(read_regex(name, node, report)?),
        "rules" => input.rules = read_rules(name, node, report)?,
        _ => {
            let hint = did_you_mean(key, &INPUT_KEYS);
            report.unknown_keyword(entry.key_at, format!("input `{name}`: unknown keyword `{key}`{hint}"));
        }
    }
    Some(())
}

fn read_type(name: &str, node: &Node, report: &mut ProblemReport) -> Option<InputType> {
    let types = [InputType::Text, InputType::Number, InputType::Boolean, InputType::Array];
    let kind = types.into_iter().find(|kind| node.text().is_some_and(|text| **text == *kind.word()));
    if kind.is_none() {
        let message = format!("input `{name}`: `type` must be one of string, number, boolean, array");
        report.error(Class::InputSpec, node.at, message);
    }
    kind
}

impl DeclaredInput {
    /// Why the combination of keywords is not allowed.
    fn conflict(&self) -> Option<&'static str> {
        if self.regex.is_some() && self.kind != InputType::Text {
            Some("`regex` is allowed for type string only")
        } else if self.options.is_some() && !matches!(self.kind, InputType::Text | InputType::Number) {
            Some("`options` is allowed for types string and number only")
        } else if !self.rules.is_empty() && self.options.is_some() {
            Some("`rules` and `options` exclude each other")
        } else if !self.rules.is_empty() && self.default.is_some() {
            Some("`rules` and `default` exclude each other; write a last rule without `if`")
        } else {
            None
        }
    }
}

fn read_options(name: &str, node: &Node, report: &mut ProblemReport) -> Option<Vec<Node>> {
    let options: Option<Vec<Node>> = node.list().map(<[Node]>::to_vec);
    let valid = options
        .filter(|options| (1..=MAX_OPTIONS).contains(&options.len()) && options.iter().all(|option| !option.is_null()));
    if valid.is_none() {
        let message = format!("input `{name}`: `options` takes a list of 1 to {MAX_OPTIONS} values");
        report.error(Class::InputSpec, node.at, message);
    }
    valid
}

fn read_regex(name: &str, node: &Node, report: &mut ProblemReport) -> Option<(Arc<str>, RegexPattern)> {
    let Some(text) = node.text() else {
        report.error(Class::InputSpec, node.at, format!("input `{name}`: `regex` takes text, not {}", node.kind()));
        return None;
    };
    match RegexPattern::compile(text, "") {
        Ok(pattern) => Some((Arc::clone(text), pattern)),
        Err(why) => {
            report.error(Class::InputSpec, node.at, format!("input `{name}`: the regex {text} cannot be used: {why}"));
            None
        }
    }
}

fn read_rules(name: &str, node: &Node, report: &mut ProblemReport) -> Option<Vec<InputRule>> {
    let Some(items) = node.list() else {
        report.error(Class::InputSpec, node.at, format!("input `{name}`: `rules` takes a list, not {}", node.kind()));
        return None;
    };
    items.iter().map(|item| read_rule(name, item, report)).collect()
}

fn read_rule(name: &str, item: &Node, report: &mut ProblemReport) -> Option<InputRule> {
    let Some(mapping) = item.mapping().filter(|mapping| !mapping.is_empty()) else {
        let message =
            format!("input `{name}`: `rules` takes mappings with `options` and `default`, not {}", item.kind());
        report.error(Class::InputSpec, item.at, message);
        return None;
    };
    for (key, entry) in mapping.iter().filter(|(key, _)| !RULE_KEYS.contains(&&***key)) {
        let message = format!("input `{name}`: unknown keyword `rules:{key}`{}", did_you_mean(key, &RULE_KEYS));
        report.unknown_keyword(entry.key_at, message);
    }
    let condition = match item.get("if") {
        Some(node) => Some(read_condition(name, node, report)?),
        None => None,
    };
    let options = match item.get("options") {
        Some(node) => Some(read_options(name, node, report)?),
        None => None,
    };
    let default = mapping.get("default").map(|entry| entry.node.clone());
    let problem = match (&options, &default) {
        (_, None) => Some("must contain `default`".to_owned()),
        (Some(options), Some(default)) if !options.contains(default) => {
            Some(format!("has the default {}, which is not one of its options", default.to_json()))
        }
        _ => None,
    };
    if let Some(problem) = problem {
        report.error(Class::InputSpec, item.at, format!("input `{name}`: an entry of `rules` {problem}"));
        return None;
    }
    Some(InputRule { condition, options, default, at: item.at })
}

fn read_condition(name: &str, node: &Node, report: &mut ProblemReport) -> Option<InputCondition> {
    let text = node.text().cloned().unwrap_or_default();
    let mut inputs = Vec::new();
    match Expression::parse(&name_blocks(&text, &mut inputs).into()) {
        Ok(expression) => Some(InputCondition { expression, inputs }),
        Err(why) => {
            report.error(Class::IfSyntax, node.at, format!("input `{name}`: `if` cannot be read: {why}"));
            None
        }
    }
}

/// Replaces `$[[ inputs.a ]]` by `$I0`, with `a` as the first of `names`.
fn name_blocks(text: &str, names: &mut Vec<Arc<str>>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("$[[") {
        out.push_str(before);
        let Some((block, after)) = after.split_once("]]") else {
            rest = after;
            break;
        };
        out.push_str(&format!("$I{}", names.len()));
        names.push(block.trim().trim_start_matches("inputs.").into());
        rest = after;
    }
    out + rest
}

/// Checks that the rules of inputs name declared inputs and do not form a cycle.
pub fn check_rules(inputs: &Index<Arc<str>, DeclaredInput>, report: &mut ProblemReport) {
    let named = |input: &DeclaredInput| -> Vec<(Arc<str>, Origin)> {
        let names = |rule: &InputRule| {
            let names = rule.condition.as_ref().map(|condition| condition.inputs.clone()).unwrap_or_default();
            let at = rule.at;
            names.into_iter().map(move |name| (name, at))
        };
        input.rules.iter().flat_map(names).collect()
    };
    for (name, input) in inputs {
        for (other, at) in named(input).iter().filter(|(other, _)| !inputs.contains_key(other)) {
            let hint = did_you_mean(other, &inputs.keys().map(|name| &**name).collect::<Vec<_>>());
            let message = format!("input `{name}`: `rules` names the input `{other}`, which is not declared{hint}");
            report.error(Class::InputSpec, *at, message);
        }
    }
    // Repeatedly removes the inputs that do not depend on remaining ones. Inputs that still remain form cycles.
    let mut rest: Vec<&Arc<str>> = inputs.keys().collect();
    loop {
        let waits = |name: &&Arc<str>| named(&inputs[*name]).iter().any(|(other, _)| rest.contains(&other));
        let waiting: Vec<&Arc<str>> = rest.iter().copied().filter(waits).collect();
        if waiting.len() == rest.len() {
            break;
        }
        rest = waiting;
    }
    if let Some(first) = rest.first() {
        let names: Vec<&str> = rest.iter().map(|name| &***name).collect();
        let message = format!("the rules of these inputs form a cycle: {}", names.join(", "));
        report.error(Class::InputSpec, inputs[*first].at, message);
    }
}
