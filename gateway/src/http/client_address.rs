//! Whose request is it? The address of the client behind any number of proxies.
//!
//! Caps and rates are per client address, so a client that may choose its address has no cap. `X-Forwarded-For` is
//! such a choice: everything in it was written by the client, except for what our own proxies appended. Taking the
//! left-most entry, as is common, believes the client. So:
//!
//! 1. The peer of the TCP connection is the client, unless it is one of the trusted proxies.
//! 2. Each proxy appends the address that it was contacted from. Hence the header is walked from the right, over
//!    all header lines joined, and trusted addresses are skipped: the first untrusted one was written by a trusted
//!    proxy and is the client. What lies left of it is hearsay.
//! 3. An entry that is no address ends the walk: who wrote it is not known, so nothing left of it counts. An empty
//!    entry is none either: a proxy that appends "nothing" must not make the client's own text count.
//! 4. If all are trusted (a request from inside), it is the left-most that the walk has reached, else the peer.
//!
//! Entries may carry a port and brackets, as some balancers write them (`192.0.2.1:4711`, `[2001:db8::1]:4711`,
//! `[2001:db8::1]`). Names, zones (`fe80::1%eth0`), `unknown` and obfuscated identifiers are no addresses.
//!
//! Where the PROXY protocol is on, its header takes the place of all this (see [`super::proxy_protocol`]).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use crate::identity::normalise;

/// The networks whose members may say for whom they speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Trusts the members of `networks`. An IPv4-mapped IPv6 network means the IPv4 one.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into_iter().map(unmapped).collect())
    }

    /// Whether `ip` is trusted.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = normalise(ip);
        self.0.iter().any(|network| network.contains(&ip))
    }
}

/// The IPv4 network that an IPv4-mapped one (`::ffff:10.0.0.0/104`) stands for; any other as it is.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4: Option<Ipv4Addr> = v6.addr().to_ipv4_mapped();
    let narrow = v6.prefix_len().checked_sub(96).and_then(|len| Ipv4Net::new(v4?, len).ok());
    narrow.map_or(network, IpNet::V4)
}

/// The client's address, normalised. `forwarded_for` are the values of the `X-Forwarded-For` lines in their order.
// Inv. CAP: a client cannot choose the address under which its sockets are counted.
pub fn client_address<'v>(
    peer: IpAddr,
    trusted: &TrustedProxies,
    forwarded_for: impl DoubleEndedIterator<Item = &'v [u8]>,
) -> IpAddr {
    let peer = normalise(peer);
    if !trusted.contains(peer) {
        return peer;
    }
    let mut client = peer;
    for entry in forwarded_for.rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
        let Some(ip) = parse_entry(entry) else { break };
        client = ip;
        if !trusted.contains(ip) {
            break;
        }
    }
    client
}

