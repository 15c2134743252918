//! The real program against real things: a strict GitLab, git over HTTP, shells, processes, signals.

mod support;

mod artifacts;
mod aws;
mod caches;
mod commands;
mod containers;
mod crash;
mod credentials;
mod disk;
mod docker;
mod documents;
mod engines;
mod exec;
mod fitness;
mod fleet;
mod hostile;
mod images;
mod jobs;
mod journal;
mod leaving;
mod machines;
mod metrics;
mod packages;
mod processes;
mod protocol;
mod proxies;
mod s3;
mod services;
mod settings;
mod signals;
mod sources;
mod supervision;
mod templates;
mod tls;
