//! Events by `XADD`, as producers that share the gateways' Redis write them.
//!
//! The smallest client that does it: commands are pipelined in one write, and as many replies are read. A library
//! would bring a runtime, and the tester has none.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use shared::keys::Keys;
use shared::time::Timestamp;

use super::{ANSWER_WITHIN, Outlet, malformed};

/// To how many entries each `XADD` trims the stream, about: what the contract asks of producers.
const ENTRIES_MAX: &str = "10000";
/// The longest line of a reply.
const LINE_BYTES_MAX: u64 = 4096;
/// The longest bulk string that is read.
const BULK_BYTES_MAX: u64 = 4096;

/// A connection's two halves are one object.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A Redis.
pub(crate) struct Redis {
    place: Place,
    key: String,
    connection: Option<Connection>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Tcp { address: String, password: Option<String> },
    Unix(String),
}

struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    /// What Redis's clock said, and when: events bear its time.
    time_ms: (u64, Instant),
}

impl Redis {
    /// The stream of the gateways with this key prefix.
    ///
    /// # Errors
    /// A sentence for whoever typed the URL or the prefix.
    pub(crate) fn new(url: &str, prefix: &str) -> Result<Self, String> {
        let keys = Keys::new(prefix).map_err(|error| format!("{prefix}: {error}"))?;
        Ok(Self { place: place(url)?, key: keys.events(), connection: None })
    }

    fn connect(&self) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match &self.place {
            Place::Tcp { address, .. } => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_WITHIN))?;
                stream.set_write_timeout(Some(ANSWER_WITHIN))?;
                Box::new(stream)
            }
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(ANSWER_WITHIN))?;
                stream.set_write_timeout(Some(ANSWER_WITHIN))?;
                Box::new(stream)
            }
        };
        let mut stream = BufReader::new(stream);
        if let Place::Tcp { password: Some(password), .. } = &self.place {
            let mut auth = Vec::new();
            command(&mut auth, &["AUTH", password]);
            stream.get_mut().write_all(&auth)?;
            reply(&mut stream)?;
        }
        let mut time = Vec::new();
        command(&mut time, &["TIME"]);
        stream.get_mut().write_all(&time)?;
        let seconds = reply(&mut stream)?;
        let ms = seconds.parse::<u64>().map_err(|_| malformed())? * 1000;
        Ok(Connection { stream, time_ms: (ms, Instant::now()) })
    }
}

impl Outlet for Redis {
    fn publish(&mut self, numbers: RangeInclusive<u64>) -> io::Result<(u64, String)> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let (then, at) = connection.time_ms;
        let now = Timestamp::from_unix_ms(then + u64::try_from(at.elapsed().as_millis()).unwrap_or(0));
        let mut commands = Vec::new();
        for number in numbers.clone() {
            let data = format!(r#"{{"event_type":"x","page_url":"/n/{number}","timestamp":"{now}"}}"#);
            let fields = ["type", "new_event", "data", &data];
            let head = ["XADD", &self.key, "MAXLEN", "~", ENTRIES_MAX, "*"];
            command(&mut commands, &[&head[..], &fields].concat());
        }
        connection.stream.get_mut().write_all(&commands)?;
        for _ in numbers.clone() {
            reply(&mut connection.stream)?;
        }
        // Only now: after a failure, what is left in it belongs to nobody.
        self.connection = Some(connection);
        Ok((numbers.end() - numbers.start() + 1, "added".to_owned()))
    }
}

fn place(url: &str) -> Result<Place, String> {
    if let Some(path) = url.strip_prefix("redis+unix://") {
        return Ok(Place::Unix(path.to_owned()));
    }
    let rest = url.strip_prefix("redis://").ok_or_else(|| format!("{url}: not redis://host:port"))?;
    let (login, address) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
    let password = login.map(|login| login.rsplit_once(':').map_or(login, |(_, password)| password).to_owned());
    let address = address.trim_end_matches('/');
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { address.to_owned() } else { format!("{address}:6379") };
    Ok(Place::Tcp { address, password })
}

fn command(out: &mut Vec<u8>, words: &[&str]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
}

