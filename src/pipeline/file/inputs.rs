//! `spec:inputs`: the inputs that a file declares, and their values.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::pipeline::hash::Index;
use crate::pipeline::pattern::RegexPattern;
use crate::pipeline::problem::{Class, ProblemReport};
use crate::pipeline::request::{GivenVariable, InputValue};
use crate::pipeline::rules::expression::Expression;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{self, Budget, Node, Origin};
use crate::pipeline::variables::PipelineVariables;
use crate::pipeline::view::View;

const OPTIONS_LIMIT: usize = 50;

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
    kind: InputType,
    default: Option<Value>,
    options: Option<Vec<Value>>,
    regex: Option<(Arc<str>, RegexPattern)>,
    rules: Vec<Rule>,
    at: Origin,
}

#[derive(Debug)]
struct Rule {
    condition: Option<(Expression, Vec<Arc<str>>)>,
    options: Option<Vec<Value>>,
    default: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputType {
    Text,
    Number,
    Boolean,
    Array,
}

impl InputType {
    fn word(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Array => "array",
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::Array => value.is_array(),
        }
    }

    /// Converts text from the command line to this type.
    fn parse(self, text: &str) -> Option<Value> {
        if self == Self::Text {
            return Some(text.into());
        }
        let parsed = syntax::parse(text, 0, &|line| line, &mut Budget::default()).ok()?.root.to_json();
        self.fits(&parsed).then_some(parsed)
    }
}

/// A value for an input, from the including file or the command line.
#[derive(Clone, Debug)]
pub struct Given {
    pub key: Arc<str>,
    pub value: InputValue,
    /// Where the value is written; line 0 for the command line.
    pub at: Origin,
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
    for (key, entry) in mapping.iter() {
        match &**key {
            "inputs" => read_inputs(&entry.node, &mut spec.inputs, report),
            "component" => read_component(&entry.node, &mut spec.component, report),
            "include" => spec.include = Some(entry.node.clone()),
            _ => {
                let hint = did_you_mean(key, &["inputs", "component", "include"]);
                report.unknown(entry.key_at, format!("unknown keyword `spec:{key}`{hint}"));
            }
        }
    }
    spec
}

fn read_component(node: &Node, out: &mut Vec<Arc<str>>, report: &mut ProblemReport) {
    for item in node.list().unwrap_or_default() {
        match item.text() {
            Some(name) if ["name", "sha", "version", "reference"].contains(&&**name) => out.push(Arc::clone(name)),
            _ => {
                let message = "`spec:component` must be a list of name, sha, version, reference";
                report.error(Class::InputSpec, item.at, message);
            }
        }
    }
}

/// Reads input declarations. An input that is already in `inputs` is kept.
pub fn read_inputs(node: &Node, inputs: &mut Index<Arc<str>, DeclaredInput>, report: &mut ProblemReport) {
    if node.is_null() {
        return;
    }
    let Some(mapping) = node.mapping() else {
        report.error(Class::InputSpec, node.at, format!("`spec:inputs` takes a mapping, not {}", node.kind()));
        return;
    };
    for (name, entry) in mapping.iter() {
        if !inputs.contains_key(name)
            && let Some(input) = read_input(name, &entry.node, entry.key_at, report)
        {
            inputs.insert(Arc::clone(name), input);
        }
    }
}

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
        let node = &entry.node;
        match &**key {
            // With `default: null`, the input is optional, and empty without a value.
            "default" => input.default = Some(node.to_json()),
            _ if node.is_null() => {}
            "description" => {}
            "type" => match node.text().map(|text| &**text) {
                Some("string") => input.kind = InputType::Text,
                Some("number") => input.kind = InputType::Number,
                Some("boolean") => input.kind = InputType::Boolean,
                Some("array") => input.kind = InputType::Array,
                _ => {
                    let message = format!("input `{name}`: `type` must be one of string, number, boolean, array");
                    report.error(Class::InputSpec, node.at, message);
                    return None;
                }
            },
            "options" => input.options = Some(read_options(name, node, report)?),
            "regex" => input.regex = Some(read_regex(name, node, report)?),
            "rules" => input.rules = read_rules(name, node, report)?,
            _ => {
                let known = ["type", "default", "options", "regex", "description", "rules"];
                let hint = did_you_mean(key, &known);
                report.unknown(entry.key_at, format!("input `{name}`: unknown keyword `{key}`{hint}"));
            }
        }
    }
    if input.regex.is_some() && input.kind != InputType::Text {
        report.error(Class::InputSpec, at, format!("input `{name}`: `regex` is allowed for type string only"));
    }
    if let Some(default) = input.default.as_ref().filter(|default| !default.is_null())
        && let Err((class, why)) = input.check(name, default, input.options.as_deref())
    {
        report.error(class, at, format!("the default of {why}"));
        return None;
    }
    Some(input)
}

