//! Reads the keyword `inherit`: the keywords of `default` and the top-level variables that a job inherits.

use std::sync::Arc;

use super::DEFAULT_KEYS;
use super::reader::KeywordReader;
use crate::pipeline::problem::Class;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::Node;

/// Keyword `inherit`: the inherited entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherit {
    All,
    Nothing,
    Only(Vec<Arc<str>>),
}

impl Inherit {
    pub fn takes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Only(names) => names.iter().any(|taken| &**taken == name),
        }
    }
}

impl KeywordReader<'_, '_> {
    /// The inherited keywords, and the inherited variables.
    pub fn inherit(&mut self, node: Option<&Node>) -> Option<(Inherit, Inherit)> {
        let Some(node) = node else { return Some((Inherit::All, Inherit::All)) };
        self.check_mapping(node, "inherit", &["default", "variables"])?;
        let mut part = |key: &str| match node.get(key) {
            None => Some(Inherit::All),
            Some(value) => match value.boolean() {
                Some(true) => Some(Inherit::All),
                Some(false) => Some(Inherit::Nothing),
                None => self.flat_texts(value, &format!("inherit:{key}")).map(Inherit::Only),
            },
        };
        let (default, variables) = (part("default")?, part("variables")?);
        if let Inherit::Only(names) = &default
            && let Some(name) = names.iter().find(|name| !DEFAULT_KEYS.contains(&&***name))
        {
            let message = format!("`inherit:default` names `{name}`{}", did_you_mean(name, &DEFAULT_KEYS));
            return self.error(Class::BadValue, node.at, message);
        }
        Some((default, variables))
    }
}
