use jiff::Timestamp;
use jiff::civil::{DateTime, date};

use super::CronForm::{WithSeconds, WithoutSeconds};
use super::*;

fn at(text: &str) -> DateTime {
    text.parse().expect("a time")
}

fn holds(period: &str, when: &str) -> bool {
    Period::read(period).expect("a period").contains(at(when))
}

#[test]
fn reads_five_six_and_seven_fields() {
    // 2026-03-02 is a Monday.
    for (period, when, expected) in [
        ("* * * * *", "2026-03-02T00:00:00", true),
        ("* 9-17 * * mon-fri", "2026-03-02T09:00:00", true),
        ("* 9-17 * * mon-fri", "2026-03-02T17:59:59", true),
        ("* 9-17 * * mon-fri", "2026-03-02T18:00:00", false),
        ("* 9-17 * * mon-fri", "2026-03-02T08:59:59", false),
        ("* 9-17 * * mon-fri", "2026-03-01T12:00:00", false),
        ("* * 9-17 * * mon-fri *", "2026-03-02T17:59:59", true),
        ("* * 9-17 * * mon-fri *", "2026-03-02T18:00:00", false),
        ("* 9 * * * 2026", "2026-03-02T09:30:00", true),
        ("* 9 * * * 2027", "2026-03-02T09:30:00", false),
        ("* * * * * * 2025-2026", "2026-03-02T09:30:00", true),
        ("* * * * * * 2099", "2099-12-31T09:30:00", true),
        ("  *   9\t* * *  ", "2026-03-02T09:30:00", true),
    ] {
        assert_eq!(holds(period, when), expected, "{period} at {when}");
    }
}

#[test]
fn reads_lists_ranges_steps_and_names() {
    for (period, when, expected) in [
        ("0,30 * * * *", "2026-03-02T10:30:00", true),
        ("0,30 * * * *", "2026-03-02T10:31:00", false),
        ("*/15 * * * *", "2026-03-02T10:45:00", true),
        ("*/15 * * * *", "2026-03-02T10:50:00", false),
        ("5/20 * * * *", "2026-03-02T10:45:00", true),
        ("5/20 * * * *", "2026-03-02T10:40:00", false),
        ("10-30/10 * * * *", "2026-03-02T10:30:00", true),
        ("10-30/10 * * * *", "2026-03-02T10:40:00", false),
        ("* * * JAN,March *", "2026-03-02T10:30:00", true),
        ("* * * JAN,apr *", "2026-03-02T10:30:00", false),
        ("* * * * Monday", "2026-03-02T10:30:00", true),
        ("* * ? * 1", "2026-03-02T10:30:00", true),
        ("* * 2 * ?", "2026-03-02T10:30:00", true),
        ("* * * * 0", "2026-03-01T10:30:00", true),
        ("* * * * 7", "2026-03-01T10:30:00", true),
        ("@hourly", "2026-03-02T10:00:30", true),
        ("@hourly", "2026-03-02T10:01:00", false),
        ("@daily", "2026-03-02T00:00:00", true),
        ("@weekly", "2026-03-01T00:00:00", true),
        ("@weekly", "2026-03-02T00:00:00", false),
        ("@monthly", "2026-03-01T00:00:00", true),
        ("@yearly", "2026-01-01T00:00:00", true),
        ("@annually", "2026-03-01T00:00:00", false),
    ] {
        assert_eq!(holds(period, when), expected, "{period} at {when}");
    }
}

#[test]
fn ranges_wrap_around() {
    // 2026-03-06 is a Friday.
    let days = |period: &str| -> String {
        (1..=7).map(|day| if holds(period, &format!("2026-03-0{day}T12:00:00")) { 'x' } else { '-' }).collect()
    };
    for (period, sunday_to_saturday) in [
        ("* * * * fri-mon", "xx---xx"),
        ("* * * * sat-sun", "x-----x"),
        ("* * * * 5-7", "x----xx"),
        ("* * * * 7-2", "xxx----"),
        ("* * * * 0-7", "xxxxxxx"),
        ("* * * * 6-1", "xx----x"),
        ("* * * * fri-mon/2", "x----x-"),
        ("* * * * */2", "x-x-x-x"),
        ("* * * * 1/3", "-x--x--"),
    ] {
        assert_eq!(days(period), sunday_to_saturday, "{period}");
    }
    for (period, when, expected) in [
        ("* 22-6 * * *", "2026-03-02T23:10:00", true),
        ("* 22-6 * * *", "2026-03-02T06:59:00", true),
        ("* 22-6 * * *", "2026-03-02T07:00:00", false),
        ("50-10 * * * *", "2026-03-02T07:05:00", true),
        ("* * 28-3 * *", "2026-03-02T07:05:00", true),
        ("* * * nov-feb *", "2026-12-02T07:05:00", true),
        ("* * * nov-feb *", "2026-03-02T07:05:00", false),
    ] {
        assert_eq!(holds(period, when), expected, "{period} at {when}");
    }
}

