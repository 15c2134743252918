//! Writes the output of services to the job's log while they run (`CI_DEBUG_SERVICES`).

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::engine::attached::FrameReader;
use super::super::engine::containers::LogStart;
use super::super::engine::{DockerEngine, EngineAddress};
use super::RunningService;
use crate::sync;
use crate::trace::colours::{GREY, RESET};

/// A service may be silent as long as the longest job runs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest line, in bytes. A longer line is split.
const MAX_LINE: usize = 16 << 10;

/// Receives a line.
pub type LogWriter = Box<dyn FnMut(&str) + Send>;

/// Threads that copy the output of services to the job's log until the services end or this value is dropped.
pub struct ServiceLogs {
    writer: Arc<Mutex<Option<LogWriter>>>,
}

impl ServiceLogs {
    /// Follows the output of services: from its beginning, or only new output if an earlier agent already followed it.
    pub fn start(engine: &EngineAddress, services: &[RunningService], from: LogStart, write: LogWriter) -> Self {
        let write = Arc::new(Mutex::new(Some(write)));
        for service in services {
            let (engine, service, write) = (engine.clone(), service.clone(), Arc::clone(&write));
            let body = move || match DockerEngine::at(&engine) {
                Ok(engine) => follow(&engine, &service, from, &mut |line| {
                    if let Some(write) = &mut *sync::lock(&write) {
                        write(line);
                    }
                }),
                Err(error) => log::warn!("cannot follow the output of a service error={error}"),
            };
            if let Err(error) = sync::spawn("service-log", 256 * 1024, body) {
                log::warn!("cannot follow the output of a service error={error}");
            }
        }
        Self { writer: write }
    }

    /// Holds back lines until the result is dropped.
    pub fn pause(&self) -> impl Drop + '_ {
        sync::lock(&self.writer)
    }
}

/// After the drop, no line is written. The threads end with their services.
impl Drop for ServiceLogs {
    fn drop(&mut self) {
        *sync::lock(&self.writer) = None;
    }
}

fn follow(engine: &DockerEngine, service: &RunningService, from: LogStart, write: &mut dyn FnMut(&str)) {
    let names: Vec<&str> = service.aliases.iter().map(String::as_str).collect();
    let mut lines = LineBuffer { name: names.join("-"), line: Vec::new() };
    let mut frames = FrameReader::default();
    let mut piece = vec![0; 16 * 1024];
    let Ok(mut output) = engine.follow_logs(&service.id, from, IDLE_TIMEOUT) else { return };
    // An error also ends the output: the container was removed meanwhile.
    while let Ok(length @ 1..) = output.read(&mut piece) {
        if frames.push(&piece[..length], &mut |_, bytes| lines.push(bytes, write)).is_err() {
            break;
        }
    }
    lines.finish(write);
}

/// Splits output into lines.
struct LineBuffer {
    name: String,
    line: Vec<u8>,
}

impl LineBuffer {
    fn push(&mut self, bytes: &[u8], write: &mut dyn FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() > MAX_LINE {
                self.finish(write);
            }
        }
    }

    fn finish(&mut self, write: &mut dyn FnMut(&str)) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.write_line(&line, write);
        }
    }

    fn write_line(&self, line: &[u8], write: &mut dyn FnMut(&str)) {
        let text = String::from_utf8_lossy(line);
        write(&format!("{GREY}[service:{}] {}{RESET}", self.name, text.trim_end_matches(['\n', '\r'])));
    }
}

/// The text of all frames of both streams.
pub fn text(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    // The text before an invalid frame is kept.
    let _ = FrameReader::default().push(bytes, &mut |_, piece| text.extend_from_slice(piece));
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_lines_with_the_name_of_the_service() {
        let mut printed = Vec::new();
        let mut write = |line: &str| printed.push(line.to_owned());
        let mut lines = LineBuffer { name: "postgres-db".to_owned(), line: Vec::new() };
        lines.push(b"first\r\nsec", &mut write);
        lines.push(b"ond\nlast", &mut write);
        lines.finish(&mut write);
        let expected = ["first", "second", "last"].map(|text| format!("{GREY}[service:postgres-db] {text}{RESET}"));
        assert_eq!(printed, expected);
    }
}
