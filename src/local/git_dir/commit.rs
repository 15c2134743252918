//! Reads commits that are not packed. Each is a compressed file.

use std::fs::File;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::{GitDir, is_object_id};

/// The largest commit that is read without git, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The parts of a commit.
#[derive(Debug, PartialEq)]
pub struct Commit {
    /// `Name <mail>`
    pub author: String,
    /// The time of the commit in ISO 8601, in the time zone of the committer.
    pub timestamp: String,
    pub message: String,
}

impl GitDir {
    /// The commit with this id; `None` if it is packed, or if only git can read it.
    pub fn commit(&self, id: &str) -> Option<Commit> {
        let (directory, file) = id.split_at_checked(2).filter(|_| is_object_id(id))?;
        let file = File::open(self.path.join("objects").join(directory).join(file)).ok()?;
        let mut bytes = Vec::new();
        ZlibDecoder::new(file).take(MAX_SIZE + 1).read_to_end(&mut bytes).ok()?;
        parse(&bytes)
    }
}

fn parse(object: &[u8]) -> Option<Commit> {
    let end = object.iter().position(|byte| *byte == 0)?;
    let length: usize = std::str::from_utf8(&object[..end]).ok()?.strip_prefix("commit ")?.parse().ok()?;
    let text = std::str::from_utf8(&object[end + 1..]).ok().filter(|text| text.len() == length)?;
    let (head, message) = text.split_once("\n\n")?;
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    if field("encoding ").is_some() {
        return None;
    }
    let (author, _) = signature(field("author ")?)?;
    let (_, timestamp) = signature(field("committer ")?)?;
    Some(Commit { author, timestamp, message: message.to_owned() })
}

/// Parses `Name <mail> SECONDS ZONE` to `Name <mail>` and the time.
fn signature(line: &str) -> Option<(String, String)> {
    let (person, time) = line.rsplit_once("> ")?;
    let (name, mail) = person.split_once(" <")?;
    let is_plain = |text: &str| !text.is_empty() && text.trim() == text && !text.contains(['<', '>']);
    (is_plain(name) && is_plain(mail)).then_some(())?;
    let (seconds, zone) = time.split_once(' ')?;
    let (sign, digits) =
        zone.split_at_checked(1).filter(|(sign, digits)| matches!(*sign, "+" | "-") && digits.len() == 4)?;
    let (hours, minutes) = digits.split_at_checked(2)?;
    let offset = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
    let seconds = seconds.parse::<i64>().ok()? + if sign == "-" { -offset } else { offset };
    let time = jiff::Timestamp::from_second(seconds).ok()?.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    Some((format!("{person}>"), format!("{time}{sign}{hours}:{minutes}")))
}
