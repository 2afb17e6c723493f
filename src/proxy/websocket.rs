//! The server's half of a WebSocket, as far as a log tail needs it: the handshake's answer and
//! unmasked text and close frames (RFC 6455, sections 4.2.2 and 5.2).
//!
//! Ray's proxy only ever writes on a tail and never reads, which is why it does not notice
//! that a client left. So frames are not read here, only told apart, for the one that the door itself adds: a
//! good-bye when it goes down.

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
#[must_use]
pub fn accept(key: &[u8]) -> String {
    let mut text = key.to_vec();
    text.extend_from_slice(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(&sha1(&text))
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

/// Where one frame ends, as frames pass in pieces: the only place at which another may be put in.
#[derive(Debug, Default)]
pub struct Frames {
    /// What has come of a frame's head, its mask included.
    head: Vec<u8>,
    /// What is left of its payload.
    left: u64,
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
                self.head.clear();
            }
        }
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

/// SHA-1 (FIPS 180-4). The handshake asks for it by name; it protects nothing here.
#[expect(clippy::many_single_char_names, reason = "the standard's own names")]
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(8 * message.len() as u64).to_be_bytes());
    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        for i in 16..80 {
            words[i] = (words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (i, word) in words.iter().enumerate() {
            let (f, k) = match i {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (into, from) in state.iter_mut().zip([a, b, c, d, e]) {
            *into = into.wrapping_add(from);
        }
    }
    let mut digest = [0; 20];
    for (into, word) in digest.chunks_exact_mut(4).zip(state) {
        into.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for sextet in 0..4 {
            let index = (word >> (18 - 6 * sextet)) as usize & 63;
            text.push(if sextet <= group.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    text
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
