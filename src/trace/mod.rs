//! The job's log: masked, time-stamped, divided into sections, kept in a spool file on disk, and uploaded from there.
//!
//! Two processes append to one spool: the agent (its own lines) and the shim (the output of a step). The spool contains
//! exactly the bytes that GitLab gets: size and checksum are those of the file. This layer never runs a process.

mod base64;
mod checksum;
pub mod colours;
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
pub use lines::{ResultLine, SectionMarkers, Trace};
pub use patterns::Masks;
pub use spool::{Spool, TextKind};
pub use stamp::{Output, Stamper};
pub use upload::{Delivery, UploadOptions, Uploader};

/// How output is turned into log text: the same for the agent's own lines and for the output of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterSpec {
    /// The values to replace by `[MASKED]`, not yet split into lines.
    pub masks: Vec<String>,
    /// Token prefixes from GitLab, in addition to the built-in ones.
    pub token_prefixes: Vec<String>,
    /// Begin each line with time and stream (`FF_TIMESTAMPS`).
    pub timestamps: bool,
    /// The size of the log, in bytes, after which output is dropped.
    pub limit: u64,
}

impl FilterSpec {
    /// Compiles the patterns.
    pub fn patterns(&self) -> Masks {
        Masks::new(&self.masks, &self.token_prefixes)
    }
}
