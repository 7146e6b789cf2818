//! WebSocket frames (RFC 6455 section 5), right and wrong ones.

/// What a client writes. Right by default; each field can be made wrong.
#[derive(Debug, Clone)]
pub(crate) struct Frame<'a> {
    /// The first byte: FIN, reserved bits, opcode.
    pub(crate) first: u8,
    /// Whether the payload is masked, as each frame of a client must be.
    pub(crate) masked: bool,
    /// The payload.
    pub(crate) payload: &'a [u8],
    /// The length that the head claims, if not the payload's.
    pub(crate) claimed: Option<u64>,
}

/// FIN.
pub(crate) const FIN: u8 = 0x80;
/// Opcodes.
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

impl<'a> Frame<'a> {
    /// A whole, masked frame.
    pub(crate) fn of(opcode: u8, payload: &'a [u8]) -> Self {
        Self { first: FIN | opcode, masked: true, payload, claimed: None }
    }

    /// A masked frame with this first byte: a fragment, or one with reserved bits.
    pub(crate) fn raw(first: u8, payload: &'a [u8]) -> Self {
        Self { first, masked: true, payload, claimed: None }
    }

    /// The frame's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mask_bit = if self.masked { 0x80 } else { 0 };
        let mut bytes = vec![self.first];
        let length = self.claimed.unwrap_or(self.payload.len() as u64);
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short), _) if short < 126 => bytes.push(mask_bit | short),
            (_, Ok(medium)) => {
                bytes.push(mask_bit | 126);
                bytes.extend_from_slice(&medium.to_be_bytes());
            }
            _ => {
                bytes.push(mask_bit | 127);
                bytes.extend_from_slice(&length.to_be_bytes());
            }
        }
        if self.masked {
            bytes.extend_from_slice(&MASK);
            bytes.extend(self.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            bytes.extend_from_slice(self.payload);
        }
        bytes
    }
}

/// A close frame's payload.
pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// Reads a server's frame from the front of `bytes`: opcode, payload, length of the whole. None while it is not
/// complete. Panics at what a server must not send: masks, fragments, reserved bits.
pub(crate) fn parse_server_frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (&first, rest) = bytes.split_first()?;
    let (&second, rest) = rest.split_first()?;
    assert_eq!(first & 0xf0, FIN, "a server frame is whole and has no reserved bits: {first:#04x}");
    assert_eq!(second & 0x80, 0, "a server frame is not masked");
    let (length, head) = match second {
        126 => (usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let payload = bytes.get(head..head + length)?.to_vec();
    Some((first & 0x0f, payload, head + length))
}
