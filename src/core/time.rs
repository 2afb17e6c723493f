//! Time as the core sees it: a number handed in by whoever drives it.
//!
//! `core` owns no clock. `run` hands in nanoseconds since the process began (from
//! `runtime::clock`), `simulate` hands in virtual nanoseconds from the event heap; the
//! code between cannot tell the difference, which is what makes the simulator's verdict
//! a verdict on production.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

/// A point on the driver's monotone time line, in nanoseconds since the driver's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Time(pub u64);

impl Time {
    /// The driver's start.
    pub const ZERO: Time = Time(0);

    /// The point `seconds` after the start; negative and NaN become the start.
    pub fn from_secs_f64(seconds: f64) -> Time {
        Time::ZERO + duration_from_secs(seconds)
    }

    /// Seconds since the start.
    pub fn as_secs_f64(self) -> f64 {
        Duration::from_nanos(self.0).as_secs_f64()
    }

    /// How long ago `earlier` was; zero when it lies in the future.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A length of time in seconds as a [`Duration`]; negative and NaN become zero, what is
/// too long becomes the longest.
pub fn duration_from_secs(seconds: f64) -> Duration {
    if seconds.is_nan() || seconds <= 0.0 {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, length: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, length: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.as_secs_f64())
    }
}

/// Wall-clock time for the adjustment log, in milliseconds since the Unix epoch. Never used in a
/// decision: the wall clock may be set back at any moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WallMs(pub u64);

impl WallMs {
    /// `2026-01-31T23:59:59.123Z` (RFC 3339, UTC, milliseconds), until the end of the year 9999.
    pub fn rfc3339(self) -> String {
        const LAST: u64 = 253_402_300_799_999;
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.min(LAST));
        humantime::format_rfc3339_millis(at).to_string()
    }

    /// Reads RFC 3339 in UTC (`Z`), with or without fractions of a second. `None` when it is
    /// something else.
    pub fn parse_rfc3339(text: &str) -> Option<WallMs> {
        // This one reads a blank for the `T` as well; without a `Z` it would take any place's time for UTC.
        let at = humantime::parse_rfc3339_weak(text.strip_suffix(['Z', 'z'])?).ok()?;
        let ms = at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis();
        u64::try_from(ms).ok().map(WallMs)
    }
}

/// What the impls below make of it.
impl JsonSchema for WallMs {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "WallMs".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// In the adjustment log a wall time is RFC 3339 text.
impl Serialize for WallMs {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.rfc3339())
    }
}

impl<'de> Deserialize<'de> for WallMs {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<WallMs, D::Error> {
        let text = <Cow<'de, str>>::deserialize(from)?;
        WallMs::parse_rfc3339(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no RFC 3339 time in UTC")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_time_reads_as_rfc_3339_and_back() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(WallMs(ms).rfc3339(), text);
            assert_eq!(WallMs::parse_rfc3339(text), Some(WallMs(ms)));
        }
    }

    #[test]
    fn a_wall_time_without_fraction_is_read_and_nonsense_is_not() {
        assert_eq!(WallMs::parse_rfc3339("1970-01-01T00:00:01Z"), Some(WallMs(1_000)));
        for nonsense in [
            "",
            "now",
            "1970-01-01",
            "1970-13-01T00:00:00Z",
            "1970-01-01T00:00:00",
            "-1-1-1T::Z",
            "1970-01-01T00:00:00.-12Z",
            "1970-01-01T00:00:00.é1Z",
        ] {
            assert_eq!(WallMs::parse_rfc3339(nonsense), None, "{nonsense}");
        }
    }
}
