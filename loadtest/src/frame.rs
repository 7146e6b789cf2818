//! Client's side of RFC 6455 framing: reads what a server may send, writes what a client must.
//!
//! Pure: bytes in, frames out. It is stricter than a browser, because it judges the server: reserved bits, masked
//! frames and fragments are findings, not something to be lenient about (the gateway never fragments). Deliberately
//! absent: unpredictable masks. They protect proxies from scripts in browsers; here nobody attacks anybody.

use std::ops::Range;

/// The longest payload that a server of ours may send.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = 1 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        [Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong].into_iter().find(|opcode| opcode.bits() == bits)
    }

    fn bits(self) -> u8 {
        match self {
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }
}

/// A whole frame at the beginning of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: Opcode,
    /// Where its payload lies.
    pub(crate) payload: Range<usize>,
}

/// What no server may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameError {
    Masked,
    ReservedBits,
    UnknownOpcode,
    Fragmented,
    TooLong,
    /// A length in more bytes than it needs.
    LongLength,
    /// A control frame of more than 125 bytes.
    LongControl,
}

impl FrameError {
    /// For the report.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Masked => "a masked frame",
            Self::ReservedBits => "reserved bits set",
            Self::UnknownOpcode => "an unknown opcode",
            Self::Fragmented => "a fragmented message",
            Self::TooLong => "a frame above 1 MiB",
            Self::LongLength => "a length in more bytes than needed",
            Self::LongControl => "a control frame above 125 bytes",
        }
    }
}

/// Reads the frame at the beginning of `bytes`; `None` when it is not whole yet. Its bytes end where its payload does.
///
/// # Errors
/// [`FrameError`] when no server may send this.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBits);
    }
    if first & 0x80 == 0 || first & 0x0f == 0 {
        return Err(FrameError::Fragmented);
    }
    if second & 0x80 != 0 {
        return Err(FrameError::Masked);
    }
    let opcode = Opcode::from_bits(first & 0x0f).ok_or(FrameError::UnknownOpcode)?;
    let (length, head) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 4),
        (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 10),
        (126 | 127, _) => return Ok(None),
        (short, _) => (u64::from(short), 2),
    };
    let needed = if length < 126 {
        2
    } else if length <= 0xffff {
        4
    } else {
        10
    };
    if head != needed {
        return Err(FrameError::LongLength);
    }
    if length > 125 && matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong) {
        return Err(FrameError::LongControl);
    }
    let length = usize::try_from(length).ok().filter(|_| length <= PAYLOAD_BYTES_MAX).ok_or(FrameError::TooLong)?;
    let end = head + length;
    Ok((bytes.len() >= end).then_some(Frame { opcode, payload: head..end }))
}

/// Appends a masked frame. `payload` has at most 125 bytes: all that this client has to say.
pub(crate) fn write(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    debug_assert!(payload.len() <= 125);
    let payload = &payload[..payload.len().min(125)];
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    #[expect(clippy::cast_possible_truncation, reason = "at most 125")]
    let length = payload.len() as u8;
    out.extend_from_slice(&[0x80 | opcode.bits(), 0x80 | length]);
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends a frame as a server sends it.
pub(crate) fn write_unmasked(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    out.push(0x80 | opcode.bits());
    let length = payload.len();
    if let Some(short) = u8::try_from(length).ok().filter(|short| *short < 126) {
        out.push(short);
    } else if let Ok(middle) = u16::try_from(length) {
        out.push(126);
        out.extend_from_slice(&middle.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// Code and reason of a close frame's payload; 1005 (RFC 6455 section 7.1.5) when it has none.
pub(crate) fn close_reason(payload: &[u8]) -> (u16, String) {
    match payload {
        [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), String::from_utf8_lossy(reason).into_owned()),
        _ => (1005, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_server(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_unmasked(&mut bytes, opcode, payload);
        bytes
    }

    #[test]
    fn what_no_server_may_send_is_told() {
        let check = |bytes: &[u8], want: FrameError| assert_eq!(parse(bytes), Err(want), "{bytes:02x?}");
        check(&[0x81, 0x80, 1, 2, 3, 4], FrameError::Masked);
        check(&[0xc1, 0x00], FrameError::ReservedBits);
        check(&[0x83, 0x00], FrameError::UnknownOpcode);
        check(&[0x01, 0x01, b'x'], FrameError::Fragmented);
        check(&[0x80, 0x01, b'x'], FrameError::Fragmented);
        check(&[0x81, 126, 0, 125], FrameError::LongLength);
        check(&[0x81, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], FrameError::LongLength);
        check(&[0x89, 126, 0, 126], FrameError::LongControl);
        check(&[0x81, 127, 0, 0, 0, 0, 1, 0, 0, 0], FrameError::TooLong);
        check(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0], FrameError::TooLong);
    }

    #[test]
    fn writes_the_example_of_rfc_6455() {
        let mut out = Vec::new();
        write(&mut out, Opcode::Text, b"Hello");
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }

    #[test]
    fn close_payloads() {
        assert_eq!(close_reason(b""), (1005, String::new()));
        assert_eq!(close_reason(b"\x03"), (1005, String::new()));
        assert_eq!(close_reason(b"\x03\xf4bye"), (1012, "bye".to_owned()));
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_bytes_are_cut(
            payloads in prop::collection::vec((0usize..70_000, any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let payloads: Vec<Vec<u8>> = payloads.into_iter().map(|(length, byte)| vec![byte; length]).collect();
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| from_server(Opcode::Text, payload)).collect();
            let cut = cut.index(bytes.len());
            let (mut buffer, mut found) = (Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(frame) = parse(&buffer).expect("a good server") {
                    found.push(buffer[frame.payload.clone()].to_vec());
                    buffer.drain(..frame.payload.end);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(found, payloads);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            if let Ok(Some(frame)) = parse(&bytes) { prop_assert!(frame.payload.end <= bytes.len()); }
            close_reason(&bytes);
        }
    }
}
