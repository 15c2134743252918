//! The responses of the program, decoded and checked.

use std::collections::HashSet;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::super::{FailedStart, FailureKind, Group, Member, State};

/// The maximum number of characters of a response in an error message.
const SHOWN: usize = 200;
/// Letters of the id of an instance.
const LONGEST_ID: usize = 255;

/// The response of the program to `group`.
#[derive(Debug, Deserialize)]
pub struct GroupResponse {
    desired: Option<u32>,
    #[serde(default)]
    min: u32,
    max: Option<u32>,
    /// Required: an answer without it would mean that every instance has ended.
    members: Vec<MemberEntry>,
}

#[derive(Debug, Deserialize)]
struct MemberEntry {
    instance: String,
    #[serde(default)]
    state: StateEntry,
    #[serde(default = "yes")]
    healthy: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateEntry {
    Creating,
    #[default]
    Running,
    Terminating,
    Aside,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct FailuresResponse {
    pub failures: Vec<FailureEntry>,
}

#[derive(Debug, Deserialize)]
pub struct FailureEntry {
    #[serde(deserialize_with = "time")]
    at: Timestamp,
    cause: String,
    #[serde(default)]
    kind: String,
}

impl GroupResponse {
    /// The group, with the name `program`. Errors: an id cannot be used.
    pub fn into_group(self, program: &str) -> Result<Group, String> {
        check_ids(&self.members)?;
        let members: Vec<Member> = self.members.into_iter().map(MemberEntry::into_member).collect();
        let counted = members.iter().filter(|member| member.state.counts()).count();
        Ok(Group {
            name: program.to_owned(),
            desired_is_counted: self.desired.is_none(),
            desired: self.desired.unwrap_or(u32::try_from(counted).unwrap_or(u32::MAX)),
            least: self.min,
            most: self.max,
            protects_new: true,
            members,
        })
    }
}

impl MemberEntry {
    fn into_member(self) -> Member {
        Member {
            instance: self.instance,
            state: match self.state {
                StateEntry::Creating => State::Creating,
                StateEntry::Running => State::Running,
                StateEntry::Terminating => State::Terminating,
                StateEntry::Aside => State::Aside,
            },
            healthy: self.healthy,
            protected: true,
            detail: String::new(),
        }
    }
}

impl FailureEntry {
    /// The failed start.
    pub fn into_failed_start(self) -> FailedStart {
        FailedStart {
            at: self.at,
            kind: FailureKind::ALL.into_iter().find(|kind| kind.as_str() == self.kind).unwrap_or(FailureKind::Other),
            cause: shown(&self.cause),
        }
    }
}

/// RFC 3339.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn yes() -> bool {
    true
}

/// Each instance needs an id of its own, in letters that logs and pages can show.
fn check_ids(members: &[MemberEntry]) -> Result<(), String> {
    let mut known = HashSet::new();
    for MemberEntry { instance, .. } in members {
        if instance.is_empty() || instance.len() > LONGEST_ID || !instance.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "the answer cannot be used: the id `{}` of an instance must have 1 to {LONGEST_ID} printable ASCII characters",
                shown(instance)
            ));
        }
        if !known.insert(instance) {
            return Err(format!("the answer cannot be used: it lists the instance `{instance}` twice"));
        }
    }
    Ok(())
}

/// One line without control characters, which could move the cursor of a terminal, cut to [`SHOWN`] letters.
pub fn shown(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "\u{fffd}");
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}
