//! zip, gzip and tar+zstd: packing and unpacking that cannot leave the project directory.
//!
//! Everything here works on ground that a job may have prepared: names are resolved beneath an open directory and
//! never through a symbolic link out of it, only regular files are opened, and what changes or vanishes on the way is
//! a warning. Nothing here knows of jobs, GitLab or the network.

pub mod glob;
pub mod root;
pub mod select;
