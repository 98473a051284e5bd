//! Durations and moments as callers write them: `7d`, `30d`, `month-to-date`, `2026-11`, RFC 3339.
//!
//! Inside, moments are microseconds since 1970 UTC; outside, RFC 3339 in UTC with six digits.

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Month, OffsetDateTime};

const SECOND_US: i64 = 1_000_000;
/// Longest duration that is taken: ten years.
const DURATION_S_MAX: i64 = 10 * 366 * 24 * 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a duration is a number and a unit: 90s, 15m, 12h, 7d or 2w, at most ten years")]
    Duration,
    #[error("a time is like 2026-11-20T12:00:00Z")]
    Moment,
    #[error("since is a duration such as 7d or a time such as 2026-11-20T12:00:00Z")]
    Since,
    #[error("a period is 7d, 30d or another duration, month-to-date, or a month such as 2026-11")]
    Period,
}

/// Reads `90s`, `15m`, `12h`, `7d`, `2w` as seconds.
pub fn parse_duration_s(text: &str) -> Result<i64, Error> {
    let unit_start = text.find(|char: char| !char.is_ascii_digit()).ok_or(Error::Duration)?;
    let unit_s = match &text[unit_start..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(Error::Duration),
    };
    let count: i64 = text[..unit_start].parse().map_err(|_| Error::Duration)?;
    count.checked_mul(unit_s).filter(|seconds| *seconds <= DURATION_S_MAX).ok_or(Error::Duration)
}

/// Reads RFC 3339 with any offset.
pub fn parse_moment_us(text: &str) -> Result<i64, Error> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| Error::Moment)?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).map_err(|_| Error::Moment)
}

/// Writes RFC 3339 in UTC with six digits. A moment outside the years 1 to 9999 is written as the nearest one.
pub fn moment_text(at_us: i64) -> String {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let last_us = 253_402_300_799_999_999;
    let first_us = -62_135_596_800_000_000;
    let nanos = i128::from(at_us.clamp(first_us, last_us)) * 1_000;
    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(FORMAT).unwrap_or_default()
}

/// Where a feed begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// This long ago.
    Ago {
        seconds: i64,
    },
    At {
        us: i64,
    },
}

impl Since {
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Ok(seconds) = parse_duration_s(text) {
            return Ok(Self::Ago { seconds });
        }
        parse_moment_us(text).map(|us| Self::At { us }).map_err(|_| Error::Since)
    }

    pub fn start_us(self, now_us: i64) -> i64 {
        match self {
            Self::Ago { seconds } => now_us.saturating_sub(seconds.saturating_mul(SECOND_US)),
            Self::At { us } => us,
        }
    }
}

/// What a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    Last { seconds: i64 },
    MonthToDate,
    Month { year: i32, month: u8 },
}

impl Period {
    pub fn parse(text: &str) -> Result<Self, Error> {
        if matches!(text, "month-to-date" | "mtd") {
            return Ok(Self::MonthToDate);
        }
        if let Ok(seconds) = parse_duration_s(text) {
            return Ok(Self::Last { seconds });
        }
        let (year, month) = text.split_once('-').ok_or(Error::Period)?;
        let is_plain =
            |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_plain(year, 4) || !is_plain(month, 2) {
            return Err(Error::Period);
        }
        let year = year.parse().ok().filter(|year| *year >= 1970).ok_or(Error::Period)?;
        let month = month.parse().ok().filter(|month| (1..=12).contains(month)).ok_or(Error::Period)?;
        Ok(Self::Month { year, month })
    }

    /// First moment, and the first moment after it.
    pub fn span_us(self, now_us: i64) -> (i64, i64) {
        match self {
            Self::Last { seconds } => (Since::Ago { seconds }.start_us(now_us), now_us),
            Self::MonthToDate => {
                let now = OffsetDateTime::from_unix_timestamp(now_us.div_euclid(SECOND_US))
                    .unwrap_or(OffsetDateTime::UNIX_EPOCH);
                (month_start_us(now.year(), u8::from(now.month())), now_us)
            }
            Self::Month { year, month } => {
                let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                (month_start_us(year, month), month_start_us(next.0, next.1))
            }
        }
    }
}

fn month_start_us(year: i32, month: u8) -> i64 {
    let date = Month::try_from(month).and_then(|month| time::Date::from_calendar_date(year, month, 1));
    date.map_or(0, |date| date.midnight().assume_utc().unix_timestamp() * SECOND_US)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_US: i64 = 1_795_608_000_000_000;

    #[test]
    fn durations() {
        for (text, seconds) in
            [("7d", 604_800), ("30d", 2_592_000), ("90s", 90), ("15m", 900), ("12h", 43_200), ("0s", 0)]
        {
            assert_eq!(parse_duration_s(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "7",
            "d",
            "-7d",
            "+7d",
            "7 d",
            "7D",
            "1.5h",
            "7dd",
            "99999999999999999999d",
            "4000d",
            "\u{661}d",
        ] {
            assert!(parse_duration_s(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments() {
        assert_eq!(moment_text(NOW_US), "2026-11-25T12:00:00.000000Z");
        assert_eq!(parse_moment_us("2026-11-25T12:00:00Z"), Ok(NOW_US));
        assert_eq!(parse_moment_us("2026-11-25T14:00:00.000001+02:00"), Ok(NOW_US + 1));
        for text in ["", "2026-11-25", "yesterday", "1795608000"] {
            assert!(parse_moment_us(text).is_err(), "{text}");
        }
        assert_eq!(moment_text(i64::MAX), "9999-12-31T23:59:59.999999Z");
        assert_eq!(moment_text(i64::MIN), "0001-01-01T00:00:00.000000Z");
    }

    #[test]
    fn since_takes_both() {
        assert_eq!(Since::parse("7d").unwrap().start_us(NOW_US), NOW_US - 604_800 * SECOND_US);
        assert_eq!(Since::parse("2026-11-25T12:00:00Z").unwrap().start_us(0), NOW_US);
        assert_eq!(Since::parse("soon"), Err(Error::Since));
    }

    #[test]
    fn periods() {
        let span = |text: &str| {
            let (start_us, end_us) = Period::parse(text).unwrap().span_us(NOW_US);
            (moment_text(start_us), moment_text(end_us))
        };
        let now = "2026-11-25T12:00:00.000000Z".to_owned();
        assert_eq!(span("7d"), ("2026-11-18T12:00:00.000000Z".to_owned(), now.clone()));
        assert_eq!(span("month-to-date"), ("2026-11-01T00:00:00.000000Z".to_owned(), now));
        let december = ("2026-12-01T00:00:00.000000Z".to_owned(), "2027-01-01T00:00:00.000000Z".to_owned());
        assert_eq!(span("2026-12"), december);
        for text in ["", "2026", "2026-13", "2026-00", "26-11", "2026-1", "1969-12", "+026-11", "year"] {
            assert_eq!(Period::parse(text), Err(Error::Period), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(at_us in -62_135_596_800_000_000i64..253_402_300_799_999_999) {
            prop_assert_eq!(parse_moment_us(&moment_text(at_us)), Ok(at_us));
        }
    }
}
