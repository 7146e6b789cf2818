//! Where connections come from.
//!
//! A gateway caps its sockets per client address, and one address has some 28,000 ports. On loopback a client may
//! take any address of 127.0.0.0/8: so one machine can play ten thousand visitors.

use std::net::Ipv4Addr;

/// Addresses that can be told apart: 127.1.0.1 to 127.254.255.254, without those that end in 0 or 255.
const ADDRESSES: u32 = 254 * 256 * 254;

/// The source address of socket number `index` when `spread` sockets share one. Wraps after 16 million addresses.
pub(crate) fn address(index: u32, spread: u32) -> Ipv4Addr {
    let n = (index / spread.max(1)) % ADDRESSES;
    let [_, _, _, last] = (n % 254 + 1).to_be_bytes();
    let [_, _, _, third] = ((n / 254) % 256).to_be_bytes();
    let [_, _, _, second] = (n / (254 * 256) + 1).to_be_bytes();
    Ipv4Addr::new(127, second, third, last)
}

/// The same for an `X-Forwarded-For` header: an address of 10.0.0.0/8, which nobody trusts as a proxy.
pub(crate) fn forwarded(index: u32, spread: u32) -> Ipv4Addr {
    let [_, second, third, last] = address(index, spread).octets();
    Ipv4Addr::new(10, second, third, last)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_group_of_sockets_has_an_address_of_its_own() {
        for spread in [1, 3, 10] {
            let groups = 100_000;
            let distinct: HashSet<_> =
                (0..groups * spread).step_by(spread as usize).map(|i| address(i, spread)).collect();
            assert_eq!(distinct.len(), groups as usize);
            assert_eq!(address(0, spread), address(spread - 1, spread));
        }
        assert_eq!(address(0, 1), Ipv4Addr::new(127, 1, 0, 1));
        assert_eq!(address(253, 1), Ipv4Addr::new(127, 1, 0, 254));
        assert_eq!(address(254, 1), Ipv4Addr::new(127, 1, 1, 1));
        assert_eq!(address(ADDRESSES - 1, 1), Ipv4Addr::new(127, 254, 255, 254));
        assert_eq!(address(ADDRESSES, 1), address(0, 1));
        assert_eq!(address(7, 0), address(7, 1));
        assert_eq!(forwarded(254, 1), Ipv4Addr::new(10, 1, 1, 1));
    }
}
