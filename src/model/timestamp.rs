//! Points in time, in the two text formats of the Python server.

use std::fmt;

/// First microsecond of the year 10000.
const YEAR_10000: i64 = 253_402_300_800_000_000;

/// Point in time, in microseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Returns the current time of the wall clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }

    /// Returns the microseconds since 1970.
    pub fn as_microseconds(self) -> i64 {
        self.0
    }

    /// Restores a result of [`Self::as_microseconds`].
    pub fn from_microseconds(microseconds: i64) -> Self {
        Self(microseconds)
    }

    /// Returns the time that is later by this duration.
    #[must_use]
    pub fn later(self, by: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Returns whether a message between nodes may contain it: from 1970 to 9999, which all text formats can represent.
    pub fn is_exchangeable(self) -> bool {
        (0..YEAR_10000).contains(&self.0)
    }

    /// Returns the whole milliseconds since 1970; 0 before 1970.
    pub fn as_milliseconds(self) -> u64 {
        u64::try_from(self.0 / 1000).unwrap_or(0)
    }

    /// Returns the whole seconds since 1970; 0 before 1970.
    pub fn as_seconds(self) -> u64 {
        u64::try_from(self.0 / 1_000_000).unwrap_or(0)
    }

    /// Returns the text in the database: `2026-01-31 10:00:00.123456` (SQLAlchemy's `DATETIME` on SQLite).
    pub fn to_database(self) -> String {
        self.format("%Y-%m-%d %H:%M:%S%.6f")
    }

    /// Parses a text of [`Self::to_database`] or of the Python server; returns `None` for other texts.
    pub fn from_database(text: &str) -> Option<Self> {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        let zoned = jiff::tz::Offset::UTC.to_timestamp(civil).ok()?;
        Some(Self(zoned.as_microsecond()))
    }

    /// Parses the value of a `Date` header (RFC 9110, 5.6.7: IMF-fixdate); returns `None` for other texts.
    pub fn from_http_date(value: &str) -> Option<Self> {
        let zoned = jiff::fmt::rfc2822::parse(value).ok()?;
        Some(Self(zoned.timestamp().as_microsecond()))
    }

    fn format(self, format: &str) -> String {
        jiff::Timestamp::from_microsecond(self.0)
            .map(|instant| instant.strftime(format).to_string())
            .unwrap_or_default()
    }
}

/// Writes the text of API responses: `2026-01-31T10:00:00.123456Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.format("%Y-%m-%dT%H:%M:%S%.6fZ"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_text_formats() {
        let text = "2026-01-31 10:00:00.123456";
        let read = Timestamp::from_database(text).expect("valid");
        assert_eq!(read.to_database(), text);
        assert_eq!(read.to_string(), "2026-01-31T10:00:00.123456Z");
        assert_eq!(read.as_seconds(), 1_769_853_600);
        let whole = Timestamp::from_database("2026-01-31 10:00:00.000000").expect("valid");
        assert_eq!(whole.to_string(), "2026-01-31T10:00:00.000000Z");
        assert_eq!(Timestamp::from_database("yesterday"), None);
        assert_eq!(Timestamp::from_database(""), None);
    }
}