fn read_options(name: &str, node: &Node, report: &mut ProblemReport) -> Option<Vec<Value>> {
    let options: Option<Vec<Value>> = node.list().map(|items| items.iter().map(Node::to_json).collect());
    let valid = options.filter(|options| (1..=OPTIONS_LIMIT).contains(&options.len()));
    if valid.is_none() {
        let message = format!("input `{name}`: `options` takes a list of 1 to {OPTIONS_LIMIT} values");
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

fn read_rules(name: &str, node: &Node, report: &mut ProblemReport) -> Option<Vec<Rule>> {
    let Some(items) = node.list() else {
        report.error(Class::InputSpec, node.at, format!("input `{name}`: `rules` takes a list, not {}", node.kind()));
        return None;
    };
    let mut rules = Vec::new();
    for item in items {
        let condition = match item.get("if") {
            None => None,
            Some(node) => {
                let text = node.text().cloned().unwrap_or_default();
                let mut names = Vec::new();
                let text = name_blocks(&text, &mut names);
                match Expression::parse(&text.into()) {
                    Ok(expression) => Some((expression, names)),
                    Err(why) => {
                        let message = format!("input `{name}`: `if` cannot be read: {why}");
                        report.error(Class::IfSyntax, node.at, message);
                        return None;
                    }
                }
            }
        };
        let options = match item.get("options") {
            Some(node) => Some(read_options(name, node, report)?),
            None => None,
        };
        rules.push(Rule { condition, options, default: item.get("default").map(Node::to_json) });
    }
    Some(rules)
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

impl DeclaredInput {
    /// Checks that a value is allowed. The error names the input and the value.
    fn check(&self, name: &str, value: &Value, options: Option<&[Value]>) -> Result<(), (Class, String)> {
        if !self.kind.fits(value) {
            let message = format!("input `{name}` is {value}, which is not of type {}", self.kind.word());
            return Err((Class::InputType, message));
        }
        if let Some(options) = options.filter(|options| !options.contains(value)) {
            let list: Vec<String> = options.iter().map(ToString::to_string).collect();
            let message = format!("input `{name}` is {value}, which is not one of its options: {}", list.join(", "));
            return Err((Class::InputOption, message));
        }
        if let (Some((text, pattern)), Value::String(value)) = (&self.regex, value)
            && !pattern.is_match(value)
        {
            let message = format!("input `{name}` is \"{value}\", which does not match its regex {text}");
            return Err((Class::InputRegex, message));
        }
        Ok(())
    }
}

/// Computes the values of all inputs of a file. `at` is where the file is included. `None`: there is a problem, which
/// is already reported.
pub fn resolve(
    spec: &Spec,
    file: &str,
    given: &[Given],
    at: Origin,
    report: &mut ProblemReport,
) -> Option<HashMap<Arc<str>, Value>> {
    let before = report.problems.len();
    for given in given.iter().filter(|given| !spec.inputs.contains_key(&given.key)) {
        let names: Vec<&str> = spec.inputs.keys().map(|name| &**name).collect();
        let message = format!("input `{}` is not declared by {file}{}", given.key, did_you_mean(&given.key, &names));
        // A value from the command line has no line; the header is where the input is missing.
        report.error(Class::InputUnknown, if given.at.line > 0 { given.at } else { spec.at }, message);
    }
    let mut values: HashMap<Arc<str>, Value> = HashMap::new();
    let (plain, ruled): (Vec<_>, Vec<_>) = spec.inputs.iter().partition(|(_, input)| input.rules.is_empty());
    for (name, input) in plain.into_iter().chain(ruled) {
        let rule = input.rules.iter().find(|rule| rule.holds(&values));
        let default = rule.and_then(|rule| rule.default.as_ref()).or(input.default.as_ref());
        let options = rule.and_then(|rule| rule.options.as_deref()).or(input.options.as_deref());
        let is_value = |given: &Given| !matches!(&given.value, InputValue::Typed(Value::Null));
        let given = given.iter().find(|given| given.key == *name && is_value(given));
        let value = match given.map(|given| &given.value) {
            Some(InputValue::Typed(value)) => value.clone(),
            Some(InputValue::Text(text)) => input.kind.parse(text).unwrap_or_else(|| text.as_str().into()),
            None => match default {
                Some(Value::Null) => {
                    values.insert(Arc::clone(name), Value::String(String::new()));
                    continue;
                }
                Some(default) => default.clone(),
                None => {
                    let message = format!("input `{name}` of {file} has no default, and no value is given");
                    report.error(Class::InputMissing, if at.line > 0 { at } else { input.at }, message);
                    continue;
                }
            },
        };
        match input.check(name, &value, options) {
            Ok(()) => {
                values.insert(Arc::clone(name), value);
            }
            Err((class, why)) => {
                let at = given.map_or(at, |given| given.at);
                report.error(class, if at.line > 0 { at } else { input.at }, why);
            }
        }
    }
    (report.problems.len() == before).then_some(values)
}

impl Rule {
    fn holds(&self, values: &HashMap<Arc<str>, Value>) -> bool {
        let Some((expression, names)) = &self.condition else { return true };
        let variables = names.iter().enumerate().filter_map(|(number, name)| {
            let value = values.get(name)?;
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Some(GivenVariable { key: format!("I{number}"), value, ..Default::default() })
        });
        let scope = PipelineVariables::new(Index::default(), vec![], variables.collect());
        expression.holds(&View { scope: &scope, yaml: &[], defaults: &[], job: &[], environment: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(spec: &str, given: &[(&str, InputValue)]) -> Result<Value, Vec<Class>> {
        let node = syntax::parse(spec, 0, &|line| line, &mut Budget::default()).expect("must be YAML").root;
        let mut report = ProblemReport::default();
        let mut inputs = Index::default();
        read_inputs(&node, &mut inputs, &mut report);
        let spec = Spec { inputs, ..Default::default() };
        let given: Vec<Given> = given
            .iter()
            .map(|(key, value)| Given { key: (*key).into(), value: value.clone(), at: Origin::default() })
            .collect();
        let values = resolve(&spec, "x.yml", &given, Origin::default(), &mut report);
        let classes = report.problems.iter().map(|problem| problem.class).collect::<Vec<_>>();
        if !classes.is_empty() {
            return Err(classes);
        }
        let values = values.expect("no problems");
        Ok(values.into_iter().map(|(key, value)| (key.to_string(), value)).collect::<serde_json::Map<_, _>>().into())
    }

    fn typed(value: Value) -> InputValue {
        InputValue::Typed(value)
    }

    #[test]
    fn checks_values_and_defaults_against_the_declaration() {
        let spec = "a: {type: number, default: 1}\nb: {options: [x, y]}\nc: {regex: '^v', default: v1}\nd: {type: array, default: []}\n";
        let given = [("b", typed("x".into())), ("a", InputValue::Text("7".into()))];
        let expected = serde_json::json!({"a": 7, "b": "x", "c": "v1", "d": []});
        assert_eq!(resolved(spec, &given), Ok(expected));
        for (given, class) in [
            (vec![], Class::InputMissing),
            (vec![("b", typed("z".into()))], Class::InputOption),
            (vec![("b", typed("x".into())), ("c", typed("1".into()))], Class::InputRegex),
            (vec![("b", typed("x".into())), ("a", typed("3".into()))], Class::InputType),
            (vec![("b", typed("x".into())), ("a", InputValue::Text("many".into()))], Class::InputType),
            (vec![("b", typed("x".into())), ("e", typed(1.into()))], Class::InputUnknown),
        ] {
            assert_eq!(resolved(spec, &given), Err(vec![class]));
        }
    }

    #[test]
    fn a_null_as_default_makes_an_input_optional_and_empty() {
        let spec = "a: {default: null}\nb: {type: array, default: }\nc: {default: x}\n";
        let expected = serde_json::json!({"a": "", "b": "", "c": "x"});
        assert_eq!(resolved(spec, &[("c", typed(Value::Null))]), Ok(expected));
        assert_eq!(resolved("a:\n", &[("a", typed(Value::Null))]), Err(vec![Class::InputMissing]));
    }

    #[test]
    fn refuses_bad_declarations() {
        for (spec, class) in [
            ("a: {type: text}", Class::InputSpec),
            ("a: {default: 1}", Class::InputType),
            ("a: {options: [x], default: y}", Class::InputOption),
            ("a: {regex: '('}", Class::InputSpec),
            ("a: {optoins: [x], default: x}", Class::UnknownKeyword),
        ] {
            assert_eq!(resolved(spec, &[]), Err(vec![class]), "{spec}");
        }
    }

    #[test]
    fn rules_give_options_and_defaults_that_depend_on_other_inputs() {
        let spec = "size:\n  rules:\n  - if: $[[ inputs.cloud ]] == 'aws'\n    options: [t3, t4]\n    default: t3\n  - {options: [e2], default: e2}\ncloud: {default: aws}\n";
        assert_eq!(resolved(spec, &[]), Ok(serde_json::json!({"size": "t3", "cloud": "aws"})));
        let other = [("cloud", typed("gcp".into()))];
        assert_eq!(resolved(spec, &other), Ok(serde_json::json!({"size": "e2", "cloud": "gcp"})));
        let wrong = [("cloud", typed("gcp".into())), ("size", typed("t3".into()))];
        assert_eq!(resolved(spec, &wrong), Err(vec![Class::InputOption]));
    }
}
