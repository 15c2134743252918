//! The time zone of periods.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer};

/// A time zone; the machine's by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::system())
    }
}

impl Zone {
    /// The time zone with a name such as `Europe/Amsterdam`; an empty name or `Local` is the machine's. Fails if the
    /// machine does not have it.
    pub fn read(name: &str) -> Result<Self, String> {
        match name.trim() {
            "" | "Local" => Ok(Self::default()),
            "UTC" | "Etc/UTC" => Ok(Self(TimeZone::UTC)),
            name => TimeZone::get(name).map(Self).map_err(|_| {
                format!(
                    "the time zone `{name}` is not known here; write a name such as \"Europe/Amsterdam\", and see that \
                     the package tzdata is installed (/usr/share/zoneinfo)"
                )
            }),
        }
    }

    /// The local time in the zone.
    pub fn clock(&self, at: Timestamp) -> DateTime {
        self.0.to_datetime(at)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("local time"))
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