/// Reads one reply; of an array, its first string.
fn reply(stream: &mut impl BufRead) -> io::Result<String> {
    let line = line(stream)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(malformed)?;
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "-" => Err(io::Error::other(rest.to_owned())),
        "$" => {
            let length = rest.parse::<u64>().ok().filter(|length| *length <= BULK_BYTES_MAX).ok_or_else(malformed)?;
            let mut text = Vec::new();
            stream.by_ref().take(length + 2).read_to_end(&mut text)?;
            let whole = text.len() as u64 == length + 2;
            let text = text.strip_suffix(b"\r\n").filter(|_| whole).ok_or_else(malformed)?;
            String::from_utf8(text.to_vec()).map_err(|_| malformed())
        }
        "*" => {
            let count = rest.parse::<u8>().map_err(|_| malformed())?;
            let mut first = String::new();
            for n in 0..count {
                let next = reply(stream)?;
                if n == 0 {
                    first = next;
                }
            }
            Ok(first)
        }
        _ => Err(malformed()),
    }
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let tcp = |address: &str, password: Option<&str>| {
            Ok(Place::Tcp { address: address.to_owned(), password: password.map(str::to_owned) })
        };
        assert_eq!(place("redis://127.0.0.1:7"), tcp("127.0.0.1:7", None));
        assert_eq!(place("redis://127.0.0.1"), tcp("127.0.0.1:6379", None));
        assert_eq!(place("redis://:secret@host:7/"), tcp("host:7", Some("secret")));
        assert_eq!(place("redis+unix:///run/redis.sock"), Ok(Place::Unix("/run/redis.sock".to_owned())));
        assert!(place("http://127.0.0.1").is_err());
        assert!(Redis::new("redis://127.0.0.1", "a b").is_err());
    }

    #[test]
    fn commands_and_replies() {
        let mut out = Vec::new();
        command(&mut out, &["XADD", "k"]);
        assert_eq!(out, b"*2\r\n$4\r\nXADD\r\n$1\r\nk\r\n");
        let check = |text: &str, want: Option<&str>| {
            assert_eq!(reply(&mut text.as_bytes()).ok().as_deref(), want, "{text:?}");
        };
        check("+OK\r\n", Some("OK"));
        check("$3\r\n1-0\r\n", Some("1-0"));
        check("*2\r\n$2\r\n17\r\n$1\r\n5\r\n", Some("17"));
        check("-ERR no\r\n", None);
        check("$9\r\n1-0\r\n", None);
        check("$-1\r\n", None);
        check("$99999999\r\n", None);
        check("?\r\n", None);
        check("\r\n", None);
        check("+OK", None);
        check("", None);
    }

    #[test]
    fn events_are_pipelined_and_a_refusal_gives_the_connection_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = std::thread::spawn(move || {
            let mut seen = String::new();
            for replies in ["*2\r\n$4\r\n1000\r\n$1\r\n5\r\n$3\r\n1-0\r\n$3\r\n1-1\r\n", "-LOADING\r\n"] {
                let (mut stream, _) = listener.accept().expect("the publisher");
                stream.write_all(replies.as_bytes()).expect("it reads");
                let _ = stream.shutdown(std::net::Shutdown::Write);
                stream.read_to_string(&mut seen).expect("text");
            }
            seen
        });
        let mut redis = Redis::new(&format!("redis://{address}"), "p").expect("a URL");
        assert_eq!(redis.publish(7..=8).expect("two replies"), (2, "added".to_owned()));
        redis.connection = None;
        assert!(redis.publish(9..=9).is_err());
        assert!(redis.connection.is_none());
        drop(redis);
        let seen = server.join().expect("it served");
        let data = r#"{"event_type":"x","page_url":"/n/7","timestamp":"1970-01-01T00:16:40Z"}"#;
        let entry = "$10\r\n{p}:events\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n$5\r\n10000\r\n$1\r\n*\r\n$4\r\ntype\r\n";
        assert!(seen.contains(entry) && seen.contains(data) && seen.contains("/n/8"), "{seen}");
    }
}
