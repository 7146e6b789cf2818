//! Frames as a server writes them: never masked (RFC 6455 section 5.1), so the same bytes serve every socket.

use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload};

/// The longest head of an unmasked frame; fastwebsockets formats into this much.
const HEAD_BYTES_MAX: usize = 16;

/// Appends a whole frame to `buffer`.
pub(super) fn append(buffer: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let mut head = [0; HEAD_BYTES_MAX];
    let head_bytes = Frame::new(true, opcode, None, Payload::Borrowed(payload)).fmt_head(&mut head);
    buffer.extend_from_slice(&head[..head_bytes]);
    buffer.extend_from_slice(payload);
}

/// One whole frame.
pub(super) fn encode(opcode: OpCode, payload: &[u8]) -> Bytes {
    let mut buffer = Vec::with_capacity(HEAD_BYTES_MAX + payload.len());
    append(&mut buffer, opcode, payload);
    buffer.into()
}

/// One text frame.
pub(super) fn text(text: &str) -> Bytes {
    encode(OpCode::Text, text.as_bytes())
}

/// A close frame; `reason` is at most 123 bytes, which the table of close codes guarantees.
pub(super) fn close(code: u16, reason: &str) -> Bytes {
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    encode(OpCode::Close, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_by_length() {
        let head = |len: usize| encode(OpCode::Text, &vec![b'x'; len])[..4].to_vec();
        assert_eq!(head(2), [0x81, 2, b'x', b'x']);
        assert_eq!(head(125), [0x81, 125, b'x', b'x']);
        assert_eq!(head(126), [0x81, 126, 0, 126]);
        assert_eq!(head(65_536), [0x81, 127, 0, 0]);
        assert_eq!(&close(1000, "")[..], [0x88, 2, 0x03, 0xe8]);
        assert_eq!(&text("ok")[..], [0x81, 2, b'o', b'k']);
    }
}
