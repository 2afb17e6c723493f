//! Quantities as people write them: `"500ms"`, `"120/min"`, `"100 MiB"`, `"p99 1s"`.
//!
//! A number without a unit is refused wherever a unit matters: `timeout = 30` has cost too
//! many nights. Every type reads from a string, and its refusal says what was written and
//! what would be understood. Ranges stand with the keys (see `keys`).

use std::fmt;
use std::time::Duration;

use rayguard_core::policy::Slo;

/// A length of time: `"500ms"`, `"10s"`, `"1h 30m"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Length(pub Duration);

/// A rate, kept per second: `"5/s"`, `"120/min"`, `"1000/h"`.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct PerSecond(pub f64);

/// A size, kept in bytes: `"512 B"`, `"64 KiB"`, `"20 MB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

/// A throughput, kept in bytes per second: `"20 MB/s"`.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct BytesPerSecond(pub f64);

/// A latency objective: `"p99 1s"`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Objective(pub Slo);

/// Why a quantity was not understood: a lower-case sentence with what was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// Not a length of time.
    #[error("invalid duration `{0}`: expected a number and a unit, such as \"500ms\", \"10s\" or \"1h\"")]
    Length(String),
    /// Not a rate.
    #[error(
        "invalid rate `{0}`: expected a number per unit of time, such as \"5/s\", \"120/min\" or \"1000/h\""
    )]
    Rate(String),
    /// Not a size.
    #[error("invalid size `{0}`: expected a number and a unit, such as \"64 KiB\", \"100 MiB\" or \"20 MB\"")]
    Bytes(String),
    /// Not a throughput.
    #[error("invalid throughput `{0}`: expected a size per second, such as \"20 MB/s\"")]
    BytesPerSecond(String),
    /// Not an objective.
    #[error("invalid objective `{0}`: expected a percentile and a duration, such as \"p99 1s\"")]
    Objective(String),
}

// === impl Length ===

impl std::str::FromStr for Length {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        humantime::parse_duration(text.trim()).map(Length).map_err(|_| ParseError::Length(shown(text)))
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The largest unit that leaves nothing over, as people write it: "75s", not "1m 15s".
        let nanos = self.0.as_nanos();
        let units =
            [(3_600_000_000_000, "h"), (60_000_000_000, "m"), (1_000_000_000, "s"), (1_000_000, "ms")];
        match units.into_iter().find(|(unit, _)| nanos > 0 && nanos.is_multiple_of(*unit)) {
            // Beyond a few hundred, the sum of several units says more: "2h 46m 40s".
            Some((unit, name)) if nanos / unit < 2000 || name == "h" => write!(f, "{}{name}", nanos / unit),
            _ => humantime::format_duration(self.0).fmt(f),
        }
    }
}

// === impl PerSecond ===

impl std::str::FromStr for PerSecond {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse_error = || ParseError::Rate(shown(text));
        let (count, unit) = text.split_once('/').ok_or_else(parse_error)?;
        let count = number(count).ok_or_else(parse_error)?;
        let seconds = match unit.trim() {
            "s" | "sec" | "second" => 1.0,
            "m" | "min" | "minute" => 60.0,
            "h" | "hour" => 3600.0,
            "d" | "day" => 86_400.0,
            _ => return Err(parse_error()),
        };
        Ok(PerSecond(count / seconds))
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The unit in which the number is whole, else the one in which it is not tiny.
        let whole = |value: f64| (value - value.round()).abs() < 1e-9 * value.abs().max(1.0) && value >= 0.5;
        for (seconds, unit) in [(1.0, "s"), (60.0, "min"), (3600.0, "h")] {
            let count = self.0 * seconds;
            if whole(count) {
                return write!(f, "{}/{unit}", count.round());
            }
        }
        write!(f, "{}/s", self.0)
    }
}

// === impl Bytes ===

impl std::str::FromStr for Bytes {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bytes = bytes(text).ok_or_else(|| ParseError::Bytes(shown(text)))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`number` refuses negatives, and `bytes` what is above 2^53"
        )]
        Ok(Bytes(bytes.round() as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

// === impl BytesPerSecond ===

impl std::str::FromStr for BytesPerSecond {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse_error = || ParseError::BytesPerSecond(shown(text));
        let (size, unit) = text.rsplit_once('/').ok_or_else(parse_error)?;
        if unit.trim() != "s" {
            return Err(parse_error());
        }
        bytes(size).map(BytesPerSecond).ok_or_else(parse_error)
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")] {
            if self.0 >= factor {
                return write!(f, "{} {unit}/s", self.0 / factor);
            }
        }
        write!(f, "{} B/s", self.0)
    }
}

