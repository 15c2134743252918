//! mayfly: a CI agent that lives on the instance it works on.

mod agent;
mod archive;
mod cli;
mod config;
mod coordinator;
mod decode;
mod executor;
mod failure;
mod http;
mod instance;
mod job;
mod journal;
mod monitor;
mod payload;
mod pipeline;
mod shim;
mod sys;
mod token;
mod trace;

fn main() -> std::process::ExitCode {
    cli::main()
}
