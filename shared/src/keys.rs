//! The only place where a Redis name is built.
//!
//! Every key carries the hash tag `{prefix}`, so that all of them lie in one slot of a Redis Cluster and a script
//! may touch several. The pub/sub channel has none: channels have no slot, and its name is the producers' contract.

use std::fmt;

/// The names under one prefix (configuration: `GATEWAY_KEY_PREFIX`, default `analytics`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// The prefix is empty, too long, or holds a character that would change what is hashed to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key prefix is 1 to 64 of the characters A-Z a-z 0-9 _ . -")]
pub struct PrefixError;

/// The version of the Redis contract that this release speaks; a node runs beside versions that differ by one.
pub const SCHEMA_VERSION: u32 = 1;

impl Keys {
    /// The names under `prefix`.
    ///
    /// # Errors
    /// [`PrefixError`] when the prefix could not be a hash tag.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let fits = (1..=64).contains(&prefix.len());
        let plain = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if fits && plain { Ok(Self { prefix: prefix.to_owned() }) } else { Err(PrefixError) }
    }

    /// The prefix itself.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn key(&self, name: impl fmt::Display) -> String {
        format!("{{{}}}:{name}", self.prefix)
    }

    /// Stream: the one order of everything that is delivered.
    #[must_use]
    pub fn events(&self) -> String {
        self.key("events")
    }

    /// Pub/sub channel of producers that know nothing better.
    #[must_use]
    pub fn legacy_channel(&self) -> String {
        format!("{}:realtime", self.prefix)
    }

    /// Sorted set: visitor to last seen, in milliseconds.
    #[must_use]
    pub fn visitors(&self) -> String {
        self.key("visitors")
    }

    /// String: the last snapshot, for a node that starts.
    #[must_use]
    pub fn snapshot(&self) -> String {
        self.key("snapshot")
    }

    /// String: the ticker's lease.
    #[must_use]
    pub fn ticker(&self) -> String {
        self.key("ticker")
    }

    /// Sorted set: node to the end of its lease, in milliseconds.
    #[must_use]
    pub fn nodes(&self) -> String {
        self.key("nodes")
    }

    /// Hash: node to when it last refreshed its sockets' visitors, in milliseconds.
    #[must_use]
    pub fn touched(&self) -> String {
        self.key("touched")
    }

    /// String: random, tells whether this Redis still has its data.
    #[must_use]
    pub fn generation(&self) -> String {
        self.key("generation")
    }

    /// Hash: theme to its count.
    #[must_use]
    pub fn themes(&self) -> String {
        self.key("themes")
    }

    /// String: the visitor salt of a day (days since the Unix epoch).
    #[must_use]
    pub fn salt(&self, day: u64) -> String {
        self.key(format_args!("salt:{day}"))
    }

    /// String: the secret that keys the address hashes.
    #[must_use]
    pub fn secret(&self) -> String {
        self.key("secret")
    }

    /// Hash: node to its sockets of one address; `address` is the keyed hash in hex.
    #[must_use]
    pub fn address(&self, address: impl fmt::Display) -> String {
        self.key(format_args!("ip:{address}"))
    }

    /// Hash: process to the number of its newest statement about sockets, and when it came, in milliseconds.
    #[must_use]
    pub fn told(&self) -> String {
        self.key("told")
    }

    /// Hash: node to its last publish number and what came of it.
    #[must_use]
    pub fn published(&self) -> String {
        self.key("published")
    }

    /// String: version of the contract.
    #[must_use]
    pub fn schema(&self) -> String {
        self.key("schema")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_contract() {
        let keys = Keys::new("analytics").expect("a plain word");
        let names = [
            keys.events(),
            keys.legacy_channel(),
            keys.visitors(),
            keys.snapshot(),
            keys.ticker(),
            keys.nodes(),
            keys.touched(),
            keys.generation(),
            keys.themes(),
            keys.salt(20_000),
            keys.secret(),
            keys.address("ab12"),
            keys.told(),
            keys.published(),
            keys.schema(),
        ];
        let golden = "{analytics}:events analytics:realtime {analytics}:visitors {analytics}:snapshot \
            {analytics}:ticker {analytics}:nodes {analytics}:touched {analytics}:generation {analytics}:themes \
            {analytics}:salt:20000 {analytics}:secret {analytics}:ip:ab12 {analytics}:told \
            {analytics}:published {analytics}:schema";
        assert_eq!(names.join(" "), golden);
    }

    #[test]
    fn a_prefix_cannot_break_the_hash_tag() {
        for bad in ["", "a}b", "{a", "a b", "a:b", "ü", &"x".repeat(65)] {
            assert_eq!(Keys::new(bad), Err(PrefixError), "{bad:?}");
        }
    }
}
