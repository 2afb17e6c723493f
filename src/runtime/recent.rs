//! The latest events, at hand for the page and the API.
//!
//! Kept as the text they are written as, in memory that is laid down at the start and touched: an
//! adjustment is a dozen small pieces of heap that would stay for hours between what lives for a
//! moment, and a process that grows for half an hour looks like one that leaks. A query reads
//! that text again; queries are rare.

use crate::core::event::Event;
use crate::core::time::{Time, WallMs};
use crate::observe::adjustment_log::Entry;
use std::collections::VecDeque;

/// Events kept, ...
const COUNT_MAX: usize = 1000;

/// ... as long as all of them have no more text than this, in bytes.
const BYTES_MAX: usize = 3 << 19;

/// The latest events, oldest first.
#[derive(Debug)]
pub(super) struct Recent {
    text: VecDeque<u8>,
    marks: VecDeque<Mark>,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    time: WallMs,
    at: Time,
    bytes: usize,
}

impl Default for Recent {
    fn default() -> Recent {
        let mut text = VecDeque::from(vec![b' '; BYTES_MAX]);
        text.clear();
        Recent { text, marks: VecDeque::with_capacity(COUNT_MAX), line: Vec::new() }
    }
}

impl Recent {
    /// Takes in an event; the oldest make room for it.
    pub(super) fn push(&mut self, entry: &Entry) {
        self.line.clear();
        let written = serde_json::to_writer(&mut self.line, &entry.event);
        if written.is_err() || self.line.len() > BYTES_MAX {
            return; // the adjustment log has it all the same, or owns up to it
        }
        while self.marks.len() == COUNT_MAX || self.text.len() + self.line.len() > BYTES_MAX {
            let Some(oldest) = self.marks.pop_front() else { break };
            self.text.drain(..oldest.bytes);
        }
        self.text.extend(&self.line);
        self.marks.push_back(Mark { time: entry.time, at: entry.at, bytes: self.line.len() });
    }

    /// Those after a moment, or all.
    pub(super) fn after(&self, time: Option<WallMs>) -> Vec<Entry> {
        let mut end = 0;
        let mut line = Vec::new();
        let entries = self.marks.iter().filter_map(|mark| {
            let begin = end;
            end += mark.bytes;
            if time.is_some_and(|time| mark.time <= time) {
                return None;
            }
            line.clear();
            line.extend(self.text.range(begin..end));
            let event: Event = serde_json::from_slice(&line).ok()?;
            Some(Entry { time: mark.time, at: mark.at, event })
        });
        entries.collect()
    }

    /// How far back they reach.
    pub(super) fn since(&self) -> Option<WallMs> {
        self.marks.front().map(|mark| mark.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u64, reason: &str) -> Entry {
        let event = Event::Stop { reason: reason.to_owned() };
        Entry { time: WallMs(at), at: Time(at), event }
    }

    #[test]
    fn what_comes_out_is_what_went_in_and_the_oldest_makes_room() {
        let mut recent = Recent::default();
        for at in 0..3 * COUNT_MAX as u64 {
            recent.push(&entry(at, "an \"operator\"\nsaid so"));
        }
        let first = 2 * COUNT_MAX as u64;
        assert_eq!(recent.since(), Some(WallMs(first)));
        let all = recent.after(None);
        assert_eq!(all.len(), COUNT_MAX);
        assert_eq!(all[0], entry(first, "an \"operator\"\nsaid so"));
        let late = recent.after(Some(WallMs(first + 997)));
        assert_eq!(late.iter().map(|entry| entry.time.0 - first).collect::<Vec<_>>(), [998, 999]);
    }

    #[test]
    fn its_memory_is_laid_down_at_the_start_and_never_grows() {
        let mut recent = Recent::default();
        let room = (recent.text.capacity(), recent.marks.capacity());
        for at in 0..300 {
            recent.push(&entry(at, &"x".repeat(usize::try_from(at).unwrap() * 200)));
            assert!(recent.text.len() <= BYTES_MAX);
        }
        recent.push(&entry(300, &"x".repeat(2 * BYTES_MAX)));
        assert_eq!((recent.text.capacity(), recent.marks.capacity()), room);
        assert_eq!(recent.after(None).last().unwrap().time, WallMs(299), "what is too long is left out");
    }
}
