//! Configuration: raw words first, then their meaning, then whether it makes sense as a whole.
//!
//! A gateway that starts with half of what its operator wrote is worse than one that does not start. So flags and
//! environment variables are read as text ([`Args`]), turned into meaning in one step that collects *every* error
//! ([`Config::resolve`]), and a `GATEWAY_*` variable that means nothing is an error too: it is a typo. Nobody else in
//! this crate asks the environment.
//!
//! Precedence: a flag wins over its variable, which wins over the default. A secret may stand in a file instead
//! (`…_FILE`), but not in both. Defaults are the seed protocol's, or carry their reason in the help text.

mod effective;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use ipnet::IpNet;
use shared::keys::Keys;

use crate::backplane::redis::RedisSettings;

/// Descriptors that are not client sockets: listeners, Redis, the runtime, connections that have not upgraded yet.
pub const RESERVED_DESCRIPTORS: u64 = 512;

const AFTER_HELP: &str = "\
Examples:
  gateway                                   one node, embedded backplane, on http://localhost:5000
  REDIS_URL=redis://10.0.0.5:6379 gateway   one of any number of nodes on that Redis
  gateway --check-config                    print what would run, or every error

Durations are written like 250ms, 5s, 5m; sizes like 64KiB, 64MiB. Unknown GATEWAY_* variables are errors.
Every secret has a twin that names a file: REDIS_URL_FILE, GATEWAY_INGEST_TOKEN_FILE.
OpenTelemetry: set OTEL_EXPORTER_OTLP_ENDPOINT; the standard OTEL_* variables are honoured.
Exit codes: 0 drained or done, 2 bad configuration, 69 could not listen, 70 a part that the node lives by failed.";

/// What was written, word for word.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "gateway",
    version,
    about = "Pulsegate: live visitor numbers and events over WebSockets, on any number of nodes that share one Redis",
    after_help = AFTER_HELP,
    disable_help_subcommand = true
)]
pub struct Args {
    /// Address that clients connect to: /ws/analytics, /api/v1/events, /api/v1/stats and the live page
    #[arg(long, env = "GATEWAY_LISTEN", default_value = "0.0.0.0:5000", help_heading = "Listeners")]
    listen: String,
    /// Address of /metrics, /livez, /readyz and /healthz; keep it off the internet
    #[arg(long, env = "GATEWAY_INTERNAL_LISTEN", default_value = "127.0.0.1:9464", help_heading = "Listeners")]
    internal_listen: String,
    /// Read a PROXY protocol v1 or v2 header from trusted proxies; X-Forwarded-For is then ignored [off, on]
    #[arg(long, env = "GATEWAY_PROXY_PROTOCOL", default_value = "off", help_heading = "Listeners")]
    proxy_protocol: String,
    /// Proxies (addresses or CIDRs, comma list) whose word about the client's address is believed
    #[arg(long, env = "GATEWAY_TRUSTED_PROXIES", default_value = "", help_heading = "Listeners")]
    trusted_proxies: String,
    /// Origins that browsers may connect from (comma list, `*` for all), beside the gateway's own
    #[arg(long, env = "GATEWAY_ALLOWED_ORIGINS", default_value = "http://localhost:3000", help_heading = "Listeners")]
    allowed_origins: String,

    /// Redis: redis://, rediss://, redis-sentinel://, redis-cluster://, redis+unix://. Absent: embedded, one node
    #[arg(long, env = "REDIS_URL", hide_env_values = true, help_heading = "Backplane")]
    redis_url: Option<String>,
    /// File that holds the Redis URL
    #[arg(long, env = "REDIS_URL_FILE", help_heading = "Backplane")]
    redis_url_file: Option<PathBuf>,
    /// PEM file of the authority that signed Redis's certificate, for rediss://
    #[arg(long, env = "REDIS_CA_FILE", help_heading = "Backplane")]
    redis_ca_file: Option<PathBuf>,
    /// Prefix of every Redis name; gateways that share it form one cluster
    #[arg(long, env = "GATEWAY_KEY_PREFIX", default_value = "analytics", help_heading = "Backplane")]
    key_prefix: String,

