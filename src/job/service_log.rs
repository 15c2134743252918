//! The output of a job's services in its log (`CI_DEBUG_SERVICES`).
//!
//! It comes at any time, and what the agent itself says is known by the log's size: while the two are compared nothing
//! of it is written.

use std::sync::Arc;

use super::engine::Engine;
use crate::executor::docker::engine::containers::From;
use crate::executor::docker::services::log::Followers;
use crate::trace::Trace;

impl Engine<'_> {
    /// Follows the services beside the job's container, where that is asked for.
    pub(super) fn follow_services(&mut self, from: From) {
        let Some(container) = &self.record.progress.container else { return };
        if !self.prepared.debug_services || container.services.is_empty() {
            return;
        }
        match Trace::open(&self.directory.spool(), &self.prepared.filters, false) {
            Ok(trace) => {
                let say = Box::new(move |line: &str| trace.service(line));
                self.followers = Some(Arc::new(Followers::start(&container.engine, &container.services, from, say)));
            }
            Err(error) => log::warn!("the output of services is not shown job={} error={error}", self.payload.id),
        }
    }
}
