//! Identifiers as types: each parses or refuses, so that a string which was checked once is not a string any more.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The text is not an identifier of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct IdError(&'static str);

/// The id of a stream entry, as Redis writes it: milliseconds, a dash, a sequence number. Ordered like the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    /// Unix milliseconds of the Redis server that added the entry.
    pub ms: u64,
    /// Distinguishes entries of one millisecond.
    pub seq: u64,
}

impl StreamId {
    /// Lies before every entry: reading after it reads the stream from its beginning.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for StreamId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (ms, seq) = text.split_once('-').ok_or(IdError("stream id"))?;
        Ok(Self { ms: decimal(ms, "stream id")?, seq: decimal(seq, "stream id")? })
    }
}

/// Only what `u64`'s `Display` writes: no sign, no leading zero, so that an id has one spelling.
fn decimal(text: &str, what: &'static str) -> Result<u64, IdError> {
    let canonical = text == "0" || (text.starts_with(|c: char| matches!(c, '1'..='9')));
    if !canonical || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(IdError(what));
    }
    text.parse().map_err(|_| IdError(what))
}

/// Sixteen bits over an entry's type and data: tells an entry from another one that a failover or a lost data set
/// put at the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryDigest(u16);

impl EntryDigest {
    /// The digest of a stream entry with these `type` and `data` fields.
    #[must_use]
    pub fn of(kind: &str, data: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(kind.as_bytes());
        hash.update([0]);
        hash.update(data);
        let sum = hash.finalize();
        Self(u16::from_be_bytes([sum[0], sum[1]]))
    }
}

impl fmt::Display for EntryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// What a client with `ids=1` sees in a message's `id` and may give back as `last_event_id`: opaque to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId {
    /// Where in the stream.
    pub stream: StreamId,
    /// Which entry it was that stood there.
    pub digest: EntryDigest,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.stream, self.digest)
    }
}

impl FromStr for EventId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (stream, digest) = text.rsplit_once('-').ok_or(IdError("event id"))?;
        let lower_hex = digest.len() == 4 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !lower_hex {
            return Err(IdError("event id"));
        }
        let digest = u16::from_str_radix(digest, 16).map_err(|_| IdError("event id"))?;
        Ok(Self { stream: stream.parse().map_err(|_| IdError("event id"))?, digest: EntryDigest(digest) })
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One start of one gateway process. Random: a restarted process is another node, and cannot be mistaken for the
/// one whose sockets died with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// The node id made of these random bits.
    #[must_use]
    pub fn from_random(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let lower_hex = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !lower_hex {
            return Err(IdError("node id"));
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| IdError("node id"))
    }
}

/// A socket of this process; never used twice within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which reign of a ticker; grows with each change of holder, so that Redis can refuse what a former one sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tick interval, named by its first millisecond (Unix time of Redis); at most one snapshot belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Slot(pub u64);

impl Slot {
    /// The slot in which `unix_ms` lies. `interval_ms` must not be 0; configuration refuses it.
    #[must_use]
    pub fn containing(unix_ms: u64, interval_ms: u64) -> Self {
        Self(unix_ms - unix_ms % interval_ms.max(1))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        for text in ["", "-", "1", "1-", "-1", "01-0", "1-00", "+1-0", "1-0-0", " 1-0", "18446744073709551616-0"] {
            assert!(text.parse::<StreamId>().is_err(), "{text:?}");
        }
        for text in ["", "1-0", "1-0-abc", "1-0-ABCD", "1-0-abcde", "01-0-abcd", "1-0-ab_d", "1--abcd"] {
            assert!(text.parse::<EventId>().is_err(), "{text:?}");
        }
        for text in ["", "0123456789abcde", "0123456789ABCDEF", "+123456789abcdef"] {
            assert!(text.parse::<NodeId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn type_and_data_both_count() {
        let base = EntryDigest::of("new_event", b"{}");
        assert_ne!(base, EntryDigest::of("new_event", b"{ }"));
        assert_ne!(base, EntryDigest::of("theme_stats", b"{}"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ms: u64, seq: u64, data: Vec<u8>, node: u64) {
            let stream = StreamId { ms, seq };
            prop_assert_eq!(stream.to_string().parse(), Ok(stream));
            let id = EventId { stream, digest: EntryDigest::of("t", &data) };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let node = NodeId::from_random(node);
            prop_assert_eq!(node.to_string().parse(), Ok(node));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text: String) {
            // Reaching the end is the assertion; a text that parses must be the canonical one.
            if let Ok(id) = text.parse::<EventId>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<StreamId>() { prop_assert_eq!(id.to_string(), text); }
        }
    }
}