    /// Bearer tokens (comma list, for rotation) of POST /api/v1/events. Absent: the path does not exist
    #[arg(long, env = "GATEWAY_INGEST_TOKEN", hide_env_values = true, help_heading = "Ingest")]
    ingest_token: Option<String>,
    /// File that holds the tokens
    #[arg(long, env = "GATEWAY_INGEST_TOKEN_FILE", help_heading = "Ingest")]
    ingest_token_file: Option<PathBuf>,

    /// Sockets of one client address, over all nodes; IPv6 counts per /64; 0 is no limit
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS_PER_IP", default_value = "10", help_heading = "Limits")]
    max_connections_per_ip: String,
    /// Handshakes per second of one client address, burst four times that; 0 is no limit
    #[arg(long, env = "GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", default_value = "5", help_heading = "Limits")]
    handshakes_per_second_per_ip: String,
    /// Sockets of this node [default: the descriptor limit less 512]
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS", help_heading = "Limits")]
    max_connections: Option<String>,
    /// Messages per second that a client may send; answers to pings always pass
    #[arg(long, env = "GATEWAY_CLIENT_MESSAGES_PER_SECOND", default_value = "1", help_heading = "Limits")]
    client_messages_per_second: String,
    /// Messages that a client may send at once
    #[arg(long, env = "GATEWAY_CLIENT_MESSAGE_BURST", default_value = "5", help_heading = "Limits")]
    client_message_burst: String,
    /// Bytes that may wait for one slow reader before its events are dropped for the newest state
    #[arg(long, env = "GATEWAY_OUTBOX_BYTES", default_value = "64KiB", help_heading = "Limits")]
    outbox_bytes: String,
    /// Bytes that may wait for all slow readers together before the slowest is closed
    #[arg(long, env = "GATEWAY_OUTBOX_TOTAL_BYTES", default_value = "64MiB", help_heading = "Limits")]
    outbox_total_bytes: String,

    /// Time between two counts of the active visitors
    #[arg(long, env = "GATEWAY_TICK_INTERVAL", default_value = "5s", help_heading = "Times")]
    tick_interval: String,
    /// Time between two pings of a socket
    #[arg(long, env = "GATEWAY_PING_INTERVAL", default_value = "30s", help_heading = "Times")]
    ping_interval: String,
    /// Time in which a ping must be answered
    #[arg(long, env = "GATEWAY_PONG_TIMEOUT", default_value = "10s", help_heading = "Times")]
    pong_timeout: String,
    /// Time for which a visitor counts after it was last seen
    #[arg(long, env = "GATEWAY_VISITOR_WINDOW", default_value = "5m", help_heading = "Times")]
    visitor_window: String,
    /// Least time between two broadcasts, to gather events of a flood into fewer writes; 0: gather only what queues up by itself
    #[arg(long, env = "GATEWAY_FLUSH_INTERVAL", default_value = "0", help_heading = "Times")]
    flush_interval: String,
    /// Age at which a socket is asked to reconnect (±10 %), so that a grown fleet gets its share; `off` for never
    #[arg(long, env = "GATEWAY_CONNECTION_MAX_AGE", default_value = "off", help_heading = "Times")]
    connection_max_age: String,

    /// After SIGTERM: time in which upgrades are still taken while load balancers learn of it
    #[arg(long, env = "GATEWAY_DRAIN_DELAY", default_value = "5s", help_heading = "Shutdown")]
    drain_delay: String,
    /// Then: time over which the sockets' closes are spread
    #[arg(long, env = "GATEWAY_DRAIN_WINDOW", default_value = "25s", help_heading = "Shutdown")]
    drain_window: String,
    /// Then: time that is left for the last of them
    #[arg(long, env = "GATEWAY_DRAIN_GRACE", default_value = "10s", help_heading = "Shutdown")]
    drain_grace: String,
    /// Reconnects per second that the rest of the fleet can take; a drain that must exceed it warns
    #[arg(long, env = "GATEWAY_RECONNECT_BUDGET", default_value = "500", help_heading = "Shutdown")]
    reconnect_budget: String,

