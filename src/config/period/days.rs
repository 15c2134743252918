//! The days of a period: by day of month, by day of week, or by either.

use jiff::civil::{Date, Weekday};

use super::field::{self, NumberSet};

/// The days of the fields day-of-month and day-of-week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Days {
    /// `None` if the field matches every day.
    of_month: Option<DaysOfMonth>,
    of_week: Option<DaysOfWeek>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct DaysOfMonth {
    days: NumberSet,
    /// `L`: the last day of the month.
    last: bool,
    /// `LW`: the last working day of the month.
    last_working: bool,
    /// `15W`: the working day nearest to the 15th, in the same month.
    nearest_working: NumberSet,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct DaysOfWeek {
    /// Days of the week, from Sunday (0).
    days: NumberSet,
    /// `5L`: the last Friday.
    last: NumberSet,
    /// `5#3`: the third Friday, as 5 * 6 + 3.
    nth: NumberSet,
}

impl Days {
    /// Parses the two fields.
    pub fn read(of_month: &str, of_week: &str) -> Result<Self, String> {
        Ok(Self {
            of_month: if field::is_any(of_month) { None } else { Some(DaysOfMonth::read(of_month)?) },
            of_week: if field::is_any(of_week) { None } else { Some(DaysOfWeek::read(of_week)?) },
        })
    }

    pub fn any() -> Self {
        Self { of_month: None, of_week: None }
    }

    /// Whether a day matches. If both fields are set, one match is enough.
    pub fn contains(&self, date: Date) -> bool {
        match (&self.of_month, &self.of_week) {
            (None, None) => true,
            (Some(of_month), None) => of_month.contains(date),
            (None, Some(of_week)) => of_week.contains(date),
            (Some(of_month), Some(of_week)) => of_month.contains(date) || of_week.contains(date),
        }
    }
}

impl DaysOfMonth {
    fn read(text: &str) -> Result<Self, String> {
        let mut read = Self::default();
        for entry in text.split(',') {
            let upper = entry.to_ascii_uppercase();
            match upper.as_str() {
                "L" => read.last = true,
                "LW" | "WL" => read.last_working = true,
                _ => match upper.strip_suffix('W') {
                    Some(day) => read.nearest_working.insert(field::DAY.number(day)?),
                    None => field::DAY.read_entry(entry, &mut read.days)?,
                },
            }
        }
        Ok(read)
    }

    fn contains(&self, date: Date) -> bool {
        let (day, last) = (date.day(), date.days_in_month());
        field::DAY.is_in(&self.days, number(day))
            || self.last && day == last
            || self.last_working && Some(day) == working_day_next_to(date, last)
            || (1..=last).any(|wanted| {
                self.nearest_working.contains(number(wanted)) && Some(day) == working_day_next_to(date, wanted)
            })
    }
}

/// The working day nearest to `wanted` in the month of `date`; never in another month.
fn working_day_next_to(date: Date, wanted: i8) -> Option<i8> {
    let last = date.days_in_month();
    let day = Date::new(date.year(), date.month(), wanted).ok()?;
    Some(match day.weekday() {
        Weekday::Saturday if wanted == 1 => 3,
        Weekday::Saturday => wanted - 1,
        Weekday::Sunday if wanted == last => wanted - 2,
        Weekday::Sunday => wanted + 1,
        _ => wanted,
    })
}

impl DaysOfWeek {
    fn read(text: &str) -> Result<Self, String> {
        let mut read = Self::default();
        for entry in text.split(',') {
            if let Some((day, nth)) = entry.split_once('#') {
                let nth = nth.parse().ok().filter(|nth| (1..=5).contains(nth));
                let nth: u32 =
                    nth.ok_or_else(|| format!("the day of week `{entry}`: the number after # must be 1-5"))?;
                read.nth.insert(field::WEEKDAY.number(day)? % 7 * 6 + nth);
            } else if let Some(day) = entry.strip_suffix(['L', 'l']).filter(|day| !day.is_empty()) {
                read.last.insert(field::WEEKDAY.number(day)? % 7);
            } else {
                field::WEEKDAY.read_entry(entry, &mut read.days)?;
            }
        }
        Ok(read)
    }

    fn contains(&self, date: Date) -> bool {
        let weekday = number(date.weekday().to_sunday_zero_offset());
        let nth = (number(date.day()) - 1) / 7 + 1;
        self.days.contains(weekday)
            || self.last.contains(weekday) && date.day() + 7 > date.days_in_month()
            || self.nth.contains(weekday * 6 + nth)
    }
}

fn number(small: i8) -> u32 {
    u32::from(small.unsigned_abs())
}
