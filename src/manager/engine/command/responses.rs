//! The responses of the program, decoded and checked.

use std::collections::HashSet;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::super::{FailedStart, FailureKind, Group, Member, MemberState};

/// The maximum length of a quoted response in an error message.
const MAX_SHOWN_CHARS: usize = 200;
/// The maximum length of an instance id, in bytes.
const MAX_ID_LENGTH: usize = 255;

/// The response of the program to `group`.
#[derive(Debug, Deserialize)]
pub struct GroupResponse {
    desired: Option<u32>,
    #[serde(default)]
    min: u32,
    max: Option<u32>,
    /// Required, because a default of no members would mean that every instance has ended.
    members: Vec<MemberEntry>,
}

#[derive(Debug, Deserialize)]
struct MemberEntry {
    instance: String,
    #[serde(default)]
    state: StateEntry,
    #[serde(default = "default_healthy")]
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
    #[serde(deserialize_with = "rfc3339")]
    at: Timestamp,
    cause: String,
    #[serde(default)]
    kind: String,
}

impl GroupResponse {
    /// The group, with the name `program`. Errors: an id is invalid.
    pub fn into_group(self, program: &str) -> Result<Group, String> {
        check_ids(&self.members)?;
        let members: Vec<Member> = self.members.into_iter().map(MemberEntry::into_member).collect();
        let counted = members.iter().filter(|member| member.state.counts()).count();
        Ok(Group {
            name: program.to_owned(),
            desired_is_counted: self.desired.is_none(),
            desired: self.desired.unwrap_or(u32::try_from(counted).unwrap_or(u32::MAX)),
            min_size: self.min,
            max_size: self.max,
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
                StateEntry::Creating => MemberState::Creating,
                StateEntry::Running => MemberState::Running,
                StateEntry::Terminating => MemberState::Terminating,
                StateEntry::Aside => MemberState::Aside,
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
            cause: printable_line(&self.cause),
        }
    }
}

fn rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn default_healthy() -> bool {
    true
}

/// Checks that each instance has a unique id in characters that logs and pages can show.
fn check_ids(members: &[MemberEntry]) -> Result<(), String> {
    let mut known = HashSet::new();
    for MemberEntry { instance, .. } in members {
        if instance.is_empty()
            || instance.len() > MAX_ID_LENGTH
            || !instance.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(format!(
                "the response is invalid: the id `{}` of an instance must have 1 to {MAX_ID_LENGTH} printable ASCII characters",
                printable_line(instance)
            ));
        }
        if !known.insert(instance) {
            return Err(format!("the response is invalid: it lists the instance `{instance}` twice"));
        }
    }
    Ok(())
}

/// One line without control characters, which could move the cursor of a terminal, cut to [`MAX_SHOWN_CHARS`].
pub fn printable_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "\u{fffd}");
    match line.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}
