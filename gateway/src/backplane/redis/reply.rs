//! What Redis answered, turned into the domain's words or into the error that says which part it did not keep.
//!
//! Scripts answer with flat arrays of words and numbers, read from left to right. Nothing here panics on a reply of
//! another shape: another release of this program, or somebody with `redis-cli`, may have written it.

use bytes::Bytes;
use fred::error::{Error, ErrorKind};
use fred::types::Value;

use crate::backplane::{BackplaneError, Result};

/// A reply that no script of this release gives.
pub(super) const ODD_REPLY: BackplaneError = BackplaneError::Corrupt("a reply has another shape than it must have");

/// What stands in the place of an address's counts is something else.
pub(super) const CORRUPT_ADDRESS: &str = "key ip: not a hash of counts";

/// What scripts name when they find a key that breaks the contract, and what operators are told.
const CORRUPT: [(&str, &str); 13] = [
    ("events", "key events: not a stream"),
    ("visitors", "key visitors: not a sorted set"),
    ("snapshot", "key snapshot: not a snapshot"),
    ("ticker", "key ticker: not a lease"),
    ("nodes", "key nodes: not a sorted set"),
    ("touched", "key touched: not a hash"),
    ("generation", "key generation: not a string"),
    ("themes", "key themes: not a hash of counts"),
    ("salt", "key salt: not a salt"),
    ("ip", CORRUPT_ADDRESS),
    ("published", "key published: not a hash of numbers, times and ids"),
    ("told", "key told: not a hash of numbers and times"),
    ("schema", "key schema: not a version"),
];

/// Beginnings of refusals that mean: not now, try again. The server is loading, is no primary (any more), is out of
/// memory, or runs a script that is not ours for too long.
const NOT_NOW: [&str; 10] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "OOM",
    "UNBLOCKED",
];

/// The domain's word for an error of the client library or of Redis.
pub(super) fn error(error: &Error) -> BackplaneError {
    match error.kind() {
        ErrorKind::Timeout => BackplaneError::Timeout,
        ErrorKind::Backpressure => BackplaneError::Backpressure,
        ErrorKind::Protocol | ErrorKind::Parse | ErrorKind::NotFound => ODD_REPLY,
        _ => refusal(error.details()),
    }
}

/// Why Redis itself refused, in a fixed word or text; none when it did not, but was out of reach.
pub(super) fn refused_for(error: &Error, meaning: &BackplaneError) -> Option<&'static str> {
    match meaning {
        BackplaneError::Corrupt(reason) | BackplaneError::Incompatible(reason) => Some(reason),
        BackplaneError::Unreachable => {
            let word = error.details().split_whitespace().next()?;
            NOT_NOW.into_iter().find(|known| *known == word)
        }
        BackplaneError::Timeout | BackplaneError::Backpressure => None,
    }
}

/// What it means that a script found this key to break the contract.
pub(super) fn corrupt(name: &str) -> BackplaneError {
    let known = CORRUPT.iter().find(|(key, _)| *key == name);
    known.map_or(ODD_REPLY, |(_, reason)| BackplaneError::Corrupt(reason))
}

fn refusal(details: &str) -> BackplaneError {
    let mut words = details.split_whitespace();
    match words.next().unwrap_or_default() {
        "CORRUPT" => corrupt(words.next().unwrap_or_default()),
        "WRONGTYPE" => BackplaneError::Corrupt("a key holds a value of another type"),
        "NOPERM" => BackplaneError::Corrupt("the Redis user lacks a permission"),
        word if NOT_NOW.contains(&word) => BackplaneError::Unreachable,
        // What Redis itself says about a command that it cannot carry out. All else is the library's: no connection.
        "ERR" if details.contains("exhausted the last possible ID") => {
            BackplaneError::Corrupt("key events: there is no id above that of its last entry")
        }
        "ERR" => ODD_REPLY,
        _ => BackplaneError::Unreachable,
    }
}

/// The values of a reply, from left to right.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn new(value: Value) -> Self {
        let values = match value {
            Value::Array(values) => values,
            Value::Null => Vec::new(),
            one => vec![one],
        };
        Self(values.into_iter())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    pub(super) fn value(&mut self) -> Result<Value> {
        self.0.next().ok_or(ODD_REPLY)
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes> {
        self.value()?.into_bytes().ok_or(ODD_REPLY)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        self.value()?.into_string().ok_or(ODD_REPLY)
    }

    pub(super) fn number<N: TryFrom<u64>>(&mut self) -> Result<N> {
        let number = self.value()?.as_u64().ok_or(ODD_REPLY)?;
        N::try_from(number).map_err(|_| ODD_REPLY)
    }

    pub(super) fn parse<T: std::str::FromStr>(&mut self) -> Result<T> {
        self.text()?.parse().map_err(|_| ODD_REPLY)
    }
}

