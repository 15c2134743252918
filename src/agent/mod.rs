//! The loop on an instance: take a job, run it, count it, decide to stay or leave.
mod signals;
mod slots;
mod watch;
pub const STACK: usize = 256 * 1024;
pub enum Event {
    Signal(signals::Request),
    ConfigurationChanged,
}