/// An address, with or without brackets and port.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6);
    let bare = || text.parse::<IpAddr>().ok();
    // `SocketAddr` would also read a zone (`[fe80::1%2]:80`), whose number means nothing outside of that proxy.
    let with_port = || text.parse::<SocketAddr>().ok().filter(|_| !text.contains('%')).map(|address| address.ip());
    bare().or_else(with_port).or_else(bracketed).map(normalise)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies() -> TrustedProxies {
        let networks = ["10.0.0.0/8", "127.0.0.1/32", "2001:db8:f::/48", "::ffff:172.16.0.0/108"];
        TrustedProxies::new(networks.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[track_caller]
    fn check(peer: &str, lines: &[&str], client: &str) {
        let found = client_address(peer.parse().unwrap(), &proxies(), lines.iter().map(|line| line.as_bytes()));
        assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
    }

    // Inv. CAP: no header of a peer that is not trusted changes anything.
    #[test]
    fn an_untrusted_peer_is_itself() {
        check("203.0.113.9", &[], "203.0.113.9");
        check("203.0.113.9", &["198.51.100.1"], "203.0.113.9");
        check("203.0.113.9", &["10.0.0.1", "127.0.0.1"], "203.0.113.9");
        check("::ffff:203.0.113.9", &["198.51.100.1"], "203.0.113.9");
        check("2001:db8::9", &["198.51.100.1"], "2001:db8::9");
    }

    #[test]
    fn the_right_most_untrusted_entry_is_the_client() {
        check("10.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["1.1.1.1, 198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["1.1.1.1,198.51.100.1 ,\t10.2.3.4"], "198.51.100.1");
        check("10.0.0.1", &["1.1.1.1, 198.51.100.1, 172.16.4.4, 10.2.3.4"], "198.51.100.1");
        // Several lines are one list.
        check("10.0.0.1", &["1.1.1.1", "198.51.100.1", "10.2.3.4"], "198.51.100.1");
        check("10.0.0.1", &["1.1.1.1, 198.51.100.1", "10.2.3.4, 10.2.3.5"], "198.51.100.1");
        check("2001:db8:f::1", &["2001:db8::7"], "2001:db8::7");
    }

    #[test]
    fn a_malformed_entry_ends_the_walk() {
        for bad in
            ["unknown", "", " ", "1.2.3", "1.2.3.4.5", "01.2.3.4", "_hidden", "fe80::1%eth0", "\"1.1.1.1\"", "1.1.1.1;"]
        {
            check("10.0.0.1", &[&format!("198.51.100.1, {bad}")], "10.0.0.1");
            check("10.0.0.1", &[&format!("198.51.100.1, {bad}, 10.9.9.9")], "10.9.9.9");
        }
        check("10.0.0.1", &[""], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.1", ""], "10.0.0.1");
    }

    #[test]
    fn all_trusted_means_the_left_most_one() {
        check("10.0.0.1", &["10.0.0.7, 10.0.0.8"], "10.0.0.7");
        check("127.0.0.1", &[], "127.0.0.1");
    }

    #[test]
    fn ports_and_brackets_are_taken_off() {
        check("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1");
        check("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1");
        check("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1");
        check("10.0.0.1", &["2001:db8::1"], "2001:db8::1");
        check("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["[198.51.100.1]"], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.1:99999"], "10.0.0.1");
        check("10.0.0.1", &["[fe80::1%2]:80"], "10.0.0.1");
    }

    fn lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let entry = prop_oneof![
            any::<[u8; 4]>().prop_map(|b| IpAddr::from(b).to_string()),
            any::<[u8; 16]>().prop_map(|b| IpAddr::from(b).to_string()),
            Just("10.1.2.3".to_owned()),
            "[ -~]{0,20}",
        ];
        let line = prop_oneof![
            proptest::collection::vec(entry, 0..5).prop_map(|entries| entries.join(", ").into_bytes()),
            proptest::collection::vec(any::<u8>(), 0..40),
        ];
        proptest::collection::vec(line, 0..4)
    }

    proptest! {
        // Inv. CAP
        #[test]
        fn what_a_client_writes_changes_nothing_left_of_the_proxys_word(spoofed in lines(), client: [u8; 4]) {
            let client = IpAddr::from(client);
            prop_assume!(!proxies().contains(client));
            let word = client.to_string();
            let all = spoofed.iter().map(Vec::as_slice).chain([word.as_bytes()]);
            let all: Vec<&[u8]> = all.collect();
            prop_assert_eq!(client_address([10, 0, 0, 1].into(), &proxies(), all.iter().copied()), client);
            prop_assert_eq!(client_address(client, &proxies(), all.iter().copied()), client);
        }

        #[test]
        fn lines_are_one_list(lines in lines(), peer: [u8; 4]) {
            let joined = lines.join(&b","[..]);
            let separate = client_address(peer.into(), &proxies(), lines.iter().map(Vec::as_slice));
            let one = client_address(peer.into(), &proxies(), (!lines.is_empty()).then_some(&joined[..]).into_iter());
            prop_assert_eq!(separate, one);
        }
    }
}
