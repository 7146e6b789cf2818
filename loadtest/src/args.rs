//! What the command line says.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::control::SlowManner;
use crate::limits::Limits;

/// Opens many WebSockets to a Pulsegate and audits what each of them is sent.
///
/// Without a scenario: opens the sockets, listens, leaves. Exit code 0: every promise was kept, and every threshold;
/// 1: the audit found something, or a threshold was broken; 2: the test could not be run.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) scenario: Option<Command>,
    #[command(flatten)]
    pub(crate) plain: Common,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open sockets as fast as --rate says: what a handshake costs
    Connect(Common),
    /// Open sockets and listen: what an idle socket costs
    Idle(Common),
    /// Publish events once all sockets are open: what a delivery costs
    Fanout(Common),
    /// All drop their connections and come again at once
    Storm(Common),
    /// A share of the clients hardly reads: what the others notice. Runs in pairs, without and with the slow ones
    Slow(SlowArgs),
    /// Clients come and go: what stays behind in the server
    Soak(SoakArgs),
    /// Very many sockets over several servers (--url for each), from several processes
    Million(Common),
    /// Run a server to compare with
    Serve(ServeArgs),
    /// Compare the floor itself with a bare loop of send(2) over the same sockets
    Bare(BareArgs),
    /// A process of a test that another one leads
    #[command(hide = true)]
    Worker,
}

/// What all scenarios have in common.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Where the gateway serves its sockets: ws://host:port/path. Several share the clients evenly
    #[arg(long, default_value = "ws://127.0.0.1:5000/ws/analytics")]
    pub(crate) url: Vec<String>,
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
    /// Tell the source address in X-Forwarded-For instead; the gateway must trust this machine as a proxy
    #[arg(long)]
    pub(crate) forwarded_for: bool,
    /// Whether to answer the server's pings; without an answer it is expected to close with 4408
    #[arg(long, value_enum, default_value_t = YesNo::Yes)]
    pub(crate) answer_pings: YesNo,
    /// Query parameters for the URL, such as ids=1
    #[arg(long, default_value = "")]
    pub(crate) query: String,
    /// The server's tick interval: how the audit tells one slot from the next
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) interval: Duration,
    /// An event that takes longer to a client is a finding
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) late: Option<Duration>,
    /// How long a client waits for the answer to its handshake
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) open_within: Duration,
    /// Heartbeats that each client must have got by the end
    #[arg(long, default_value_t = 0)]
    pub(crate) min_pings: u8,
    /// Snapshots that each client must have got by the end, besides init
    #[arg(long, default_value_t = 0)]
    pub(crate) min_updates: u8,
    /// Threads that own sockets, each with its own poll
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) threads: u32,
    /// Processes that own sockets, each with its own descriptors; 0: as many as the descriptor limit asks for
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=256))]
    pub(crate) processes: u32,
    /// Process id of a server on this machine, to report its memory and CPU. Several are added up
    #[arg(long)]
    pub(crate) pid: Vec<u32>,
    /// A server's metrics, to report what it says that it wrote, and whom it refused: http://host:port/metrics. Several
    /// are added up
    #[arg(long)]
    pub(crate) metrics: Vec<String>,
    #[command(flatten)]
    pub(crate) publishing: Publishing,
    /// Run the same against the floor first (see `serve floor`), and report each figure as a ratio too
    #[arg(long)]
    pub(crate) floor: bool,
    /// The same against a plain server on tokio-tungstenite
    #[cfg(feature = "comparison")]
    #[arg(long)]
    pub(crate) tungstenite: bool,
    /// Run so often, alternating with the servers to compare with, and report medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where events come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct Publishing {
    /// Where to post numbered events: http://host:port/api/v1/events
    #[arg(long, requires = "token", conflicts_with = "redis")]
    pub(crate) publish: Option<String>,
    /// Bearer token for --publish
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Which Redis to write numbered events to: redis://host:port or redis+unix:///path
    #[arg(long)]
    pub(crate) redis: Option<String>,
    /// The gateways' key prefix, for --redis
    #[arg(long, default_value = "analytics")]
    pub(crate) key_prefix: String,
    /// Numbered events per second
    #[arg(long, default_value = "10", value_parser = per_second)]
    pub(crate) events_per_second: f64,
    /// Instead of a rate: publish the next event when the slowest client has all but so many
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) in_flight: Option<u32>,
    /// Number of the first event. Events of several runs at one time need ranges that do not meet
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 48))]
    pub(crate) first_number: u64,
}

