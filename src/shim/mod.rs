//! The small process that holds one running step and its log, and outlives the agent.

pub mod spec;
