//! A traffic trace, in the form that rayguard writes or in one of those that others do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rayguard_core::recording;
use rayguard_sim::trace;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(recording) = recording::read(bytes) {
        assert!(recording.arrivals.len() <= bytes.len());
    }
    if let Ok(trace) = trace::read(&String::from_utf8_lossy(bytes)) {
        assert!(trace.arrivals.is_sorted_by_key(|arrival| arrival.at));
        assert!(trace.arrivals.len() <= bytes.len());
    }
});