/// For `slow`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SlowArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Which share of the clients is slow
    #[arg(long, default_value = "0.1", value_parser = share)]
    pub(crate) slow_share: f64,
    /// What a slow client does
    #[arg(long, value_enum, default_value_t = SlowManner::Drip)]
    pub(crate) slow_manner: SlowManner,
}

/// For `soak`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SoakArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The shortest that a client stays
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) life_min: Duration,
    /// The longest that a client stays
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) life_max: Duration,
}

/// For `serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Which server
    #[arg(value_enum)]
    pub(crate) server: Comparison,
    /// Where to listen for WebSockets
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Events of its own per second; 0: what the control connection orders, and it ends with that connection
    #[arg(long, default_value = "0", value_parser = per_second_or_none)]
    pub(crate) events_per_second: f64,
    /// The most messages that share a write, of those that are there anyway
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: u32,
}

/// For `bare`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BareArgs {
    /// How many sockets to send to
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=19_000))]
    pub(crate) connections: u32,
    /// Passes of each of the two
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// CPU per send as a multiple of the bare loop's: exit code 1 when it is more
    #[arg(long)]
    pub(crate) max_ratio: Option<f64>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A server to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Comparison {
    /// One thread that sends the same bytes to all sockets in a loop: the limit of the machine
    Floor,
    /// A task and a broadcast receiver per socket: what most people would write
    #[cfg(feature = "comparison")]
    Tungstenite,
}

/// An answer to a yes-or-no question that reads well on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(crate) enum YesNo {
    Yes,
    No,
}

impl BareArgs {
    /// How many processes are the clients: none of them is this one, whose descriptors the other ends need.
    pub(crate) fn processes(&self) -> u32 {
        const CLIENTS_MAX: u32 = 10_000;
        self.connections.div_ceil(CLIENTS_MAX).max(2)
    }
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
pub(crate) fn per_second(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).replace('_', "").parse::<f64>().ok();
    number.filter(|rate| (0.001..=1e9).contains(rate)).ok_or_else(|| "a rate is a number like 500/s".to_owned())
}

fn per_second_or_none(text: &str) -> Result<f64, String> {
    if text == "0" { Ok(0.0) } else { per_second(text) }
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|share| (0.0..=0.9).contains(share));
    number.ok_or_else(|| "a share is a number from 0 to 0.9".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_scenario_it_is_the_plain_test() {
        let plain = Cli::parse_from(["loadtest", "--connections", "5", "--duration", "2s"]);
        assert!(plain.scenario.is_none());
        assert_eq!((plain.plain.connections, plain.plain.duration), (5, Duration::from_secs(2)));
        let redis = ["--redis", "redis://127.0.0.1:1"];
        let given = [&["loadtest", "fanout", "--in-flight", "8"], &redis[..], &["--in-flight", "32"]].concat();
        // A script's options can be overridden.
        let fanout = Cli::parse_from(given);
        let Some(Command::Fanout(common)) = fanout.scenario else { panic!("{fanout:?}") };
        assert_eq!(common.publishing.in_flight, Some(32));
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
        assert_eq!(per_second("1_500_000/s"), Ok(1.5e6));
        assert_eq!(per_second_or_none("0"), Ok(0.0));
        assert!(per_second("0").is_err());
        assert_eq!((share("0.1"), share("1").is_err(), share("x").is_err()), (Ok(0.1), true, true));
        for wrong in ["", "0", "-1", "nan", "inf", "5/m", "1e10"] {
            assert!(per_second(wrong).is_err(), "{wrong}");
        }
    }
}
