//! Lines of an adjustment log, and what `log`, `explain` and `replay` do with them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rayguard_core::event::{Event, LoggedEvent};

fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|&byte| byte == b'\n') {
        let Ok(logged) = serde_json::from_slice::<LoggedEvent>(line) else { continue };
        let written = serde_json::to_string(&logged).unwrap();
        assert!(serde_json::from_str::<LoggedEvent>(&written).is_ok(), "{written}");
        let _ = (logged.event.name(), logged.event.subject(), logged.event.sentence());
        if let Event::Adjustment(adjustment) = &logged.event {
            let _ = (adjustment.derive(), adjustment.undo());
        }
    }
});