// === impl Objective ===

impl std::str::FromStr for Objective {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse_error = || ParseError::Objective(shown(text));
        let (percentile, latency) = text.trim().split_once(char::is_whitespace).ok_or_else(parse_error)?;
        let percentile = percentile.strip_prefix('p').and_then(number).ok_or_else(parse_error)?;
        let Length(latency) = latency.parse().map_err(|_| parse_error())?;
        Ok(Objective(Slo { quantile: percentile / 100.0, latency }))
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 0.999 * 100 is 99.9 only after rounding.
        let percentile = (self.0.quantile * 1e8).round() / 1e6;
        write!(f, "p{percentile} {}", Length(self.0.latency))
    }
}

/// A non-negative finite number, in plain or scientific notation.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    // `f64::from_str` also takes "inf" and "nan", which are no quantities.
    if !text.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0)
}

fn bytes(text: &str) -> Option<f64> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (count, unit) = text.split_at(split);
    let factor: f64 = match unit {
        "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "TiB" => 1_099_511_627_776.0,
        _ => return None,
    };
    // Beyond 2^53 a byte count is a slip, and f64 no longer counts bytes.
    number(count).map(|count| count * factor).filter(|bytes| *bytes <= 9_007_199_254_740_992.0)
}

/// What was written, on one line and cut to a length that fits it.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_read_as_people_write_them() {
        assert_eq!("500ms".parse(), Ok(Length(Duration::from_millis(500))));
        assert_eq!("1h 30m".parse(), Ok(Length(Duration::from_mins(90))));
        assert_eq!("120/min".parse(), Ok(PerSecond(2.0)));
        assert_eq!("1800 / h".parse(), Ok(PerSecond(0.5)));
        assert_eq!("0.25/s".parse(), Ok(PerSecond(0.25)));
        assert_eq!("100 MiB".parse(), Ok(Bytes(100 << 20)));
        assert_eq!("64KiB".parse(), Ok(Bytes(64 << 10)));
        assert_eq!("20 MB/s".parse(), Ok(BytesPerSecond(2e7)));
        assert_eq!(
            "p99.9 250ms".parse::<Objective>().map(|Objective(slo)| slo.latency),
            Ok(Duration::from_millis(250))
        );
    }

    #[test]
    fn a_number_without_its_unit_is_refused_with_an_example() {
        assert!("10".parse::<Length>().unwrap_err().to_string().contains("\"10s\""));
        for rate in ["5", "5/", "/s", "5/fortnight", "-1/s", "nan/s", "inf/s"] {
            assert_eq!(rate.parse::<PerSecond>(), Err(ParseError::Rate(rate.into())));
        }
        for size in ["100", "MiB", "1 mib", "-1 B", "1e300 TiB"] {
            assert_eq!(size.parse::<Bytes>(), Err(ParseError::Bytes(size.into())));
        }
        for objective in ["p99", "1s", "99 1s", "p99 1"] {
            assert!(objective.parse::<Objective>().is_err(), "{objective}");
        }
    }

    #[test]
    fn lengths_are_written_in_the_unit_that_fits() {
        let written = |ms: u64| Length(Duration::from_millis(ms)).to_string();
        assert_eq!(written(75_000), "75s");
        assert_eq!(written(1_500), "1500ms");
        assert_eq!(written(250), "250ms");
        assert_eq!(written(7_200_000), "2h");
        assert_eq!(written(10_000_000), "2h 46m 40s");
        assert_eq!(written(0), "0s");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ms in 0_u64..100_000_000, bytes in 0_u64..(1 << 50), rate in 0.001_f64..1e5) {
            let length = Length(Duration::from_millis(ms));
            prop_assert_eq!(length.to_string().parse(), Ok(length));
            prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
            let PerSecond(back) = PerSecond(rate).to_string().parse().unwrap();
            prop_assert!((back - rate).abs() <= 1e-8 * rate.max(1.0));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<Length>();
            let _ = text.parse::<PerSecond>();
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<BytesPerSecond>();
            let _ = text.parse::<Objective>();
        }
    }
}
