//! Request ids: what a client, the log and `rayguard explain` call one request.
//!
//! A number of this run (the millisecond it began) and a count, both in hexadecimal digits. Every
//! request gets one and hardly any is ever looked at, so it is written where it stands, without
//! the heap.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

/// Digits of a run, a hyphen, digits of a count.
const LEN_MAX: usize = RUN_DIGITS + 1 + 16;

/// Digits of a run: milliseconds for five centuries.
const RUN_DIGITS: usize = 11;

/// The ids of one run.
#[derive(Debug)]
pub struct Ids {
    /// What they begin with.
    prefix: Id,
    next: AtomicU64,
}

/// The id of one request.
#[derive(Clone, Copy, Debug)]
pub struct Id {
    text: [u8; LEN_MAX],
    len: u8,
}

impl Ids {
    /// Ids of a run that began at this wall time.
    pub fn new(run: u64) -> Ids {
        let mut prefix = Id { text: [0; LEN_MAX], len: 0 };
        prefix.push_hex(run & ((1 << (4 * RUN_DIGITS)) - 1));
        prefix.push(b'-');
        Ids { prefix, next: AtomicU64::new(1) }
    }

    /// The next.
    pub fn next(&self) -> Id {
        let mut id = self.prefix;
        id.push_hex(self.next.fetch_add(1, Ordering::Relaxed));
        id
    }
}

impl Id {
    /// Its characters, as a header has them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.len)]
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.text.get_mut(usize::from(self.len)) {
            *place = byte;
            self.len += 1;
        }
    }

    fn push_hex(&mut self, number: u64) {
        let digits = (64 - (number | 1).leading_zeros()).div_ceil(4);
        for digit in (0..digits).rev() {
            let [digit, ..] = (number >> (4 * digit) & 0xf).to_le_bytes();
            self.push(b"0123456789abcdef"[usize::from(digit)]);
        }
    }
}

impl Deref for Id {
    type Target = str;

    fn deref(&self) -> &str {
        // Digits and a hyphen are UTF-8.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_run_and_the_count_in_hexadecimal() {
        let ids = Ids::new(0x0123_4567_89ab_cdef);
        let first: Vec<String> = (0..17).map(|_| ids.next().to_string()).collect();
        assert_eq!(first[0], "56789abcdef-1");
        assert_eq!(first[16], "56789abcdef-11");
        assert_eq!(&*Ids::new(0).next(), "0-1");
        let last = Ids { next: AtomicU64::new(u64::MAX), ..Ids::new(u64::MAX) };
        assert_eq!(&*last.next(), "fffffffffff-ffffffffffffffff");
    }
}
