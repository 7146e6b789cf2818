//! The PROXY protocol, versions 1 and 2: who is behind a balancer that passes bytes on.
//!
//! A balancer on the level of TCP cannot add a header line; it puts one PROXY header before the client's first byte
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>). Whoever may send it chooses his address, so it is
//! read from trusted proxies only, and a connection of anybody else, or without a header, is ended: the specification
//! forbids guessing.
//!
//! `LOCAL` (the balancer's own health checks), `UNKNOWN` and families that are not TCP over IP say nothing about a
//! client; the peer stays. TLVs (version 2) are skipped. The header is taken off exactly, by looking at the bytes
//! before consuming them, so that the stream begins with HTTP for whoever reads on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Version 1: "the longest possible line is 107 bytes", CRLF included.
const V1_BYTES_MAX: usize = 107;
/// Version 2 may announce 65,535 bytes; addresses take 216 at most, and what balancers add in TLVs fits in this.
// Inv. BOUND
const V2_BYTES_MAX: usize = 2048;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The beginning of a header.
    More,
    /// A whole header of `length` bytes.
    Done {
        /// How many of the bytes are the header.
        length: usize,
        /// The client, where the header names one.
        client: Option<IpAddr>,
    },
}

/// The bytes are no PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed PROXY protocol header")]
pub struct Malformed;

/// Looks at the first bytes of a connection.
///
/// # Errors
/// [`Malformed`] as soon as no further byte can make them a header.
pub fn parse(bytes: &[u8]) -> Result<Step, Malformed> {
    let begins = |prefix: &[u8]| bytes.iter().zip(prefix).all(|(a, b)| a == b);
    if begins(V2_SIGNATURE) {
        if bytes.len() < V2_HEAD_BYTES { Ok(Step::More) } else { parse_v2(bytes) }
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err(Malformed)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Step, Malformed> {
    let seen = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if seen.len() < V1_BYTES_MAX { Ok(Step::More) } else { Err(Malformed) };
    };
    let line = seen[..end].strip_suffix(b"\r").and_then(|line| line.strip_prefix(b"PROXY ")).ok_or(Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let client = match line.split_once(' ') {
        Some(("TCP4", rest)) => Some(IpAddr::V4(v1_source::<Ipv4Addr>(rest)?)),
        Some(("TCP6", rest)) => Some(IpAddr::V6(v1_source::<Ipv6Addr>(rest)?)),
        // Whatever follows UNKNOWN is to be ignored.
        Some(("UNKNOWN", _)) => None,
        None if line == "UNKNOWN" => None,
        _ => return Err(Malformed),
    };
    Ok(Step::Done { length: end + 1, client })
}

/// The first of `source destination source-port destination-port`, all of which must be well-formed.
fn v1_source<A: std::str::FromStr>(rest: &str) -> Result<A, Malformed> {
    let mut parts = rest.split(' ');
    let mut part = || parts.next().ok_or(Malformed);
    let source = part()?.parse().map_err(|_| Malformed)?;
    let _destination: A = part()?.parse().map_err(|_| Malformed)?;
    for _ in 0..2 {
        let port = part()?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        port.parse::<u16>().ok().filter(|_| digits).ok_or(Malformed)?;
    }
    if parts.next().is_none() { Ok(source) } else { Err(Malformed) }
}

/// `bytes` are at least the fixed head.
fn parse_v2(bytes: &[u8]) -> Result<Step, Malformed> {
    let (version_and_command, family) = (bytes[12], bytes[13]);
    let length = V2_HEAD_BYTES + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed),
    };
    if length > V2_BYTES_MAX {
        return Err(Malformed);
    }
    let Some(payload) = bytes.get(V2_HEAD_BYTES..length) else { return Ok(Step::More) };
    let client = match family {
        _ if local => None,
        // TCP over IPv4: two addresses and two ports.
        0x11 if payload.len() >= 12 => payload.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        // TCP over IPv6.
        0x21 if payload.len() >= 36 => payload.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        0x11 | 0x21 => return Err(Malformed),
        _ => None,
    };
    Ok(Step::Done { length, client })
}

