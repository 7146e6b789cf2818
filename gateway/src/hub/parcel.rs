//! Frames that are written together, and where each ends.

use bytes::Bytes;
use fastwebsockets::OpCode;

use super::frame;
use super::outbox::Content;

/// Where a frame of a parcel ends, and what it carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Offset behind its last byte.
    pub(super) end: usize,
    pub(super) content: Content,
}

/// One or more whole frames, encoded once and written to many sockets in one go each.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    pub(super) bytes: Bytes,
    /// One per frame, in order.
    pub(super) marks: Box<[Mark]>,
    /// How many frames are messages.
    pub(super) messages: u64,
}

impl Parcel {
    /// A parcel of one frame.
    pub(super) fn single(bytes: Bytes, content: Content) -> Self {
        let messages = u64::from(content.is_message());
        let end = bytes.len();
        Self { bytes, marks: Box::new([Mark { end, content }]), messages }
    }

    /// A parcel of text messages.
    pub(super) fn of_texts<'a>(texts: impl IntoIterator<Item = (std::borrow::Cow<'a, str>, Content)>) -> Self {
        let mut buffer = Vec::new();
        let mut marks = Vec::new();
        for (text, content) in texts {
            frame::append(&mut buffer, OpCode::Text, text.as_bytes());
            marks.push(Mark { end: buffer.len(), content });
        }
        let messages = marks.len() as u64;
        Self { bytes: buffer.into(), marks: marks.into(), messages }
    }

    /// The same with one more frame behind.
    pub(super) fn followed_by(&self, frame: &[u8], content: Content) -> Self {
        let bytes: Bytes = [&self.bytes[..], frame].concat().into();
        let marks = self.marks.iter().copied().chain([Mark { end: bytes.len(), content }]).collect();
        Self { bytes, marks, messages: self.messages + u64::from(content.is_message()) }
    }

    /// What is left of the frame that is out in part when `written` bytes are.
    pub(super) fn half_at(&self, written: usize) -> Option<(Bytes, Content)> {
        let mut start = 0;
        for mark in &self.marks {
            if start < written && written < mark.end {
                return Some((self.bytes.slice(written..mark.end), mark.content));
            }
            start = mark.end;
        }
        None
    }

    /// How many messages lie wholly within the first `written` bytes.
    pub(super) fn messages_within(&self, written: usize) -> u64 {
        if written == self.bytes.len() {
            return self.messages;
        }
        let whole = self.marks.iter().take_while(|mark| mark.end <= written);
        whole.filter(|mark| mark.content.is_message()).count() as u64
    }
}