    /// Log filter: off, error, warn, info, debug, trace, or per target (`info,gateway::relay=debug`)
    #[arg(long, env = "GATEWAY_LOG", default_value = "info", help_heading = "Logs")]
    log: String,
    /// Log format [text, json]
    #[arg(long, env = "GATEWAY_LOG_FORMAT", default_value = "text", help_heading = "Logs")]
    log_format: String,

    /// Print the configuration that would run, secrets hidden, or every error (exit 2), and end
    #[arg(long)]
    pub check_config: bool,
    /// Ask a running gateway whether it is ready (exit 0) and end; for containers. ADDRESS is its internal listener
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "")]
    pub healthcheck: Option<String>,
}

/// Something secret: printed as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

// Inv. PRIVATE: no log line and no `--check-config` output shows a secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Whether connections begin with a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They do not.
    Off,
    /// Those of trusted proxies do.
    On,
}

/// Which origins a browser may connect from, beside the gateway's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// All.
    Any,
    /// These: `scheme://host[:port]`, lower case.
    Only(BTreeSet<String>),
}

/// A failure planted for a test; builds without debug assertions know none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestPanic {
    /// The relay panics at its first snapshot.
    Relay,
    /// A connection panics when its client sends `{"type":"__panic"}`.
    Connection,
}

/// What leaves through OTLP, decided by the standard `OTEL_*` variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Otlp {
    /// Traces are exported.
    pub traces: bool,
    /// Metrics are exported (`/metrics` is there in any case).
    pub metrics: bool,
}

/// What the words mean. Every field is checked.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the option of the same name; the help text says what it is")]
pub struct Config {
    pub listen: SocketAddr,
    pub internal_listen: SocketAddr,
    pub proxy_protocol: ProxyProtocol,
    pub trusted_proxies: Vec<IpNet>,
    pub allowed_origins: AllowedOrigins,
    pub redis_url: Option<Secret>,
    pub redis_ca_file: Option<PathBuf>,
    pub keys: Keys,
    pub ingest_tokens: Vec<Secret>,
    pub max_connections_per_ip: u32,
    pub handshakes_per_second_per_ip: u32,
    pub max_connections: u32,
    pub client_messages_per_second: u32,
    pub client_message_burst: u32,
    pub outbox_bytes: usize,
    pub outbox_total_bytes: usize,
    pub tick_interval: Duration,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    pub visitor_window: Duration,
    pub flush_interval: Duration,
    pub connection_max_age: Option<Duration>,
    pub drain_delay: Duration,
    pub drain_window: Duration,
    pub drain_grace: Duration,
    pub reconnect_budget: u32,
    pub log: String,
    pub log_format: LogFormat,
    pub otlp: Otlp,
    pub test_panic: Option<TestPanic>,
}

/// One thing that is wrong with the configuration: the option, and what about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct ConfigError {
    /// The variable's name.
    pub option: String,
    /// What is wrong; never repeats a secret.
    pub problem: String,
}

/// What the process was given beside its arguments.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// All variables.
    pub variables: Vec<(String, String)>,
    /// The hard limit of descriptors.
    pub descriptors_max: u64,
}

impl Environment {
    /// The process's own. Variables that are not UTF-8 are left out; clap refuses those that it reads.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let descriptors_max = rlimit::Resource::NOFILE.get().map_or(1024, |(_soft, hard)| hard);
        Self { variables: variables.collect(), descriptors_max }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }
}

/// Gathers what is wrong while the rest is read on.
#[derive(Default)]
struct Problems(Vec<ConfigError>);

