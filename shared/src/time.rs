//! Timestamps of the wire: RFC 3339, UTC, whole seconds, `Z`.
//!
//! The seed's examples are all of the form `2025-12-08T10:30:00Z`. Producers are less disciplined: JavaScript's
//! `toISOString` adds milliseconds, Python's `isoformat` writes `+00:00`. Both are read; only the first is written.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// The last second that the four-digit years of RFC 3339 can say: 9999-12-31T23:59:59Z.
const UNIX_SECONDS_MAX: u64 = 253_402_300_799;

/// A point in time, in whole seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// The text is no RFC 3339 time in UTC, or lies outside of the years 1970 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time in UTC")]
pub struct TimestampError;

impl Timestamp {
    /// The second in which `unix_ms` (milliseconds since the Unix epoch) lies. Years beyond 9999 become its last second.
    #[must_use]
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        Self((unix_ms / 1000).min(UNIX_SECONDS_MAX))
    }

    /// The second in which `time` lies; times before 1970 become its first second.
    #[must_use]
    pub fn from_system_time(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs().min(UNIX_SECONDS_MAX))
    }

    /// Seconds since the Unix epoch.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        self.0
    }

    /// Reads RFC 3339 in UTC: `Z` or `+00:00`, with or without a fraction, which is cut.
    ///
    /// # Errors
    /// [`TimestampError`] for anything else, so also for a time with another offset.
    pub fn parse(text: &str) -> Result<Self, TimestampError> {
        let utc = text.strip_suffix("+00:00").map(|head| format!("{head}Z"));
        let time = humantime::parse_rfc3339(utc.as_deref().unwrap_or(text)).map_err(|_| TimestampError)?;
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| TimestampError)?;
        Ok(Self(since.as_secs()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_secs(self.0);
        write!(f, "{}", humantime::format_rfc3339_seconds(time))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_producers_write_and_writes_one_form() {
        let check = |text: &str, want: Option<&str>| {
            let got = Timestamp::parse(text).ok().map(|t| t.to_string());
            assert_eq!(got.as_deref(), want, "{text:?}");
        };
        check("2025-12-08T10:30:00Z", Some("2025-12-08T10:30:00Z"));
        check("2025-12-08T10:30:00.999Z", Some("2025-12-08T10:30:00Z"));
        check("2025-12-08T10:30:00+00:00", Some("2025-12-08T10:30:00Z"));
        check("2024-02-29T00:00:00Z", Some("2024-02-29T00:00:00Z"));
        check("2025-02-30T00:00:00Z", None);
        check("2025-12-08T10:30:00+02:00", None);
        check("2025-12-08 10:30:00", None);
        check("yesterday", None);
        check("", None);
        check("1969-12-31T23:59:59Z", None);
    }

    #[test]
    fn far_future_is_the_last_second_that_can_be_written() {
        assert_eq!(Timestamp::from_unix_ms(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }
}
