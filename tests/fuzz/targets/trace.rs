//! A traffic trace, in the form that rayguard writes or in one of those that others do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rayguard_core::traffic_trace;
use rayguard_sim::trace;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(trace) = traffic_trace::read(bytes) {
        assert!(trace.arrivals.len() <= bytes.len());
    }
    if let Ok(trace) = trace::read(&String::from_utf8_lossy(bytes)) {
        assert!(trace.arrivals.is_sorted_by_key(|arrival| arrival.at));
        assert!(trace.arrivals.len() <= bytes.len());
    }
});
