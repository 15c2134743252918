//! The values of the inputs of a file.

use std::collections::HashMap;
use std::sync::Arc;

use super::declaration::{DeclaredInput, InputRule, InputType, Spec};
use super::fill::as_text;
use crate::pipeline::hash::Index;
use crate::pipeline::problem::{Class, ProblemReport};
use crate::pipeline::request::{GivenVariable, InputValue};
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{self, Budget, Node, Origin};
use crate::pipeline::variable_view::VariableView;
use crate::pipeline::variables::SharedVariables;

/// A value for an input, from the including file or the command line.
#[derive(Clone, Debug)]
pub struct InputArgument {
    pub key: Arc<str>,
    pub value: InputValue,
    /// Where the value is written; line 0 for the command line.
    pub at: Origin,
}

impl DeclaredInput {
    /// The value in the declared type, if it is allowed. The error names the input and the value.
    ///
    /// As on GitLab, an input of type string takes any value, as text.
    pub fn checked(&self, name: &str, value: Node, options: Option<&[Node]>) -> Result<Node, (Class, String)> {
        let is_text = self.kind == InputType::Text;
        if value.is_null() && !is_text {
            return Ok(value);
        }
        let value = if is_text { Node::text_at(as_text(&value), value.at) } else { value };
        if !self.kind.fits(&value) {
            let message = format!("input `{name}` is {}, which is not of type {}", value.to_json(), self.kind.word());
            return Err((Class::InputType, message));
        }
        let is_option =
            |option: &Node| *option == value || is_text && value.text().is_some_and(|text| **text == *as_text(option));
        if let Some(options) = options.filter(|options| !options.iter().any(is_option)) {
            let list: Vec<String> = options.iter().map(|option| option.to_json().to_string()).collect();
            let value = value.to_json();
            let message = format!("input `{name}` is {value}, which is not one of its options: {}", list.join(", "));
            return Err((Class::InputOption, message));
        }
        if let (Some((regex, pattern)), Some(text)) = (&self.regex, value.text())
            && !pattern.is_match(text)
        {
            let message = format!("input `{name}` is \"{text}\", which does not match its regex {regex}");
            return Err((Class::InputRegex, message));
        }
        Ok(value)
    }

    /// A value from the command line, where text is YAML for all types but string.
    fn parsed(&self, text: &str) -> Node {
        let parsed = syntax::parse(text, 0, &|_| 0, &mut Budget::default()).ok();
        let fitting =
            parsed.map(|document| document.root).filter(|value| self.kind != InputType::Text && self.kind.fits(value));
        fitting.unwrap_or_else(|| Node::text_at(text, Origin::default()))
    }
}

/// Computes the values of all inputs of a file. `at` is where the file is included. `None`: there is a problem, which
/// is already reported.
pub fn resolve(
    spec: &Spec,
    file: &str,
    arguments: &[InputArgument],
    at: Origin,
    report: &mut ProblemReport,
) -> Option<HashMap<Arc<str>, Node>> {
    let before = report.problems.len();
    refuse_unknown_inputs(spec, file, arguments, report);
    let mut values: HashMap<Arc<str>, Node> = HashMap::new();
    // Rules refer to the values of inputs without rules, so those come first.
    let (plain, ruled): (Vec<_>, Vec<_>) = spec.inputs.iter().partition(|(_, input)| input.rules.is_empty());
    for (name, input) in plain.into_iter().chain(ruled) {
        let is_value = |argument: &InputArgument| !matches!(&argument.value, InputValue::Typed(node) if node.is_null());
        let argument = arguments.iter().find(|argument| argument.key == *name && is_value(argument));
        match input.value(name, file, argument, &values) {
            Ok(value) => {
                values.insert(Arc::clone(name), value);
            }
            Err((class, message)) => {
                let at = argument.map_or(at, |argument| argument.at);
                report.error(class, if at.line > 0 { at } else { input.at }, message);
            }
        }
    }
    (report.problems.len() == before).then_some(values)
}

fn refuse_unknown_inputs(spec: &Spec, file: &str, arguments: &[InputArgument], report: &mut ProblemReport) {
    for argument in arguments.iter().filter(|argument| !spec.inputs.contains_key(&argument.key)) {
        let names: Vec<&str> = spec.inputs.keys().map(|name| &**name).collect();
        let hint = did_you_mean(&argument.key, &names);
        let message = format!("input `{}` is not declared by {file}{hint}", argument.key);
        // A value from the command line has no line; the input is missing in the header of the file.
        report.error(Class::InputUnknown, if argument.at.line > 0 { argument.at } else { spec.at }, message);
    }
}