/// Takes the header off the stream; the client, where it names one. Waits as long as the peer lets it: the caller
/// sets the deadline. Not cancel safe: a part of the header may be gone.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when there is none, and what reading fails with.
pub async fn read(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut header = vec![0; V1_BYTES_MAX.max(V2_BYTES_MAX)];
    let mut taken = 0;
    loop {
        let seen = taken + stream.peek(&mut header[taken..]).await?;
        if seen == taken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let step = parse(&header[..seen]).map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))?;
        // What was seen is part of the header, so it is consumed: else the next look would find it at once again.
        let wanted = match step {
            Step::More => seen,
            Step::Done { length, .. } => length,
        };
        stream.read_exact(&mut header[taken..wanted]).await?;
        taken = wanted;
        if let Step::Done { client, .. } = step {
            return Ok(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE.as_slice(), &[command, family], &length, payload].concat()
    }

    #[track_caller]
    fn check(header: &[u8], client: Option<&str>) {
        let client = client.map(|text| text.parse().unwrap());
        let expected = Ok(Step::Done { length: header.len(), client });
        assert_eq!(parse(header), expected, "{header:?}");
        assert_eq!(parse(&[header, b"GET / HTTP/1.1\r\n"].concat()), expected, "with what follows");
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Ok(Step::More), "cut at {cut}: {header:?}");
        }
    }

    #[test]
    fn version_1() {
        check(b"PROXY TCP4 198.51.100.1 203.0.113.7 35646 80\r\n", Some("198.51.100.1"));
        check(b"PROXY TCP6 2001:db8::1 2001:db8::2 4124 443\r\n", Some("2001:db8::1"));
        check(b"PROXY UNKNOWN\r\n", None);
        let longest = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        check(longest.as_bytes(), None);
    }

    #[test]
    fn version_2() {
        let v4 = [198, 51, 100, 1, 203, 0, 113, 7, 1, 2, 0, 80];
        check(&v2(0x21, 0x11, &v4), Some("198.51.100.1"));
        check(&v2(0x21, 0x11, &[&v4[..], &[0x04, 0, 1, 9]].concat()), Some("198.51.100.1"));
        let v6 = [&[0x20, 1, 0x0d, 0xb8], &[0; 11][..], &[1], &[0; 20]].concat();
        check(&v2(0x21, 0x21, &v6), Some("2001:db8::1"));
        check(&v2(0x20, 0x00, &[]), None);
        check(&v2(0x20, 0x11, &v4), None);
        check(&v2(0x21, 0x00, &[1, 2, 3]), None);
        check(&v2(0x21, 0x31, &[b'/'; 216]), None);
    }

    #[test]
    fn everything_else_is_refused() {
        let bad: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"PROXY TCP4 198.51.100.1 203.0.113.7 35646\r\n",
            b"PROXY TCP4 198.51.100.1 203.0.113.7 35646 80 1\r\n",
            b"PROXY TCP4 198.51.100.1 203.0.113.7 35646 65536\r\n",
            b"PROXY TCP4 198.51.100.1 203.0.113.7 +5646 80\r\n",
            b"PROXY TCP4 198.51.100.1 203.0.113.7 35646 80\n",
            b"PROXY TCP4  198.51.100.1 203.0.113.7 35646 80\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP6 198.51.100.1 203.0.113.7 1 2\r\n",
            b"PROXY UDP4 198.51.100.1 203.0.113.7 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY UNKNOWNx\r\n",
            &[b'P'; 2],
            &[&b"PROXY UNKNOWN "[..], &[b'x'; 107]].concat(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x11, &[0; V2_BYTES_MAX]),
        ];
        for bytes in bad {
            assert_eq!(parse(bytes), Err(Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_the_answer(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                proptest::collection::vec(any::<u8>(), 0..64).prop_map(|rest| [&V2_SIGNATURE[..], &rest].concat()),
                "PROXY [ -~]{0,60}\r\n".prop_map(String::into_bytes),
                any::<([u8; 4], [u8; 4], u16, u16)>().prop_map(|(a, b, p, q)|
                    format!("PROXY TCP4 {} {} {p} {q}\r\nrest", IpAddr::from(a), IpAddr::from(b)).into_bytes()),
            ],
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = parse(&bytes);
            if let Ok(Step::Done { length, .. }) = whole {
                prop_assert!(length <= bytes.len() && length <= V2_BYTES_MAX);
            }
            let part = parse(&bytes[..cut.index(bytes.len() + 1)]);
            prop_assert!(part == whole || part == Ok(Step::More), "{part:?} {whole:?}");
        }
    }

    #[tokio::test]
    async fn the_stream_begins_after_the_header() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let header = b"PROXY TCP4 198.51.100.1 203.0.113.7 35646 80\r\nGET /";
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            // Byte by byte, so that the header is met in every state of incompleteness.
            for byte in header {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            stream
        };
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let client = super::read(&mut stream).await.unwrap();
            let mut rest = [0; 5];
            stream.read_exact(&mut rest).await.unwrap();
            (client, rest)
        };
        let (_open, (client, rest)) = tokio::join!(client, server);
        assert_eq!((client, &rest), (Some("198.51.100.1".parse().unwrap()), b"GET /"));
    }
}
