//! As much of a WebSocket as a log tail needs: the handshake's answer, unmasked text and close
//! frames of a server (RFC 6455, sections 4.2.2 and 5.2), and a client's answer to a closure.
//!
//! Ray's proxy only ever writes on a tail until it closes it, which is why it does not notice
//! that a client left. Frames are told apart as they pass: a tunnel only needs to know where one ends (to put in
//! a Close of its own) and whether a Close has passed; a shared tail takes the messages out of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::UPGRADE;
use sha1_smol::Sha1;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;

/// Whether these headers ask for a WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
pub fn accept(key: &[u8]) -> String {
    // The handshake asks for SHA-1 by name; it protects nothing here.
    let mut digest = Sha1::new();
    digest.update(key);
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest.digest().bytes())
}

/// A whole text message in one frame.
pub fn text_frame(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes())
}

/// The purpose is fulfilled (RFC 6455, 7.4.1).
pub const NORMAL: u16 = 1000;
/// This end is going down: ask again elsewhere, or later.
pub const GOING_AWAY: u16 = 1001;

/// A server's Close, and why.
pub fn close_frame(code: u16) -> Vec<u8> {
    control_frame(CLOSE, &code.to_be_bytes())
}

/// A server's control frame.
pub fn control_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x80 | opcode, payload)
}

/// A client's answer to a control frame of its server: the same payload. The mask keeps strangers from choosing
/// what intermediaries see; what the server itself has just sent needs no hiding, so it is zero.
pub fn answer_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = control_frame(opcode, payload);
    frame[1] |= 0x80;
    frame.splice(2..2, [0; 4]);
    frame
}

/// The opcode of a wish to close (RFC 6455, 5.5.1).
pub const CLOSE: u8 = 8;
/// The opcode of a ping, which asks for ...
pub const PING: u8 = 9;
/// ... a pong with the same payload.
pub const PONG: u8 = 10;
/// The opcode of a frame that goes on with a message.
pub const CONTINUATION: u8 = 0;

/// How long an end that has been sent a Close may take to answer it before its connection is ended
/// anyway; as long as aiohttp waits, and with it Ray.
pub const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// The largest payload of a control frame.
const CONTROL_MAX: u64 = 125;

/// What passes in a stream of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part<'a> {
    /// Payload of a message, or some of it, as it stands on the wire.
    Data {
        /// The message's opcode: text or binary.
        kind: u8,
        /// Whether the message begins here.
        opens: bool,
        /// The payload; masked, if its frame is.
        bytes: &'a [u8],
        /// Whether the message ends here.
        ends: bool,
    },
    /// A control frame: its opcode and its payload, unmasked.
    Control(u8, &'a [u8]),
}

/// Tells frames apart as they pass in pieces: where one ends is the only place at which another may be put in.
#[derive(Debug, Default)]
pub struct Frames {
    /// What has come of a frame's head, its mask included.
    head: Vec<u8>,
    /// What is left of its payload.
    left: u64,
    /// Opcode and final bit of the frame whose payload passes.
    first: u8,
    mask: Option<[u8; 4]>,
    /// What has come of a control frame's payload.
    control: Vec<u8>,
    /// Opcode of the message under way.
    kind: u8,
    /// Nothing of it has been shown yet.
    opens: bool,
    /// A Close has passed whole.
    closed: bool,
}

impl Frames {
    /// These bytes pass.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.read(bytes, |_| {});
    }

    /// These bytes pass; `each` is shown what they are.
    pub fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Part<'_>)) {
        while let Some(&byte) = bytes.first() {
            if self.left == 0 {
                bytes = &bytes[1..];
                self.head.push(byte);
                let Some(length) = payload_len(&self.head) else { continue };
                (self.left, self.first) = (length, self.head[0]);
                self.mask =
                    self.head[1].ge(&0x80).then(|| self.head.last_chunk().copied().unwrap_or_default());
                self.head.clear();
                self.control.clear();
                self.payload(&[], true, &mut each);
            } else {
                let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                let (payload, rest) = bytes.split_at(passed);
                self.left -= passed as u64;
                bytes = rest;
                self.payload(payload, false, &mut each);
            }
        }
    }

    /// Payload of the frame under way passes; at its `head` there is none yet.
    fn payload(&mut self, bytes: &[u8], head: bool, each: &mut impl FnMut(Part<'_>)) {
        let (opcode, whole) = (self.first & 0x0f, self.left == 0);
        if opcode < CLOSE {
            if head && opcode != CONTINUATION {
                (self.kind, self.opens) = (opcode, true);
            }
            let ends = whole && self.first & 0x80 != 0;
            if ends || !bytes.is_empty() {
                let opens = std::mem::take(&mut self.opens);
                each(Part::Data { kind: self.kind, opens, bytes, ends });
            }
            return;
        }
        if (self.control.len() + bytes.len()) as u64 <= CONTROL_MAX {
            self.control.extend_from_slice(bytes);
        }
        if whole {
            if let Some(mask) = self.mask {
                self.control.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
            }
            self.closed |= opcode == CLOSE;
            each(Part::Control(opcode, &self.control));
        }
    }

    /// Whether a Close has passed whole.
    pub fn are_closed(&self) -> bool {
        self.closed
    }

    /// Whether the last frame has passed whole.
    pub fn are_whole(&self) -> bool {
        self.head.is_empty() && self.left == 0
    }
}