#[test]
fn matches_last_nearest_and_numbered_days() {
    for (period, when, expected) in [
        ("* * L * *", "2028-02-29T12:00:00", true),
        ("* * L * *", "2028-02-28T12:00:00", false),
        // 2026-05-31 is a Sunday: the last working day is Friday, the 29th.
        ("* * LW * *", "2026-05-29T12:00:00", true),
        ("* * LW * *", "2026-05-31T12:00:00", false),
        // 2026-03-15 is a Sunday, 2026-08-15 a Saturday, 2026-08-01 a Saturday.
        ("* * 15W * *", "2026-03-16T12:00:00", true),
        ("* * 15W * *", "2026-03-15T12:00:00", false),
        ("* * 15W * *", "2026-08-14T12:00:00", true),
        ("* * 1W * *", "2026-08-03T12:00:00", true),
        ("* * 1W * *", "2026-07-31T12:00:00", false),
        // 2026-05-31 is a Sunday: the nearest working day of the same month is Friday, the 29th.
        ("* * 31W * *", "2026-05-29T12:00:00", true),
        ("* * 31W * *", "2026-04-30T12:00:00", false),
        ("* * * * 5L", "2026-03-27T12:00:00", true),
        ("* * * * friL", "2026-03-20T12:00:00", false),
        ("* * * * 7L", "2026-03-29T12:00:00", true),
        ("* * * * 5#3", "2026-03-20T12:00:00", true),
        ("* * * * fri#3", "2026-03-13T12:00:00", false),
        ("* * * * 1#5", "2026-03-30T12:00:00", true),
        ("* * 1,L * *", "2026-03-31T12:00:00", true),
    ] {
        assert_eq!(holds(period, when), expected, "{period} at {when}");
    }
}

#[test]
fn one_of_day_of_month_and_day_of_week_is_enough() {
    for (when, expected) in [
        ("2026-03-13T12:00:00", true), // a Friday, the 13th
        ("2026-03-20T12:00:00", true), // a Friday
        ("2026-04-13T12:00:00", true), // the 13th
        ("2026-04-14T12:00:00", false),
    ] {
        assert_eq!(holds("* * 13 * fri", when), expected, "{when}");
    }
}