impl Problems {
    fn add(&mut self, option: &str, problem: impl Into<String>) {
        self.0.push(ConfigError { option: option.to_owned(), problem: problem.into() });
    }

    /// The value, or its default with the problem noted.
    fn take<T: Default>(&mut self, option: &str, result: Result<T, String>) -> T {
        result.unwrap_or_else(|problem| {
            self.add(option, problem);
            T::default()
        })
    }
}

impl Config {
    /// What `args` mean, in `environment`.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn resolve(args: &Args, environment: &Environment) -> Result<Self, Vec<ConfigError>> {
        let mut problems = Problems::default();
        unknown_variables(environment, &mut problems);
        let p = &mut problems;
        let secret_redis = secret(p, "REDIS_URL", args.redis_url.as_deref(), args.redis_url_file.as_deref())
            .filter(|url| !url.is_empty());
        let tokens = secret(p, "GATEWAY_INGEST_TOKEN", args.ingest_token.as_deref(), args.ingest_token_file.as_deref());
        let any_port = SocketAddr::from(([0, 0, 0, 0], 0));
        let config = Self {
            listen: value::address(&args.listen).unwrap_or_else(|e| {
                p.add("GATEWAY_LISTEN", e);
                any_port
            }),
            internal_listen: value::address(&args.internal_listen).unwrap_or_else(|e| {
                p.add("GATEWAY_INTERNAL_LISTEN", e);
                any_port
            }),
            proxy_protocol: value::one_of(
                &args.proxy_protocol,
                &[("off", ProxyProtocol::Off), ("on", ProxyProtocol::On)],
            )
            .unwrap_or_else(|e| {
                p.add("GATEWAY_PROXY_PROTOCOL", e);
                ProxyProtocol::Off
            }),
            trusted_proxies: p.take("GATEWAY_TRUSTED_PROXIES", value::networks(&args.trusted_proxies)),
            allowed_origins: value::origins(&args.allowed_origins).unwrap_or_else(|e| {
                p.add("GATEWAY_ALLOWED_ORIGINS", e);
                AllowedOrigins::Any
            }),
            redis_url: secret_redis.map(Secret),
            redis_ca_file: args.redis_ca_file.clone(),
            keys: keys(p, &args.key_prefix),
            ingest_tokens: p.take("GATEWAY_INGEST_TOKEN", value::tokens(tokens.as_deref())),
            max_connections_per_ip: p
                .take("GATEWAY_MAX_CONNECTIONS_PER_IP", value::number(&args.max_connections_per_ip, 0..=1_000_000)),
            handshakes_per_second_per_ip: p.take(
                "GATEWAY_HANDSHAKES_PER_SECOND_PER_IP",
                value::number(&args.handshakes_per_second_per_ip, 0..=1_000_000),
            ),
            max_connections: max_connections(p, args.max_connections.as_deref(), environment.descriptors_max),
            client_messages_per_second: p
                .take("GATEWAY_CLIENT_MESSAGES_PER_SECOND", value::number(&args.client_messages_per_second, 1..=1_000)),
            client_message_burst: p
                .take("GATEWAY_CLIENT_MESSAGE_BURST", value::number(&args.client_message_burst, 1..=1_000)),
            outbox_bytes: p.take("GATEWAY_OUTBOX_BYTES", value::size(&args.outbox_bytes, 8 << 10, 64 << 20)),
            outbox_total_bytes: p
                .take("GATEWAY_OUTBOX_TOTAL_BYTES", value::size(&args.outbox_total_bytes, 64 << 10, 64 << 30)),
            tick_interval: p.take("GATEWAY_TICK_INTERVAL", value::duration(&args.tick_interval, 200, 300_000)),
            ping_interval: p.take("GATEWAY_PING_INTERVAL", value::duration(&args.ping_interval, 1_000, 600_000)),
            pong_timeout: p.take("GATEWAY_PONG_TIMEOUT", value::duration(&args.pong_timeout, 1_000, 300_000)),
            visitor_window: p.take("GATEWAY_VISITOR_WINDOW", value::duration(&args.visitor_window, 1_000, 43_200_000)),
            flush_interval: p.take("GATEWAY_FLUSH_INTERVAL", value::duration(&args.flush_interval, 0, 5_000)),
            connection_max_age: p
                .take("GATEWAY_CONNECTION_MAX_AGE", value::duration_or_off(&args.connection_max_age, 60_000)),
            drain_delay: p.take("GATEWAY_DRAIN_DELAY", value::duration(&args.drain_delay, 0, 600_000)),
            drain_window: p.take("GATEWAY_DRAIN_WINDOW", value::duration(&args.drain_window, 0, 3_600_000)),
            drain_grace: p.take("GATEWAY_DRAIN_GRACE", value::duration(&args.drain_grace, 0, 600_000)),
            reconnect_budget: p.take(
                "GATEWAY_RECONNECT_BUDGET",
                value::number(args.reconnect_budget.trim_end_matches("/s"), 1..=1_000_000),
            ),
            log: log_filter(p, &args.log),
            log_format: value::one_of(&args.log_format, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
                .unwrap_or_else(|e| {
                    p.add("GATEWAY_LOG_FORMAT", e);
                    LogFormat::Text
                }),
            otlp: otlp(environment),
            test_panic: test_panic(p, environment),
        };
        config.relations(&mut problems);
        if problems.0.is_empty() { Ok(config) } else { Err(problems.0) }
    }

