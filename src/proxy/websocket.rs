//! As much of a WebSocket as a log tail needs: the handshake's answer, unmasked text and close
//! frames of a server (RFC 6455, sections 4.2.2 and 5.2), and a client's answer to a closure.
//!
//! Ray's proxy only ever writes on a tail until it closes it, which is why it does not notice
//! that a client left. So frames are not read here, only told apart: for the one that the door itself adds, a
//! good-bye when it goes down, and to see the one that ends a tail.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1_smol::Sha1;

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
#[must_use]
pub fn accept(key: &[u8]) -> String {
    // The handshake asks for SHA-1 by name; it protects nothing here.
    let mut digest = Sha1::new();
    digest.update(key);
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest.digest().bytes())
}

/// A whole text message in one frame.
#[must_use]
pub fn text_frame(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes())
}

/// The purpose is fulfilled (RFC 6455, 7.4.1).
pub const NORMAL: u16 = 1000;
/// This end is going down: ask again elsewhere, or later.
pub const GOING_AWAY: u16 = 1001;

/// A closure, and why.
#[must_use]
pub fn close_frame(code: u16) -> Vec<u8> {
    frame(0x88, &code.to_be_bytes())
}

/// A client's answer to a closure. The mask keeps strangers from choosing what intermediaries see; these two
/// bytes nobody chooses, so it is zero.
#[must_use]
pub fn close_answer(code: u16) -> [u8; 8] {
    let [high, low] = code.to_be_bytes();
    [0x80 | CLOSE, 0x80 | 2, 0, 0, 0, 0, high, low]
}

/// The opcode of a wish to close (RFC 6455, 5.5.1).
pub const CLOSE: u8 = 8;

/// Where one frame ends, as frames pass in pieces: the only place at which another may be put in.
#[derive(Debug, Default)]
pub struct Frames {
    /// What has come of a frame's head, its mask included.
    head: Vec<u8>,
    /// What is left of its payload.
    left: u64,
    /// A closure has begun to pass.
    closes: bool,
}

impl Frames {
    /// These bytes pass.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            if self.left > 0 {
                let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= passed as u64;
                bytes = &bytes[passed..];
                continue;
            }
            self.head.push(byte);
            bytes = &bytes[1..];
            if let Some(length) = payload_len(&self.head) {
                self.left = length;
                self.closes |= self.head[0] & 0x0f == CLOSE;
                self.head.clear();
            }
        }
    }

    /// Whether a closure has passed whole.
    #[must_use]
    pub fn are_closed(&self) -> bool {
        self.closes && self.are_whole()
    }

    /// Whether the last frame has passed whole.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.head.is_empty() && self.left == 0
    }
}

/// The length that a head tells; `None` while the head is not whole.
fn payload_len(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let wide = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    if head.len() < 2 + wide + mask {
        return None;
    }
    let told = head[2..2 + wide].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
    Some(if wide == 0 { u64::from(second & 0x7f) } else { told })
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    let length = payload.len();
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => frame.push(short),
        (_, Ok(middle)) => {
            frame.push(126);
            frame.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_of_the_standard_is_answered_as_the_standard_says() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_carry_their_length_in_one_three_or_nine_bytes() {
        assert_eq!(text_frame("hi"), [0x81, 2, b'h', b'i']);
        assert_eq!(text_frame(&"x".repeat(300))[..4], [0x81, 126, 1, 44]);
        assert_eq!(text_frame(&"x".repeat(70_000)).len(), 70_010);
        assert_eq!(close_frame(NORMAL), [0x88, 2, 3, 232]);
        assert_eq!(close_answer(NORMAL), [0x88, 0x82, 0, 0, 0, 0, 3, 232]);
    }

    #[test]
    fn a_frame_is_whole_when_its_last_byte_has_passed_however_it_is_cut() {
        let mut stream = Vec::new();
        let mut ends = vec![0];
        for length in [0, 1, 125, 126, 300, 70_000] {
            stream.extend(text_frame(&"x".repeat(length)));
            ends.push(stream.len());
        }
        stream.extend([0x88, 0x82, 1, 2, 3, 4, 5, 6]); // masked
        ends.push(stream.len());
        for cut in [1, 2, 7, 4096] {
            let (mut frames, mut passed) = (Frames::default(), 0);
            for piece in stream.chunks(cut) {
                frames.pass(piece);
                passed += piece.len();
                assert_eq!(frames.are_whole(), ends.contains(&passed), "{passed} by {cut}");
            }
        }
    }
}
