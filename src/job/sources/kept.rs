//! Names of the agent's own files and directories below `.git`, which it keeps for the next job.

use crate::digest::is_hex;

/// The file with the record of the checkout ([`super::record`]).
pub const CHECKOUT_RECORD: &str = "mayfly-checkout";

/// The directory with the work trees of submodules ([`super::submodule_trees`]). Their names are the hashes of their
/// paths.
pub const SUBMODULE_TREES: &str = "mayfly-submodules";

/// Whether the agent uses names like this in [`SUBMODULE_TREES`].
pub fn is_submodule_tree(name: &str) -> bool {
    is_hex(name, &[64])
}