    /// What must hold between options. Compared only where both were readable.
    fn relations(&self, problems: &mut Problems) {
        if self.pong_timeout >= self.ping_interval && !self.ping_interval.is_zero() {
            problems.add("GATEWAY_PONG_TIMEOUT", "must be shorter than GATEWAY_PING_INTERVAL");
        }
        if self.visitor_window < self.tick_interval && !self.visitor_window.is_zero() {
            problems.add("GATEWAY_VISITOR_WINDOW", "must not be shorter than GATEWAY_TICK_INTERVAL");
        }
        if self.outbox_total_bytes < self.outbox_bytes && self.outbox_total_bytes != 0 {
            problems.add("GATEWAY_OUTBOX_TOTAL_BYTES", "must not be smaller than GATEWAY_OUTBOX_BYTES");
        }
        if self.proxy_protocol == ProxyProtocol::On && self.trusted_proxies.is_empty() {
            problems.add("GATEWAY_PROXY_PROTOCOL", "needs GATEWAY_TRUSTED_PROXIES: nobody else's header is believed");
        }
        match (&self.redis_ca_file, self.redis_settings()) {
            (Some(_), None) => problems.add("REDIS_CA_FILE", "needs REDIS_URL"),
            (ca_file, Some(settings)) => {
                let unreadable = ca_file.as_ref().and_then(|path| std::fs::File::open(path).err());
                match (unreadable, settings.check()) {
                    (Some(error), _) => problems.add("REDIS_CA_FILE", format!("cannot be read: {}", error.kind())),
                    (None, Err(error)) => problems.add("REDIS_URL", error.to_string()),
                    (None, Ok(())) => {}
                }
            }
            (None, None) => {}
        }
        if self.listen == self.internal_listen && self.listen.port() != 0 {
            problems.add("GATEWAY_INTERNAL_LISTEN", "must differ from GATEWAY_LISTEN");
        }
    }
}

impl Config {
    /// Where Redis is; none when the backplane is embedded.
    #[must_use]
    pub fn redis_settings(&self) -> Option<RedisSettings> {
        let url = self.redis_url.as_ref()?.reveal().to_owned();
        Some(RedisSettings { url, ca_file: self.redis_ca_file.clone(), keys: self.keys.clone() })
    }
}

