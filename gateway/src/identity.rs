//! Who a visitor is and where a socket comes from, reduced to hashes before anybody else hears of it.
//!
//! The node must recognise one visitor behind several sockets and events, and several sockets behind one address,
//! on every node of the cluster; and nobody who reads Redis, logs or metrics may learn who that was. A plain hash
//! would not do: there are only 2^32 IPv4 addresses, so it is reversed by trying them all. Hence two steps:
//!
//! 1. A [`VisitorDigest`] stands for the visitor inside this process: 16 bytes per socket, kept in memory only.
//! 2. What leaves the process is an HMAC of it under the day's salt ([`visitor_hash`]): the same on all nodes, not to
//!    be linked with the next day's, and worthless once the salt has expired. Addresses are keyed by the cluster's
//!    secret instead ([`address_hash`]): caps must hold across midnight.
//!
//! An IPv6 client owns a /64 and may change the rest at will (RFC 8981), so a /64 counts as one address throughout; an
//! IPv4-mapped address is the IPv4 address that it stands for.
//!
//! Deliberately absent: any way back, and any `Debug` that shows a digest.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use shared::field::VisitorId;

use crate::backplane::{AddressHash, Salt, VisitorHash};

/// A visitor within this process: a hash of its own id, or of its address and User-Agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VisitorDigest(pub [u8; 16]);

// Inv. PRIVATE: the digest of an address can be reversed by trying all of them, so it is never printed.
impl fmt::Debug for VisitorDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VisitorDigest(…)")
    }
}

impl VisitorDigest {
    /// Of a visitor whom a producer or the socket itself named.
    #[must_use]
    pub fn of_id(id: &VisitorId) -> Self {
        Self::of(b"id\0", &[id.as_str().as_bytes()])
    }

    /// Of a visitor who is known by nothing but address and browser. `ip` has passed [`normalise`].
    #[must_use]
    pub fn of_client(ip: IpAddr, user_agent: Option<&[u8]>) -> Self {
        let (address, len) = counted_part(ip);
        Self::of(b"client\0", &[&address[..len], user_agent.unwrap_or_default()])
    }

    /// `space` keeps the two kinds apart: nobody can name himself like somebody else's address.
    fn of(space: &[u8], parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new_with_prefix(space);
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(first_half(hash.finalize().into()))
    }
}

/// What stands for the visitor in the backplane: HMAC-SHA256 under the day's salt, cut to 128 bits.
#[must_use]
pub fn visitor_hash(salt: &Salt, visitor: &VisitorDigest) -> VisitorHash {
    VisitorHash(keyed(&salt.0, &visitor.0))
}

/// What stands for an address in the backplane: HMAC-SHA256 under the cluster's secret, cut to 128 bits. An IPv4
/// address counts whole, an IPv6 address by its /64.
#[must_use]
pub fn address_hash(secret: &[u8; 32], ip: IpAddr) -> AddressHash {
    let (address, len) = counted_part(ip);
    AddressHash(keyed(secret, &address[..len]))
}

/// The address itself, or the IPv4 address that an IPv4-mapped one (`::ffff:192.0.2.1`) stands for.
#[must_use]
pub fn normalise(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// The address as it counts: an IPv4 address whole, an IPv6 address by its /64.
#[must_use]
pub fn counted(ip: IpAddr) -> IpAddr {
    match normalise(ip) {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// The bytes of an address by which it counts, and how many they are: all of IPv4, written
/// as an IPv4-mapped one, or the first eight of IPv6.
fn counted_part(ip: IpAddr) -> ([u8; 16], usize) {
    match normalise(ip) {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped().octets(), 16),
        IpAddr::V6(ip) => (ip.octets(), 8),
    }
}

fn keyed(key: &[u8], message: &[u8]) -> [u8; 16] {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length (RFC 2104 section 2)")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    mac.update(message);
    first_half(mac.finalize().into_bytes().into())
}

fn first_half(hash: [u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| hash[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn id(text: &str) -> VisitorId {
        VisitorId::parse("visitor", text).expect("an id")
    }

    #[test]
    fn one_address_has_one_hash_and_another_has_another() {
        let check = |a: &str, b: &str, same: bool| {
            let secret = [7; 32];
            assert_eq!(address_hash(&secret, ip(a)) == address_hash(&secret, ip(b)), same, "{a} {b}");
            let digest = |text| VisitorDigest::of_client(normalise(ip(text)), Some(b"Firefox"));
            assert_eq!(digest(a) == digest(b), same, "{a} {b}");
        };
        check("192.0.2.1", "::ffff:192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
        check("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true);
        check("2001:db8:0:1::1", "2001:db8:0:2::1", false);
        // The IPv4-mapped range is all in one /64, which must not make all of IPv4 one address.
        check("192.0.2.1", "::1", false);
    }

    #[test]
    fn another_key_gives_another_hash() {
        assert_ne!(address_hash(&[1; 32], ip("192.0.2.1")), address_hash(&[2; 32], ip("192.0.2.1")));
        let visitor = VisitorDigest::of_id(&id("v"));
        assert_ne!(visitor_hash(&Salt([1; 16]), &visitor), visitor_hash(&Salt([2; 16]), &visitor));
    }

    #[test]
    fn parts_and_kinds_are_kept_apart() {
        let client = |agent: Option<&[u8]>| VisitorDigest::of_client(ip("192.0.2.1"), agent);
        assert_ne!(client(Some(b"a")), client(Some(b"b")));
        assert_eq!(client(None), client(Some(b"")));
        assert_ne!(VisitorDigest::of_id(&id("a")), VisitorDigest::of_id(&id("b")));
        assert_ne!(VisitorDigest::of_id(&id("192.0.2.1")), client(None));
    }

    // All nodes of a cluster, also of different releases, must agree on these; the values were computed with Python's
    // hashlib and hmac.
    #[test]
    fn the_hashes_are_the_contract() {
        let hex = |bytes: [u8; 16]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let visitor = VisitorDigest::of_id(&id("visitor-1"));
        assert_eq!(hex(visitor.0), "2680e252606b4ccaa21ca465b73dde98");
        assert_eq!(
            hex(VisitorDigest::of_client(ip("192.0.2.1"), Some(b"curl/8")).0),
            "3be9dda6b9efd131829110cbc0492306"
        );
        assert_eq!(visitor_hash(&Salt([3; 16]), &visitor).to_string(), "16109f27c8846f2b465611aeb74eab15");
        assert_eq!(address_hash(&[7; 32], ip("192.0.2.1")).to_string(), "552afffb88694bf7be1a2797e1397885");
        assert_eq!(address_hash(&[7; 32], ip("2001:db8:0:1::1")).to_string(), "af1f0aaba3616247e675c1cacd5bb718");
    }

    // Inv. PRIVATE
    #[test]
    fn a_digest_does_not_show_itself() {
        let digest = VisitorDigest([0xab; 16]);
        assert_eq!(format!("{digest:?}"), "VisitorDigest(…)");
    }
}
