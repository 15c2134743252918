//! What services print, in the job's log: all of it as it comes with `CI_DEBUG_SERVICES`.

use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::engine::attached::Frames;
use super::super::engine::containers::From;
use super::super::engine::{Engine, Place};
use super::Service;

/// A service may be silent for as long as the longest of jobs.
const SILENCE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A line that is longer is cut.
const LINE_MAX: usize = 16 << 10;

const GREY: &str = "\x1b[0;37m";
const RESET: &str = "\x1b[0;m";

/// Takes a line.
pub type Say = Box<dyn FnMut(&str) + Send>;

/// Threads that bring the output of services into the job's log, until the services end or nobody listens any more.
pub struct Followers {
    say: Arc<Mutex<Option<Say>>>,
}

impl Followers {
    /// Follows services from their beginning, or from now on where an earlier agent followed them already.
    pub fn start(engine: &Place, services: &[Service], from: From, say: Say) -> Self {
        let say = Arc::new(Mutex::new(Some(say)));
        for service in services {
            let (engine, service, say) = (engine.clone(), service.clone(), Arc::clone(&say));
            let body = move || match Engine::at(&engine) {
                Ok(engine) => follow(&engine, &service, from, &mut |line| {
                    if let Some(say) = &mut *lock(&say) {
                        say(line);
                    }
                }),
                Err(error) => log::warn!("cannot follow the output of a service error={error}"),
            };
            if let Err(error) = thread::Builder::new().name("service-log".to_owned()).stack_size(256 * 1024).spawn(body)
            {
                log::warn!("cannot follow the output of a service error={error}");
            }
        }
        Self { say }
    }

    /// No line comes while this is kept.
    pub fn quiet(&self) -> impl Drop + '_ {
        lock(&self.say)
    }
}

/// No line comes any more. The threads end with their services.
impl Drop for Followers {
    fn drop(&mut self) {
        *lock(&self.say) = None;
    }
}

fn lock(say: &Mutex<Option<Say>>) -> MutexGuard<'_, Option<Say>> {
    say.lock().unwrap_or_else(PoisonError::into_inner)
}

fn follow(engine: &Engine, service: &Service, from: From, say: &mut dyn FnMut(&str)) {
    let names: Vec<&str> = service.aliases.iter().map(String::as_str).collect();
    let mut lines = Lines { name: names.join("-"), begun: Vec::new() };
    let mut frames = Frames::default();
    let mut piece = vec![0; 16 * 1024];
    let Ok(mut output) = engine.follow_logs(&service.id, true, from, SILENCE) else { return };
    // An error is the end as well: the container is removed under it.
    while let Ok(length @ 1..) = output.read(&mut piece) {
        if frames.push(&piece[..length], &mut |_, bytes| lines.push(bytes, say)).is_err() {
            break;
        }
    }
    lines.finish(say);
}

/// Cuts output into lines.
struct Lines {
    name: String,
    begun: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], say: &mut dyn FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.begun.len() > LINE_MAX {
                self.finish(say);
            }
        }
    }

    fn finish(&mut self, say: &mut dyn FnMut(&str)) {
        if !self.begun.is_empty() {
            let line = std::mem::take(&mut self.begun);
            self.say(&line, say);
        }
    }

    fn say(&self, line: &[u8], say: &mut dyn FnMut(&str)) {
        let text = String::from_utf8_lossy(line);
        say(&format!("{GREY}[service:{}] {}{RESET}", self.name, text.trim_end_matches(['\n', '\r'])));
    }
}

/// All that frames hold, of both streams, as text.
pub fn text(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    // What comes before nonsense is as good as it was.
    let _ = Frames::default().push(bytes, &mut |_, piece| text.extend_from_slice(piece));
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_becomes_lines_with_the_names_of_the_service() {
        let mut said = Vec::new();
        let mut say = |line: &str| said.push(line.to_owned());
        let mut lines = Lines { name: "postgres-db".to_owned(), begun: Vec::new() };
        lines.push(b"first\r\nsec", &mut say);
        lines.push(b"ond\nlast", &mut say);
        lines.finish(&mut say);
        let expected = ["first", "second", "last"].map(|text| format!("{GREY}[service:postgres-db] {text}{RESET}"));
        assert_eq!(said, expected);
    }
}