impl DeclaredInput {
    /// The value of the input: the given one, else the default. `values` are those of the inputs before this one.
    fn value(
        &self,
        name: &str,
        file: &str,
        argument: Option<&InputArgument>,
        values: &HashMap<Arc<str>, Node>,
    ) -> Result<Node, (Class, String)> {
        let rule = self.rules.iter().find(|rule| rule.holds(values));
        let default = rule.and_then(|rule| rule.default.as_ref()).or(self.default.as_ref());
        let options = rule.and_then(|rule| rule.options.as_deref()).or(self.options.as_deref());
        let value = match argument.map(|argument| &argument.value) {
            Some(InputValue::Typed(value)) => value.clone(),
            Some(InputValue::Text(text)) => self.parsed(text),
            None => match default {
                Some(default) => default.clone(),
                None => {
                    let message = format!("input `{name}` of {file} has no default and gets no value; pass a value");
                    return Err((Class::InputMissing, message));
                }
            },
        };
        // `default: null` is allowed beside options and a regex.
        match value.is_null() {
            true if self.kind == InputType::Text => Ok(Node::text_at("", value.at)),
            true => Ok(value),
            false => self.checked(name, value, options),
        }
    }
}

impl InputRule {
    fn holds(&self, values: &HashMap<Arc<str>, Node>) -> bool {
        let Some(condition) = &self.condition else { return true };
        let variables = condition.inputs.iter().enumerate().filter_map(|(number, name)| {
            let value = values.get(name)?;
            let value = value.text().map_or_else(|| value.to_json().to_string(), |text| text.to_string());
            Some(GivenVariable { key: format!("I{number}"), value, ..Default::default() })
        });
        let shared = SharedVariables::new(Index::default(), vec![], variables.collect());
        condition.expression.holds(&VariableView::of_pipeline(&shared, &[]))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::declaration::{check_rules, read_inputs};
    use super::*;

    fn resolved(spec: &str, given: &[(&str, InputValue)]) -> Result<Value, Vec<Class>> {
        let node = syntax::parse(spec, 0, &|line| line, &mut Budget::default()).expect("must be YAML").root;
        let mut report = ProblemReport::default();
        let mut inputs = Index::default();
        read_inputs(&node, &mut inputs, &mut report);
        check_rules(&inputs, &mut report);
        if !report.problems.is_empty() {
            return Err(report.problems.iter().map(|problem| problem.class).collect());
        }
        let spec = Spec { inputs, ..Default::default() };
        let given: Vec<InputArgument> = given
            .iter()
            .map(|(key, value)| InputArgument { key: (*key).into(), value: value.clone(), at: Origin::default() })
            .collect();
        let values = resolve(&spec, "x.yml", &given, Origin::default(), &mut report);
        let classes = report.problems.iter().map(|problem| problem.class).collect::<Vec<_>>();
        if !classes.is_empty() {
            return Err(classes);
        }
        let values = values.expect("no problems");
        Ok(values
            .into_iter()
            .map(|(key, value)| (key.to_string(), value.to_json()))
            .collect::<serde_json::Map<_, _>>()
            .into())
    }

    fn typed(value: Value) -> InputValue {
        InputValue::Typed(value.into())
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
    fn a_string_takes_any_value_as_text() {
        let spec = "a:\nb: {options: [1, 2.50]}\nc: {default: 7}\n";
        let given = [("a", typed(serde_json::json!([1, {"k": true}]))), ("b", typed(serde_json::json!(2.5)))];
        let expected = serde_json::json!({"a": "[1, {\"k\": true}]", "b": "2.5", "c": "7"});
        assert_eq!(resolved(spec, &given), Ok(expected));
        let wrong = [("a", typed(true.into())), ("b", typed(3.into()))];
        assert_eq!(resolved(spec, &wrong), Err(vec![Class::InputOption]));
    }

    #[test]
    fn a_null_as_default_makes_an_input_optional_and_empty() {
        let spec = "a: {default: null}\nb: {type: array, default: }\nc: {default: x}\n";
        let expected = serde_json::json!({"a": "", "b": null, "c": "x"});
        assert_eq!(resolved(spec, &[("c", typed(Value::Null))]), Ok(expected));
        assert_eq!(resolved("a:\n", &[("a", typed(Value::Null))]), Err(vec![Class::InputMissing]));
    }

    #[test]
    fn refuses_bad_declarations() {
        for (spec, class) in [
            ("a: {type: text}", Class::InputSpec),
            ("a: {type: }", Class::InputSpec),
            ("a: {type: number, default: x}", Class::InputType),
            ("a: {type: boolean, options: [true]}", Class::InputSpec),
            ("a: {options: [x, null]}", Class::InputSpec),
            ("a: {description: [x]}", Class::InputSpec),
            ("a: {rules: [{options: [x]}]}", Class::InputSpec),
            ("a: {rules: [{options: [x], default: y}]}", Class::InputSpec),
            ("a: {rules: [{default: x}], default: x}", Class::InputSpec),
            ("a: {rules: [{default: x}], options: [x]}", Class::InputSpec),
            ("a: {rules: [x]}", Class::InputSpec),
            ("a: {rules: [{default: x, whne: y}]}", Class::UnknownKeyword),
            ("a: {rules: [{if: '$[[ inputs.b ]] == 1', default: x}]}", Class::IfSyntax),
            ("a: {rules: [{if: '$[[ inputs.b ]] == \"1\"', default: x}]}", Class::InputSpec),
            ("a: {rules: [{if: '$[[ inputs.a ]] == \"1\"', default: x}]}", Class::InputSpec),
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
