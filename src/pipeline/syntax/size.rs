//! Computes the size of a tree as if its shared parts were copied.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Node, Value};

/// The size of a tree without sharing; saturating. Its cost is linear in the memory of the tree.
pub fn written_size(node: &Node) -> usize {
    measure(node, &mut HashMap::new())
}

fn measure(node: &Node, known: &mut HashMap<usize, usize>) -> usize {
    // An estimate for each value itself and its separator.
    const OWN: usize = 8;
    let (key, children) = match &node.value {
        Value::Text(text) => return OWN + text.len(),
        Value::List(items) | Value::Reference(items) => (Arc::as_ptr(items).addr(), items.len()),
        Value::Mapping(mapping) => (Arc::as_ptr(mapping).addr(), mapping.len()),
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => return OWN,
    };
    if children == 0 {
        return OWN;
    }
    if let Some(size) = known.get(&key) {
        return *size;
    }
    let size = match &node.value {
        Value::Mapping(mapping) => mapping.iter().fold(OWN, |size, (key, entry)| {
            size.saturating_add(OWN + key.len()).saturating_add(measure(&entry.node, known))
        }),
        _ => node.list_or_path().iter().fold(OWN, |size, item| size.saturating_add(measure(item, known))),
    };
    known.insert(key, size);
    size
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, Origin, parse};
    use super::*;

    #[test]
    fn counts_shared_parts_each_time() {
        let size = |text: &str| {
            written_size(&parse(text, 0, &|line| line, &mut Budget::default()).expect("must be YAML").root)
        };
        assert_eq!(size("[x, x]"), 8 + 9 + 9);
        assert_eq!(size("[&a [x], *a]"), size("[[x], [x]]"));
        let mut node = Node { value: Value::Text("x".into()), at: Origin::default() };
        for _ in 0..80 {
            node = Node::list_at(vec![node; 10], Origin::default());
        }
        assert_eq!(written_size(&node), usize::MAX);
    }
}
