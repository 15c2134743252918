//! One field of a period: lists, ranges (also wrapping ones), steps, names.

/// A set of small numbers as bits: enough for more than a century of years, counted from the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumberSet([u64; 3]);

impl NumberSet {
    pub fn insert(&mut self, number: u32) {
        self.0[number as usize / 64] |= 1 << (number % 64);
    }

    pub fn contains(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// The allowed values of a field.
pub struct FieldRange {
    /// The name in messages.
    pub name: &'static str,
    /// The smallest value.
    pub first: u32,
    /// The largest value.
    pub last: u32,
    /// The number of distinct values; smaller for days of the week, where 7 is the same as 0.
    pub count: u32,
    /// Full names of the values from `first`; three letters are enough.
    pub names: &'static [&'static str],
    /// Whether a range may wrap around.
    pub may_wrap: bool,
}

const fn numbers(name: &'static str, first: u32, last: u32) -> FieldRange {
    FieldRange { name, first, last, count: last - first + 1, names: &[], may_wrap: true }
}

/// 0 to 59.
pub const SECOND: FieldRange = numbers("second", 0, 59);
/// 0 to 59.
pub const MINUTE: FieldRange = numbers("minute", 0, 59);
/// 0 to 23.
pub const HOUR: FieldRange = numbers("hour", 0, 23);
/// 1 to 31.
pub const DAY: FieldRange = numbers("day of month", 1, 31);
/// 1 to 12, or a name.
pub const MONTH: FieldRange = FieldRange {
    names: &[
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ],
    ..numbers("month", 1, 12)
};
/// 0 (Sunday) to 7 (Sunday again), or a name.
pub const WEEKDAY: FieldRange = FieldRange {
    count: 7,
    names: &["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"],
    ..numbers("day of week", 0, 7)
};
/// 1970 to 2099.
pub const YEAR: FieldRange = FieldRange { may_wrap: false, ..numbers("year", 1970, 2099) };

/// Whether the field matches every value.
pub fn is_any(text: &str) -> bool {
    matches!(text, "*" | "?")
}

impl FieldRange {
    /// Parses a field.
    pub fn read(&self, text: &str) -> Result<NumberSet, String> {
        let mut set = NumberSet::default();
        for entry in text.split(',') {
            self.read_entry(entry, &mut set)?;
        }
        Ok(set)
    }

    /// Whether a set from [`FieldRange::read`] contains a value.
    pub fn is_in(&self, set: &NumberSet, number: u32) -> bool {
        number.checked_sub(self.first).is_some_and(|offset| set.contains(offset))
    }

    /// Parses one number or name.
    pub fn number(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        let named = self.names.iter().position(|name| lower == *name || lower.len() == 3 && name.starts_with(&lower));
        if let Some(position) = named {
            return Ok(self.first + position as u32);
        }
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && (self.first..=self.last).contains(number));
        number.ok_or_else(|| format!("the {} `{text}` must be {}-{}", self.name, self.first, self.last))
    }

    /// Parses one entry of a list: `*`, `a`, `a-b`, each optionally with `/step`.
    pub fn read_entry(&self, entry: &str, set: &mut NumberSet) -> Result<(), String> {
        let (range, step) = match entry.split_once('/') {
            Some((range, step)) => (range, Some(self.step(step)?)),
            None => (entry, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if is_any(range) => (self.first, self.end()),
            Some((from, to)) => (self.number(from)?, self.number(to)?),
            // `a/n` is the range from `a` to the last value.
            None => {
                let number = self.number(range)?;
                (number, if step.is_some() { number.max(self.end()) } else { number })
            }
        };
        if from > to && !self.may_wrap {
            return Err(format!("the {} `{range}` ends before it begins", self.name));
        }
        let length = if from <= to { to - from } else { to + self.count - from };
        for number in (0..=length).step_by(step.unwrap_or(1)) {
            set.insert((from - self.first + number) % self.count);
        }
        Ok(())
    }

    /// Whether a field has a range that wraps around, such as `fri-mon`. gitlab-runner counts days of the week from 0
    /// to 6, so `5-7` wraps too.
    pub fn wraps_in(&self, text: &str) -> bool {
        text.split(',').any(|entry| {
            let range = entry.split_once('/').map_or(entry, |(range, _)| range);
            let ends = range.split_once('-').and_then(|(from, to)| self.number(from).ok().zip(self.number(to).ok()));
            ends.is_some_and(|(from, to)| from > to || to > self.end() && from > self.first)
        })
    }

    /// The last value of the cycle.
    fn end(&self) -> u32 {
        self.first + self.count - 1
    }

    fn step(&self, text: &str) -> Result<usize, String> {
        let step = text.parse().ok().filter(|step| *step > 0 && !text.starts_with('+'));
        step.ok_or_else(|| format!("the step `{text}` of the {} is not a number above 0", self.name))
    }
}