/// Bytes in hex, as keys hold them.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that [`hex`] wrote; none for anything else.
pub(super) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_asks_for_one_reaction() {
        let check = |kind: ErrorKind, details: &'static str, want: BackplaneError| {
            assert_eq!(error(&Error::new(kind, details)), want, "{details}");
        };
        check(ErrorKind::Timeout, "", BackplaneError::Timeout);
        check(ErrorKind::Backpressure, "", BackplaneError::Backpressure);
        check(ErrorKind::IO, "Connection reset by peer", BackplaneError::Unreachable);
        check(ErrorKind::Canceled, "Canceled.", BackplaneError::Unreachable);
        check(ErrorKind::Unknown, "LOADING Redis is loading", BackplaneError::Unreachable);
        check(ErrorKind::Unknown, "READONLY You can't write", BackplaneError::Unreachable);
        check(ErrorKind::Unknown, "OOM command not allowed script: 1, on @user_script:2.", BackplaneError::Unreachable);
        check(ErrorKind::Auth, "WRONGPASS invalid username-password pair", BackplaneError::Unreachable);
        let corrupt = BackplaneError::Corrupt;
        check(ErrorKind::Unknown, "NOPERM no permissions", corrupt("the Redis user lacks a permission"));
        check(ErrorKind::InvalidArgument, "WRONGTYPE Operation", corrupt("a key holds a value of another type"));
        check(ErrorKind::Unknown, "CORRUPT ticker script: 1", corrupt("key ticker: not a lease"));
        check(ErrorKind::Unknown, "CORRUPT nonsense", ODD_REPLY);
        let exhausted = "ERR The stream has exhausted the last possible ID, unable to add more items script: 1";
        check(ErrorKind::Unknown, exhausted, corrupt("key events: there is no id above that of its last entry"));
        check(ErrorKind::Unknown, "ERR user_script:1: attempt to index", ODD_REPLY);
    }

    #[test]
    fn operators_are_told_of_every_key_that_a_script_looks_at() {
        let scripts = [
            include_str!("scripts/prelude.lua"),
            include_str!("scripts/admit.lua"),
            include_str!("scripts/beat.lua"),
            include_str!("scripts/leave.lua"),
            include_str!("scripts/publish.lua"),
            include_str!("scripts/salts.lua"),
            include_str!("scripts/set_counts.lua"),
            include_str!("scripts/tick.lua"),
            include_str!("scripts/touch.lua"),
        ];
        // The last argument of each call is the key's name.
        let name = |call: &'static str| call.split(')').next()?.split('\'').rev().nth(1);
        let calls = |script: &'static str| ["corrupt(", "expect("].map(|function| script.split(function).skip(1));
        let names = scripts.into_iter().flat_map(calls).flatten().filter_map(name);
        let names: std::collections::BTreeSet<_> = names.collect();
        assert!(names.contains("told"), "{names:?}");
        for name in names {
            assert_ne!(corrupt(name), ODD_REPLY, "{name}");
        }
    }

    #[test]
    fn what_redis_refuses_has_a_reason_and_what_is_out_of_reach_has_none() {
        let reason = |details: &'static str| {
            let error = Error::new(ErrorKind::Unknown, details);
            refused_for(&error, &super::error(&error))
        };
        assert_eq!(reason("OOM command not allowed when used memory > 'maxmemory'."), Some("OOM"));
        assert_eq!(reason("CORRUPT ticker script: 1"), Some("key ticker: not a lease"));
        assert_eq!(reason("Connection reset by peer"), None);
        assert_eq!(reason(""), None);
    }

    #[test]
    fn a_reply_of_another_shape_is_an_error() {
        let mut reply = Reply::new(Value::Array(vec![Value::Integer(-1), Value::Null, Value::Array(vec![])]));
        assert_eq!(reply.number::<u64>(), Err(ODD_REPLY));
        assert_eq!(reply.text(), Err(ODD_REPLY));
        assert_eq!(reply.bytes(), Err(ODD_REPLY));
        assert_eq!(reply.text(), Err(ODD_REPLY));
        assert_eq!(Reply::new(Value::Integer(300)).number::<u8>(), Err(ODD_REPLY));
    }

    #[test]
    fn hex_has_one_spelling() {
        assert_eq!(parse_hex::<2>(&hex(&[0x0f, 0xa0])), Some([0x0f, 0xa0]));
        for bad in ["", "0fa", "0FA0", "0fa0b", "+fa0", "0ä"] {
            assert_eq!(parse_hex::<2>(bad), None, "{bad:?}");
        }
    }
}
