//! Lines of an adjustment log, and what `log`, `explain` and `replay` do with them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rayguard_core::journal::{Event, Record};

fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|&byte| byte == b'\n') {
        let Ok(record) = serde_json::from_slice::<Record>(line) else { continue };
        let written = serde_json::to_string(&record).unwrap();
        assert!(serde_json::from_str::<Record>(&written).is_ok(), "{written}");
        let _ = (record.event.name(), record.event.subject(), record.event.sentence());
        if let Event::Adjustment(adjustment) = &record.event {
            let _ = (adjustment.derive(), adjustment.undo());
        }
    }
});
