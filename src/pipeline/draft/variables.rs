//! Reads the keyword `variables`.

use std::collections::HashMap;
use std::sync::Arc;

use super::reader::KeywordReader;
use crate::pipeline::plan::{Variable, VariableLevel};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Node, YamlValue};

impl KeywordReader<'_, '_> {
    /// Reads the variables of one level. `keyword` is used in messages.
    pub fn variables(&mut self, node: &Node, level: VariableLevel, keyword: &str) -> Vec<Variable> {
        let Some(mapping) = node.mapping() else {
            self.bad_value::<()>(node, keyword, "a mapping of names and values");
            return Vec::new();
        };
        let mut variables = Vec::with_capacity(mapping.len());
        for (key, entry) in mapping.iter() {
            let node = &entry.node;
            let (value, raw) = match &node.value {
                YamlValue::Mapping(_) => match self.long_form(key, node, level, keyword) {
                    Some(value) => value,
                    None => continue,
                },
                _ => match node.printed() {
                    Some(value) => (value, false),
                    None => {
                        self.bad_value::<()>(
                            node,
                            &format!("{keyword}:{key}"),
                            "text, a number or a mapping with `value`",
                        );
                        continue;
                    }
                },
            };
            variables.push(Variable { key: Arc::clone(key), value, raw, at: node.at, level });
        }
        variables
    }

    fn long_form(
        &mut self,
        key: &Arc<str>,
        node: &Node,
        level: VariableLevel,
        keyword: &str,
    ) -> Option<(Arc<str>, bool)> {
        let keyword_path = format!("{keyword}:{key}");
        if matches!(level, VariableLevel::Rule | VariableLevel::Workflow) {
            return self.bad_value(
                node,
                &keyword_path,
                "text or a number; rules have no variables with `value` or `expand`",
            );
        }
        let top: &[&str] = &["value", "description", "options", "expand"];
        self.check_mapping(
            node,
            &keyword_path,
            if level == VariableLevel::Default { top } else { &["value", "expand"] },
        )?;
        let value = match node.get("value") {
            Some(value) => self.printed(value, &keyword_path)?,
            None => "".into(),
        };
        if let Some(options) = node.get("options") {
            let items = options.list().filter(|items| items.iter().all(|item| item.text().is_some()));
            let Some(items) = items else {
                return self.bad_value(options, &format!("{keyword_path}:options"), "a list of text");
            };
            if !items.is_empty() && !items.iter().any(|item| item.printed().as_ref() == Some(&value)) {
                let list: Vec<Arc<str>> = items.iter().filter_map(Node::printed).collect();
                let message =
                    format!("`{keyword_path}` is `{value}`, which is not one of its options: {}", list.join(", "));
                return self.error(Class::VariableOption, node.at, message);
            }
        }
        let raw = match node.get("expand") {
            Some(expand) => !self.boolean(expand, &format!("{keyword_path}:expand"))?,
            None => false,
        };
        Some((value, raw))
    }
}

/// Overrides variables with those of a higher level. Each name appears once, in the order of first appearance.
pub fn overlay(base: &mut Vec<Variable>, over: &[Variable]) {
    // Below this size, a linear search is faster than building an index.
    let index: Option<HashMap<Arc<str>, usize>> = (base.len() * over.len() > 1000)
        .then(|| base.iter().enumerate().map(|(at, variable)| (Arc::clone(&variable.key), at)).collect());
    for variable in over {
        let at = match &index {
            Some(index) => index.get(&variable.key).copied(),
            None => base.iter().position(|present| present.key == variable.key),
        };
        match at {
            Some(at) => base[at] = variable.clone(),
            None => base.push(variable.clone()),
        }
    }
}