fn keys(problems: &mut Problems, prefix: &str) -> Keys {
    Keys::new(prefix)
        .or_else(|error| {
            problems.add("GATEWAY_KEY_PREFIX", error.to_string());
            Keys::new("invalid")
        })
        .unwrap_or_else(|_| unreachable!("a plain word is a valid prefix"))
}

fn max_connections(problems: &mut Problems, text: Option<&str>, descriptors_max: u64) -> u32 {
    let carried = u32::try_from(descriptors_max.saturating_sub(RESERVED_DESCRIPTORS)).unwrap_or(u32::MAX).max(1);
    let Some(text) = text else { return carried };
    let wanted = problems.take("GATEWAY_MAX_CONNECTIONS", value::number(text, 1..=10_000_000));
    if wanted > carried {
        problems.add(
            "GATEWAY_MAX_CONNECTIONS",
            format!("the descriptor limit of {descriptors_max} carries {carried}; raise it (ulimit -n, LimitNOFILE=)"),
        );
    }
    wanted
}

fn log_filter(problems: &mut Problems, text: &str) -> String {
    if tracing_subscriber::EnvFilter::try_new(text).is_err() {
        problems.add("GATEWAY_LOG", "not a log filter; try info, or info,gateway::relay=debug");
    }
    text.to_owned()
}

/// The secret from its variable or its file.
fn secret(problems: &mut Problems, option: &str, given: Option<&str>, file: Option<&Path>) -> Option<String> {
    match (given, file) {
        (Some(_), Some(_)) => {
            problems.add(option, format!("given twice: also as {option}_FILE"));
            None
        }
        (Some(text), None) => Some(text.trim().to_owned()),
        (None, Some(path)) => match std::fs::read_to_string(path) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(error) => {
                problems.add(&format!("{option}_FILE"), format!("cannot be read: {}", error.kind()));
                None
            }
        },
        (None, None) => None,
    }
}

/// `GATEWAY_*` variables that mean nothing are typos, but for those that Kubernetes injects for a service that is
/// called `gateway`.
fn unknown_variables(environment: &Environment, problems: &mut Problems) {
    let known: BTreeSet<String> = Args::command()
        .get_arguments()
        .filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()))
        .chain(["GATEWAY_TEST_PANIC".to_owned()])
        .collect();
    for (name, _) in &environment.variables {
        let ours = name.starts_with("GATEWAY_");
        let injected = name.starts_with("GATEWAY_SERVICE_") || name.starts_with("GATEWAY_PORT");
        if !ours || injected || known.contains(name) {
            continue;
        }
        let near = known.iter().map(|k| (strsim::jaro_winkler(k, name), k)).max_by(|a, b| a.0.total_cmp(&b.0));
        match near {
            Some((score, near)) if score > 0.9 => problems.add(name, format!("unknown; did you mean {near}?")),
            _ => problems.add(name, "unknown"),
        }
    }
}

fn otlp(environment: &Environment) -> Otlp {
    let off = environment.variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let wanted = |signal: &str| {
        let endpoint = environment.variable("OTEL_EXPORTER_OTLP_ENDPOINT").is_some()
            || environment.variable(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")).is_some();
        let exporter = environment.variable(&format!("OTEL_{signal}_EXPORTER")).unwrap_or("otlp");
        endpoint && !off && exporter.split(',').any(|name| name.trim() == "otlp")
    };
    Otlp { traces: wanted("TRACES"), metrics: wanted("METRICS") }
}

fn test_panic(problems: &mut Problems, environment: &Environment) -> Option<TestPanic> {
    let text = environment.variable("GATEWAY_TEST_PANIC")?;
    if !cfg!(debug_assertions) {
        problems.add("GATEWAY_TEST_PANIC", "unknown");
        return None;
    }
    match value::one_of(text, &[("relay", TestPanic::Relay), ("connection", TestPanic::Connection)]) {
        Ok(planted) => Some(planted),
        Err(problem) => {
            problems.add("GATEWAY_TEST_PANIC", problem);
            None
        }
    }
}

#[cfg(test)]
mod tests;
