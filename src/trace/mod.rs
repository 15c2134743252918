//! The job's log: masked, stamped, cut into sections, kept in a spool file on disk, and uploaded from there.
//!
//! Two processes append to one spool: the agent (its own lines) and the shim (a step's output). What stands in the
//! spool is exactly what the server gets: size and checksum are those of the file. This layer never runs anything.

mod base64;
mod checksum;
mod filter;
mod ledger;
mod lines;
mod mask;
mod patterns;
mod quoted;
mod spool;
mod stamp;
mod upload;

use serde::{Deserialize, Serialize};

pub use filter::Filter;
pub use lines::Trace;
pub use patterns::Masks;
pub use spool::{Claim, Spool};
pub use stamp::Output;
pub use upload::{Delivery, UploadOptions, Uploader};

/// How output becomes log: the same for the agent's own lines and for a step's output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterSpec {
    /// Values to replace by `[MASKED]`, as they stand (not yet split into lines).
    pub masks: Vec<String>,
    /// Token prefixes from the server, beside the built-in ones.
    pub token_prefixes: Vec<String>,
    /// Stamp each line with time and stream (`FF_TIMESTAMPS`).
    pub timestamps: bool,
    /// Size of the log, in bytes, after which output is dropped.
    pub limit: u64,
}

impl FilterSpec {
    /// The patterns to search for.
    pub fn patterns(&self) -> Masks {
        Masks::new(&self.masks, &self.token_prefixes)
    }
}
