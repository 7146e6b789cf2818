//! What a server says of itself: counters of its metrics. How much it wrote, and who came to its door.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;

use crate::args::Target;

/// The longest wait for the page.
const WITHIN: Duration = Duration::from_secs(5);
/// The longest page that is read.
const PAGE_BYTES_MAX: u64 = 1 << 22;

/// Counters of those who came, each by its outcome.
const ARRIVALS: [&str; 2] = ["gateway_connects_failed_total{", "gateway_handshakes_total{"];

/// What one server or several wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Written {
    /// `websocket_messages_total{direction="sent"}`: messages of all kinds.
    pub(crate) messages: f64,
    /// `gateway_broadcast_passes_total`: in each pass every socket gets one write, of all that is new.
    pub(crate) passes: f64,
    /// Seconds of CPU in the loop that sends; only servers to compare with say so.
    pub(crate) send_loop_seconds: f64,
}

impl Written {
    /// Of all these pages together; `None` when there are none, or one of them cannot be read.
    pub(crate) fn of_all(targets: &[Target]) -> Option<Self> {
        pages(targets)?.iter().map(|page| Self::read(page)).reduce(|a, b| Self {
            messages: a.messages + b.messages,
            passes: a.passes + b.passes,
            send_loop_seconds: a.send_loop_seconds + b.send_loop_seconds,
        })
    }

    fn read(page: &str) -> Self {
        let sum = |name: &str, label: &str| {
            let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.trim().parse::<f64>().ok()).sum()
        };
        Self {
            messages: sum("websocket_messages_total", "direction=\"sent\""),
            passes: sum("gateway_broadcast_passes_total", ""),
            send_loop_seconds: sum("send_loop_cpu_seconds_total", ""),
        }
    }

    /// What came on top of `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            messages: self.messages - before.messages,
            passes: self.passes - before.passes,
            send_loop_seconds: self.send_loop_seconds - before.send_loop_seconds,
        }
    }
}

/// What became of those who wanted in, at one server or several, by metric and labels: whom they refused is found by
/// its reason here, of which a client that was only hung up on knows nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Arrivals(pub(crate) BTreeMap<String, u64>);

impl Arrivals {
    /// Of all these pages together; `None` when there are none, or one of them cannot be read.
    pub(crate) fn of_all(targets: &[Target]) -> Option<Self> {
        let mut sums = BTreeMap::new();
        for page in pages(targets)? {
            let lines = page.lines().filter(|line| ARRIVALS.iter().any(|name| line.starts_with(name)));
            for (name, count) in lines.filter_map(|line| line.rsplit_once(' ')) {
                *sums.entry(name.to_owned()).or_default() += count.trim().parse().unwrap_or(0);
            }
        }
        Some(Self(sums))
    }

    /// What came on top of `before`; without what nobody did.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        for (name, count) in &mut self.0 {
            *count -= before.0.get(name).copied().unwrap_or(0).min(*count);
        }
        self.0.retain(|_, count| *count > 0);
        self
    }
}

/// All pages, as they came; `None` when there are none, or one of them cannot be read.
fn pages(targets: &[Target]) -> Option<Vec<String>> {
    let pages: Vec<String> = targets.iter().map(page).collect::<io::Result<_>>().ok()?;
    (!pages.is_empty()).then_some(pages)
}

fn page(target: &Target) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target.address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    let Target { host, path, .. } = target;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.take(PAGE_BYTES_MAX).read_to_string(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use super::*;

    #[test]
    fn reads_what_was_written() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# HELP websocket_messages_total x 1\n\
                    websocket_messages_total{direction=\"received\"} 5\n\
                    websocket_messages_total{direction=\"sent\"} 17\n\
                    gateway_broadcast_passes_total 3\nsend_loop_cpu_seconds_total 0.5\n";
        let written = Written::read(page);
        assert_eq!(written, Written { messages: 17.0, passes: 3.0, send_loop_seconds: 0.5 });
        let since = written.since(Written { messages: 7.0, passes: 1.0, send_loop_seconds: 0.25 });
        assert_eq!(since, Written { messages: 10.0, passes: 2.0, send_loop_seconds: 0.25 });
        assert_eq!(Written::of_all(&[]), None);
    }

    /// A server that shows this page, once.
    fn showing(page: &'static str) -> (Target, std::thread::JoinHandle<io::Result<()>>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let shown = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let mut asked = std::io::BufReader::new(&stream).lines();
            while asked.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n{page}")
        });
        (Target::resolve(&format!("http://{address}/metrics"), "http").expect("a target"), shown)
    }

    #[test]
    fn those_who_came_are_told_by_outcome_over_all_servers() {
        let pages = [
            "# TYPE gateway_handshakes_total counter\ngateway_handshakes_total{outcome=\"accepted\"} 40\n\
             gateway_handshakes_total{outcome=\"rate\"} 2\ngateway_socket_closes_total{reason=\"normal\"} 7\n",
            "gateway_handshakes_total{outcome=\"accepted\"} 2\ngateway_connects_failed_total{reason=\"slow\"} 3\n\
             gateway_connects_failed_total{reason=\"panic\"} 0\n",
        ];
        let (targets, shown): (Vec<_>, Vec<_>) = pages.map(showing).into_iter().unzip();
        let came = Arrivals::of_all(&targets).expect("pages");
        shown.into_iter().for_each(|shown| shown.join().expect("it ends").expect("it is read"));
        let before = [("gateway_handshakes_total{outcome=\"rate\"}".to_owned(), 2)];
        let want = [
            ("gateway_connects_failed_total{reason=\"slow\"}".to_owned(), 3),
            ("gateway_handshakes_total{outcome=\"accepted\"}".to_owned(), 42),
        ];
        assert_eq!(came.since(&Arrivals(before.into())), Arrivals(want.into()));
        assert_eq!(Arrivals::of_all(&targets), None, "nobody answers");
        assert_eq!(Arrivals::of_all(&[]), None);
    }
}
