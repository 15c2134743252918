//! The line in the output that reports that the shell is ready for the script.

/// Finds the marker in output that arrives in arbitrary pieces, and removes it.
pub struct MarkerFilter {
    /// The beginning of the marker's line.
    prefix: Vec<u8>,
    /// Output that may be the beginning of the marker's line.
    held: Vec<u8>,
    /// The rest of the marker's line, which has been removed from the output.
    found: Option<String>,
}

impl MarkerFilter {
    /// `marker` is the argument of [`super::shell::prologue`].
    pub fn new(marker: &str) -> Self {
        Self { prefix: format!("\x1e{marker} ").into_bytes(), held: Vec::new(), found: None }
    }

    /// The rest of the marker's line, once the whole line has arrived.
    pub fn found(&self) -> Option<String> {
        self.found.clone()
    }

    /// Passes output to `out`, without the marker. Holds back bytes that may be the beginning of the marker.
    pub fn filter(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.found.is_some() {
            out.extend_from_slice(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        loop {
            let Some(at) = self.held.iter().position(|byte| *byte == 0x1e) else {
                out.append(&mut self.held);
                return;
            };
            out.extend(self.held.drain(..at));
            let known = self.held.len().min(self.prefix.len());
            if self.held[..known] != self.prefix[..known] {
                out.push(self.held.remove(0));
                continue;
            }
            let Some(end) = self.held.iter().position(|byte| *byte == b'\n') else { return };
            let line = String::from_utf8_lossy(&self.held[known..end]).into_owned();
            self.found = Some(line.trim_end_matches('\x1e').to_owned());
            self.held.drain(..=end);
            out.append(&mut self.held);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_and_hides_the_marker_in_any_pieces() {
        let text = b"banner \x1e of\x1emark-2 nothing\n\x1emark-1 1000 50\x1e\nfirst\x1emark-1 again\n";
        for cut in 0..text.len() {
            let (mut marker, mut out) = (MarkerFilter::new("mark-1"), Vec::new());
            marker.filter(&text[..cut], &mut out);
            marker.filter(&text[cut..], &mut out);
            assert_eq!(marker.found().as_deref(), Some("1000 50"));
            assert_eq!(out, b"banner \x1e of\x1emark-2 nothing\nfirst\x1emark-1 again\n", "{cut}");
        }
    }
}
