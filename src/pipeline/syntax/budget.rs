//! Limits the size of a pipeline's files after aliases are expanded and inputs are inserted.

/// The number of values that all files of a pipeline together may have.
const MAX_NODES: usize = 1_000_000;

/// The size of the text that all files of a pipeline together may have, in bytes.
const MAX_BYTES: usize = 32 << 20;

/// The remaining size limit for all files of a pipeline together. Aliases and the values of inputs count as often as
/// they are used, although their memory is shared.
#[derive(Clone, Debug)]
pub struct Budget {
    nodes: usize,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { nodes: MAX_NODES, bytes: MAX_BYTES }
    }
}

impl Budget {
    /// Subtracts a size. The error names the limit.
    pub fn spend(&mut self, size: Size) -> Result<(), String> {
        self.nodes = self
            .nodes
            .checked_sub(size.nodes)
            .ok_or_else(|| format!("more than {MAX_NODES} values after aliases and inputs are expanded"))?;
        self.bytes = self.bytes.checked_sub(size.bytes).ok_or_else(|| {
            format!("more than {} MiB of text after aliases and inputs are expanded", MAX_BYTES >> 20)
        })?;
        Ok(())
    }
}

/// The size of a tree without sharing.
#[derive(Clone, Copy, Default)]
pub struct Size {
    pub nodes: usize,
    pub bytes: usize,
}

impl Size {
    /// Adds a size; saturating.
    pub fn add(&mut self, other: Self) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}
