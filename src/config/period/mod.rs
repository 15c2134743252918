//! Periods: recurring minutes, in gitlab-runner's syntax.
//!
//! `[second] minute hour day-of-month month day-of-week [year]`: five fields, six with a year, seven with both. A
//! period matches whole minutes of the clock in its time zone: an hour that daylight saving time skips never matches,
//! and an hour that it repeats matches twice.

mod days;
mod field;
mod zone;

use std::fmt;

use jiff::civil::{Date, DateTime};
use serde::{Deserialize, Deserializer};

use days::Days;
use field::{DAY, HOUR, MINUTE, MONTH, NumberSet, SECOND, WEEKDAY, YEAR};

pub use zone::Zone;

/// Recurring minutes.
#[derive(Clone, PartialEq, Eq)]
pub struct Period {
    text: String,
    minutes: NumberSet,
    hours: NumberSet,
    days: Days,
    months: NumberSet,
    years: Option<NumberSet>,
    seconds: SecondsField,
    /// Whether a range ends before it begins.
    wraps: bool,
}

/// The field for seconds, which only a period of seven fields has. It has no effect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SecondsField {
    Absent,
    /// `*` or `?`.
    Any,
    Set,
}

/// The fields of a period in gitlab-runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CronForm {
    /// Seven fields, the first for seconds: `[[runners.machine.autoscaling]]`.
    WithSeconds,
    /// Five fields: the policies of other autoscalers.
    WithoutSeconds,
}

impl Period {
    /// Parses a period of five, six or seven fields, or `@daily` and similar.
    pub fn read(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = match text.trim() {
            "@yearly" | "@annually" => vec!["0", "0", "1", "1", "*"],
            "@monthly" => vec!["0", "0", "1", "*", "*"],
            "@weekly" => vec!["0", "0", "*", "*", "0"],
            "@daily" => vec!["0", "0", "*", "*", "*"],
            "@hourly" => vec!["0", "*", "*", "*", "*"],
            text if text.starts_with('@') => {
                return Err(format!("`{text}` must be one of @yearly, @annually, @monthly, @weekly, @daily, @hourly"));
            }
            text => text.split_whitespace().collect(),
        };
        let (second, minute, year) = match fields.len() {
            5 => (None, 0, None),
            6 => (None, 0, Some(fields[5])),
            7 => (Some(fields[0]), 1, Some(fields[6])),
            count => {
                return Err(format!(
                    "`{text}` has {count} field(s); write [second] minute hour day-of-month month day-of-week [year]"
                ));
            }
        };
        let wrong = |why: String| format!("`{text}`: {why}");
        second.map(|second| SECOND.read(second)).transpose().map_err(wrong)?;
        Ok(Self {
            text: text.to_owned(),
            minutes: MINUTE.read(fields[minute]).map_err(wrong)?,
            hours: HOUR.read(fields[minute + 1]).map_err(wrong)?,
            days: Days::read(fields[minute + 2], fields[minute + 4]).map_err(wrong)?,
            months: MONTH.read(fields[minute + 3]).map_err(wrong)?,
            years: year.filter(|year| !field::is_any(year)).map(|year| YEAR.read(year)).transpose().map_err(wrong)?,
            seconds: match second {
                None => SecondsField::Absent,
                Some(second) if field::is_any(second) => SecondsField::Any,
                Some(_) => SecondsField::Set,
            },
            wraps: [&MINUTE, &HOUR, &DAY, &MONTH, &WEEKDAY]
                .into_iter()
                .zip(&fields[minute..])
                .any(|(kind, field)| kind.wraps_in(field)),
        })
    }

    pub fn always() -> Self {
        let every = |kind: &field::FieldRange| {
            (0..kind.count).fold(NumberSet::default(), |mut set, number| {
                set.insert(number);
                set
            })
        };
        Self {
            text: "* * * * *".to_owned(),
            minutes: every(&MINUTE),
            hours: every(&HOUR),
            days: Days::any(),
            months: every(&MONTH),
            years: None,
            seconds: SecondsField::Absent,
            wraps: false,
        }
    }

    /// Whether the period contains the minute of a clock time.
    pub fn contains(&self, at: DateTime) -> bool {
        MINUTE.is_in(&self.minutes, small(at.minute()))
            && HOUR.is_in(&self.hours, small(at.hour()))
            && self.contains_day(at.date())
    }

    /// Whether the period contains a minute on the day `from` or later.
    pub fn comes_after(&self, from: Date) -> bool {
        // Hours and minutes always match at some time of a day, so only days are compared. Days repeat within 40
        // years, and a period has no year after 2099.
        from.series(jiff::Span::new().days(1)).take_while(|day| day.year() < 2100).any(|day| self.contains_day(day))
    }

    /// A warning about a period that never matches, sets seconds, or has another meaning in gitlab-runner.
    /// `form` is what gitlab-runner expects.
    pub fn warning(&self, today: Date, form: CronForm) -> Option<String> {
        if !self.comes_after(today) {
            return Some(format!("the period `{self}` never matches"));
        }
        if self.wraps {
            return Some(format!(
                "the period `{self}` has a range that wraps around: it matches in mayfly, but never in gitlab-runner"
            ));
        }
        if form == CronForm::WithSeconds && self.seconds == SecondsField::Absent && !self.text.starts_with('@') {
            return Some(format!(
                "the period `{self}` has no field for seconds: it matches whole minutes here, but only their first second in \
                 gitlab-runner; write seven fields"
            ));
        }
        (self.seconds == SecondsField::Set).then(|| {
            format!("the period `{self}` sets seconds; they have no effect, because periods match whole minutes")
        })
    }

    fn contains_day(&self, date: Date) -> bool {
        MONTH.is_in(&self.months, small(date.month()))
            && self.years.is_none_or(|years| YEAR.is_in(&years, u32::from(date.year().unsigned_abs())))
            && self.days.contains(date)
    }
}

fn small(number: i8) -> u32 {
    u32::from(number.unsigned_abs())
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Period({})", self.text)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
