//! Two pages of an exporter, one after the other, read with the built-in signals.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rayguard_config::{self as config, Overrides};
use rayguard_core::policy::Policy;
use rayguard_core::signal::series::SignalReader;
use rayguard_core::time::{Time, WallMs};
use std::sync::LazyLock;
use std::time::Duration;

static POLICY: LazyLock<Policy> =
    LazyLock::new(|| config::parse("", "fuzz.toml", &Overrides::default()).unwrap().policy.as_ref().clone());

fuzz_target!(|bytes: &[u8]| {
    let mut reader = SignalReader::new(&POLICY);
    // Rates and shares need a second page; a NUL parts them.
    for (page, round) in bytes.splitn(2, |&byte| byte == 0).zip(1..) {
        let now = Time::ZERO + Duration::from_secs(5) * round;
        if let Ok(counts) = reader.on_scrape("head:8080", page, now, WallMs(1_700_000_000_000)) {
            assert_eq!(counts.bytes, page.len());
            assert_eq!(counts.kept, counts.parsed + counts.lost + counts.repeated);
        }
        for (_, reading) in reader.readings(now) {
            assert!(reading.map_or(true, |it| it.value.is_finite() && it.value >= 0.0 && it.at <= now));
        }
    }
});
