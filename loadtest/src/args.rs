//! What the command line says.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Opens many WebSockets to a Pulsegate and audits what each of them is sent.
///
/// Exit code 0: every promise was kept; 1: the audit found something; 2: the test could not be run.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Where the gateway serves its sockets: ws://host:port/path
    #[arg(long, default_value = "ws://127.0.0.1:5000/ws/analytics")]
    pub(crate) url: String,
    /// How many sockets to open
    #[arg(long, default_value_t = 100)]
    pub(crate) connections: u32,
    /// How long to listen once all of them are open
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// New sockets per second
    #[arg(long, default_value = "500/s", value_parser = per_second)]
    pub(crate) rate: f64,
    /// How many sockets share a source address of 127.0.0.0/8, where the gateway is on loopback; 0 leaves the
    /// choice to the system
    #[arg(long, default_value_t = 1)]
    pub(crate) spread: u32,
    /// Whether to answer the server's pings; without an answer it is expected to close with 4408
    #[arg(long, value_enum, default_value_t = YesNo::Yes)]
    pub(crate) answer_pings: YesNo,
    /// Query parameters for the URL, such as ids=1
    #[arg(long, default_value = "")]
    pub(crate) query: String,
    /// The server's tick interval: how the audit tells one slot from the next
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) interval: Duration,
    /// Process id of a server on this machine, to report its memory and CPU
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Where to post numbered events: http://host:port/api/v1/events
    #[arg(long, requires = "token")]
    pub(crate) publish: Option<String>,
    /// Bearer token for --publish
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Numbered events per second
    #[arg(long, default_value = "10", value_parser = per_second)]
    pub(crate) events_per_second: f64,
    /// Number of the first event. Events of several runs at one time need ranges that do not meet
    #[arg(long, default_value_t = 1)]
    pub(crate) first_number: u64,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// An answer to a yes-or-no question that reads well on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum YesNo {
    Yes,
    No,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The address to connect to.
    pub(crate) address: SocketAddr,
    /// The `Host` header.
    pub(crate) host: String,
    /// Path and query.
    pub(crate) path: String,
}

impl Target {
    /// Reads `scheme://host[:port][/path][?query]` and resolves the host.
    ///
    /// # Errors
    /// A sentence for whoever typed the URL.
    pub(crate) fn resolve(url: &str, scheme: &str) -> Result<Self, String> {
        let Some(rest) = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")) else {
            return Err(format!("{url}: not a {scheme}:// URL"));
        };
        let (host, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let to = if has_port { host.to_owned() } else { format!("{host}:80") };
        let address = to.to_socket_addrs().ok().and_then(|mut found| found.next());
        let address = address.ok_or_else(|| format!("{url}: cannot resolve {host}"))?;
        Ok(Self { address, host: host.to_owned(), path })
    }

    /// The same target with more query parameters.
    pub(crate) fn with_query(mut self, query: &str) -> Self {
        if !query.is_empty() {
            let join = if self.path.contains('?') { '&' } else { '?' };
            self.path = format!("{}{join}{query}", self.path);
        }
        self
    }
}

/// `500/s` or `500`: a positive number.
fn per_second(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse::<f64>().ok();
    number.filter(|rate| (0.001..=1e6).contains(rate)).ok_or_else(|| "a rate is a number like 500/s".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn urls() {
        let check = |url: &str, want: Option<(&str, &str)>| {
            let got = Target::resolve(url, "ws").ok();
            let got = got.map(|target| (target.address.to_string(), target.path));
            assert_eq!(got.as_ref().map(|(address, path)| (address.as_str(), path.as_str())), want, "{url}");
        };
        check("ws://127.0.0.1:5000/ws/analytics", Some(("127.0.0.1:5000", "/ws/analytics")));
        check("ws://127.0.0.1", Some(("127.0.0.1:80", "/")));
        check("ws://127.0.0.1:9?ids=1", Some(("127.0.0.1:9", "/?ids=1")));
        check("ws://[::1]:9/a?b=c", Some(("[::1]:9", "/a?b=c")));
        check("ws://[::1]/a", Some(("[::1]:80", "/a")));
        check("wss://127.0.0.1:1/", None);
        check("127.0.0.1:1", None);
        check("ws://:1/", None);
        let target = Target::resolve("ws://127.0.0.1:1/a", "ws").expect("a URL");
        assert_eq!(target.clone().with_query("").path, "/a");
        assert_eq!(target.clone().with_query("ids=1").with_query("types=new_event").path, "/a?ids=1&types=new_event");
    }

    #[test]
    fn rates() {
        assert_eq!(per_second("500/s"), Ok(500.0));
        assert_eq!(per_second("0.5"), Ok(0.5));
        for wrong in ["", "0", "-1", "nan", "inf", "5/m", "1e9"] {
            assert!(per_second(wrong).is_err(), "{wrong}");
        }
    }
}
