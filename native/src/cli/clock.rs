//! Dates for people.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time of the epoch in the local time zone: `2026-11-22 10:18:47`.
#[must_use]
pub(crate) fn local_time(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => format!("@{seconds}"),
    }
}
