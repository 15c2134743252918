//! Measures a tree as if its shared parts were copied.

use std::collections::HashMap;
use std::sync::Arc;

use super::budget::Size;
use super::{Node, YamlValue};

/// How large and how deep a tree is.
#[derive(Clone, Copy, Default)]
pub struct TreeExtent {
    /// The size without sharing; saturating.
    pub size: Size,
    /// The number of levels below the root.
    pub depth: usize,
}

/// Measures a tree. The cost is linear in the memory of the tree.
pub fn extent(node: &Node) -> TreeExtent {
    measure(node, &mut HashMap::new())
}

/// An estimate of the length of a tree as text.
pub fn written_size(node: &Node) -> usize {
    // The average length of quotes, separators and indentation of a value.
    const OVERHEAD: usize = 8;
    let size = extent(node).size;
    size.nodes.saturating_mul(OVERHEAD).saturating_add(size.bytes)
}

fn measure(node: &Node, measured: &mut HashMap<usize, TreeExtent>) -> TreeExtent {
    let mut extent = TreeExtent { size: Size { nodes: 1, bytes: 0 }, depth: 0 };
    let (key, children) = match &node.value {
        YamlValue::Text(text) => {
            extent.size.bytes = text.len();
            return extent;
        }
        YamlValue::List(items) | YamlValue::Reference(items) => (Arc::as_ptr(items).addr(), items.len()),
        YamlValue::Mapping(mapping) => (Arc::as_ptr(mapping).addr(), mapping.len()),
        YamlValue::Null | YamlValue::Bool(_) | YamlValue::Integer(_) | YamlValue::Float(_) => return extent,
    };
    if children == 0 {
        return extent;
    }
    if let Some(extent) = measured.get(&key) {
        return *extent;
    }
    let mut add = |child: &Node| {
        let child = measure(child, measured);
        extent.size.add(child.size);
        extent.depth = extent.depth.max(child.depth + 1);
    };
    match &node.value {
        YamlValue::Mapping(mapping) => mapping.values().for_each(|entry| add(&entry.node)),
        _ => node.list_or_path().iter().for_each(&mut add),
    }
    for key in node.mapping().into_iter().flat_map(|mapping| mapping.keys()) {
        extent.size.add(Size { nodes: 1, bytes: key.len() });
    }
    measured.insert(key, extent);
    extent
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
        let mut node = Node { value: YamlValue::Text("x".into()), at: Origin::default() };
        for _ in 0..80 {
            node = Node::list_at(vec![node; 10], Origin::default());
        }
        assert_eq!(written_size(&node), usize::MAX);
    }
}