/// Waits until an end that was sent a Close has answered it (`heard`), has left (`listens` is over) or has taken too
/// long: until then its connection is to stay open.
pub async fn see_closed<T>(
    listens: Pin<&mut impl Future<Output = ()>>,
    mut heard: watch::Receiver<T>,
    has_closed: impl FnMut(&T) -> bool,
) {
    let answered = async {
        tokio::select! {
            _ = heard.wait_for(has_closed) => {}
            () = listens => {}
        }
    };
    // Past the bound it is ended unanswered.
    let _ = tokio::time::timeout(CLOSE_WAIT, answered).await;
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
    let mut frame = Vec::with_capacity(payload.len() + 10);
    put_frame(&mut frame, first, payload);
    frame
}

/// Appends a server's frame whose first byte (final bit and opcode) is `first`.
pub fn put_frame(frame: &mut Vec<u8>, first: u8, payload: &[u8]) {
    frame.push(first);
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
        assert_eq!(answer_frame(CLOSE, &NORMAL.to_be_bytes()), [0x88, 0x82, 0, 0, 0, 0, 3, 232]);
    }

    /// What passes, put together again: messages and control frames in order.
    fn told(stream: &[u8], cut: usize) -> Vec<(u8, Vec<u8>)> {
        let (mut frames, mut message, mut told) = (Frames::default(), Vec::new(), Vec::new());
        for piece in stream.chunks(cut) {
            frames.read(piece, |part| match part {
                Part::Data { kind, opens, bytes, ends } => {
                    assert!(!opens || message.is_empty());
                    message.extend_from_slice(bytes);
                    if ends {
                        told.push((kind, std::mem::take(&mut message)));
                    }
                }
                Part::Control(opcode, payload) => told.push((opcode, payload.to_vec())),
            });
        }
        told
    }

    #[test]
    fn messages_and_control_frames_are_told_apart_however_they_are_cut() {
        let mut stream = Vec::new();
        put_frame(&mut stream, 1, b"in three "); // a text, not ended
        put_frame(&mut stream, CONTINUATION, b"");
        put_frame(&mut stream, 0x80 | PING, b"between");
        put_frame(&mut stream, 0x80 | CONTINUATION, b"frames");
        stream.extend(text_frame(""));
        stream.extend([0x88, 0x85, 1, 2, 3, 4]); // 8 would do as a first byte of data: the opcode tells
        stream.extend([0x03 ^ 1, 0xe8 ^ 2, b'b' ^ 3, b'y' ^ 4, b'e' ^ 1]);
        for cut in 1..=stream.len() {
            let expected = [
                (PING, b"between".to_vec()),
                (1, b"in three frames".to_vec()),
                (1, Vec::new()),
                (CLOSE, [&NORMAL.to_be_bytes()[..], b"bye"].concat()),
            ];
            assert_eq!(told(&stream, cut), expected, "cut by {cut}");
        }
    }

    #[test]
    fn data_that_looks_like_a_close_is_none() {
        // A masked text whose bytes are those of a Close, cut so that they stand first in a piece.
        let text = [0x81, 0x84, 0, 0, 0, 0, 0x88, 0x02, 3, 232];
        let mut frames = Frames::default();
        frames.pass(&text[..6]);
        frames.pass(&text[6..]);
        assert!(frames.are_whole() && !frames.are_closed());
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