#[test]
fn refuses_an_invalid_period_and_names_the_field() {
    for (period, part) in [
        ("", "0 field(s)"),
        ("* * * *", "4 field(s)"),
        ("* * * * * * * *", "8 field(s)"),
        ("60 * * * *", "the minute `60` must be 0-59"),
        ("* 24 * * *", "the hour `24`"),
        ("* * 0 * *", "the day of month `0`"),
        ("* * 32W * *", "the day of month `32`"),
        ("* * * 13 *", "the month `13`"),
        ("* * * * 8", "the day of week `8`"),
        ("* * * * funday", "the day of week `funday`"),
        ("* * * * L", "the day of week `L`"),
        ("* * * * 5#6", "after #"),
        ("* * * * * 1969", "the year `1969`"),
        ("* * * * * 2030-2020", "ends before it begins"),
        ("*/0 * * * *", "the step `0`"),
        ("1--2 * * * *", "the minute"),
        ("1, * * * *", "the minute ``"),
        ("+1 * * * *", "the minute `+1`"),
        ("-1 * * * *", "the minute ``"),
        ("61 * * * * * *", "the second `61`"),
        ("@often", "must be one of @yearly"),
        ("5000000000 * * * *", "the minute `5000000000`"),
    ] {
        let error = Period::read(period).expect_err(period);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn detects_periods_that_never_match() {
    let today = date(2026, 3, 2);
    for (period, expected) in [
        ("* * * * *", true),
        ("* * 29 2 *", true),
        ("* * 30 2 *", false),
        ("* * 31 4,6,9,11 *", false),
        ("* * 31 feb fri", true),
        ("* * * * * 2025", false),
        ("* * 29 2 * 2027", false),
        ("* * 29 2 * 2028", true),
        ("* * 1 3 * 2026", false),
    ] {
        assert_eq!(Period::read(period).expect("a period").comes_after(today), expected, "{period}");
    }
    let warning = |period: &str, form| Period::read(period).expect("a period").warning(today, form).unwrap_or_default();
    for (period, form, part) in [
        ("* * 30 2 *", WithoutSeconds, "never matches"),
        ("0 * 9-17 * * * *", WithSeconds, "sets seconds"),
        ("* 22-6 * * *", WithoutSeconds, "wraps around"),
        ("* * * * fri-mon", WithoutSeconds, "wraps around"),
        ("* * * * sat-sun", WithoutSeconds, "wraps around"),
        ("* * * * 5-7/2", WithoutSeconds, "wraps around"),
        ("50-10 * * * *", WithoutSeconds, "wraps around"),
        ("* * 22-6 * * * *", WithSeconds, "wraps around"),
        ("* 9-17 * * mon-fri", WithSeconds, "no field for seconds"),
        ("* 9-17 * * mon-fri 2099", WithSeconds, "no field for seconds"),
    ] {
        assert!(warning(period, form).contains(part), "{period}: {}", warning(period, form));
    }
    for (period, form) in [
        ("* * 9-17 * * * *", WithSeconds),
        ("* 9-17 * * mon-fri", WithoutSeconds),
        ("* * * * 0-7", WithoutSeconds),
        ("* * * * 5L,5#3", WithoutSeconds),
        ("@daily", WithSeconds),
    ] {
        assert_eq!(warning(period, form), "", "{period}");
    }
}

#[test]
fn always_matches_every_minute() {
    let (always, read) = (Period::always(), Period::read("* * * * *").expect("a period"));
    assert_eq!(always, read);
}

/// Whether a period matches in a time zone at a UTC time.
fn holds_in(zone: &str, period: &str, utc: &str) -> bool {
    let clock = Zone::read(zone).expect("a zone").clock(utc.parse::<Timestamp>().expect("a time"));
    Period::read(period).expect("a period").contains(clock)
}

#[test]
fn a_period_uses_the_clock_of_its_time_zone() {
    let office = "* * 9-17 * * mon-fri *";
    for (zone, utc, expected) in [
        ("Europe/Amsterdam", "2026-01-05T08:00:00Z", true),
        ("Europe/Amsterdam", "2026-01-05T07:59:59Z", false),
        ("Europe/Amsterdam", "2026-07-06T07:00:00Z", true),
        ("Europe/Amsterdam", "2026-07-06T15:59:59Z", true),
        ("Europe/Amsterdam", "2026-07-06T16:00:00Z", false),
        ("UTC", "2026-07-06T16:00:00Z", true),
        // Saturday in Amsterdam while it is still Friday in UTC.
        ("Europe/Amsterdam", "2026-07-10T22:30:00Z", false),
        ("Asia/Kolkata", "2026-07-06T03:30:00Z", true),
        ("Asia/Kolkata", "2026-07-06T03:29:00Z", false),
    ] {
        assert_eq!(holds_in(zone, office, utc), expected, "{zone} {utc}");
    }
}

#[test]
fn a_skipped_hour_never_matches_and_a_repeated_one_matches_twice() {
    // In Amsterdam, clocks change from 02:00 to 03:00 on 2026-03-29, and from 03:00 to 02:00 on 2026-10-25.
    let minutes = |day: &str, hour: &str| -> usize {
        let start: Timestamp = format!("{day}T00:00:00+01:00").parse().expect("a time");
        let zone = Zone::read("Europe/Amsterdam").expect("a zone");
        let period = Period::read(&format!("* {hour} * * *")).expect("a period");
        let minutes = (0..26 * 60).map(|minute| start + jiff::SignedDuration::from_mins(minute));
        minutes.map(|at| zone.clock(at)).filter(|at| at.date().to_string() == day && period.contains(*at)).count()
    };
    assert_eq!([minutes("2026-03-29", "1"), minutes("2026-03-29", "2"), minutes("2026-03-29", "3")], [60, 0, 60]);
    assert_eq!([minutes("2026-10-25", "1"), minutes("2026-10-25", "2"), minutes("2026-10-25", "3")], [60, 120, 60]);
}

#[test]
fn an_unknown_zone_is_refused() {
    for name in ["Mars/Olympus", "../../etc/passwd", "Europe/Amsterdam\n x", "CEST+"] {
        let error = Zone::read(name).expect_err(name);
        assert!(error.contains("tzdata"), "{error}");
    }
    assert_eq!(Zone::read("").expect("a zone"), Zone::default());
    assert!(Zone::read("UTC").is_ok());
}
