//! What a server says that it wrote: two counters of its metrics.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;

use crate::args::Target;

/// The longest wait for the page.
const WITHIN: Duration = Duration::from_secs(5);
/// The longest page that is read.
const PAGE_BYTES_MAX: u64 = 1 << 22;

/// Counters of one server or several.
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
        let all: io::Result<Vec<Self>> = targets.iter().map(|target| page(target).map(|page| read(&page))).collect();
        all.ok()?.into_iter().reduce(|a, b| Self {
            messages: a.messages + b.messages,
            passes: a.passes + b.passes,
            send_loop_seconds: a.send_loop_seconds + b.send_loop_seconds,
        })
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

fn page(target: &Target) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target.address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    let Target { host, path, .. } = target;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.take(PAGE_BYTES_MAX).read_to_string(&mut page)?;
    Ok(page)
}

fn read(page: &str) -> Written {
    let sum = |name: &str, label: &str| {
        let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.trim().parse::<f64>().ok()).sum()
    };
    Written {
        messages: sum("websocket_messages_total", "direction=\"sent\""),
        passes: sum("gateway_broadcast_passes_total", ""),
        send_loop_seconds: sum("send_loop_cpu_seconds_total", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_two_counters() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# HELP websocket_messages_total x 1\n\
                    websocket_messages_total{direction=\"received\"} 5\n\
                    websocket_messages_total{direction=\"sent\"} 17\n\
                    gateway_broadcast_passes_total 3\nsend_loop_cpu_seconds_total 0.5\n";
        let written = read(page);
        assert_eq!(written, Written { messages: 17.0, passes: 3.0, send_loop_seconds: 0.5 });
        let since = written.since(Written { messages: 7.0, passes: 1.0, send_loop_seconds: 0.25 });
        assert_eq!(since, Written { messages: 10.0, passes: 2.0, send_loop_seconds: 0.25 });
        assert_eq!(Written::of_all(&[]), None);
    }
}
