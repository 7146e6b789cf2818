//! Configuration: raw words first, then their meaning, then whether it makes sense as a whole.
//!
//! A gateway that starts with half of what its operator wrote is worse than one that does not start. So flags and
//! environment variables are read as text ([`Args`]), turned into meaning in one step that collects *every* error
//! ([`Config::resolve`]), and a `GATEWAY_*` variable that means nothing is an error too: it is a typo. Nobody else in
//! this crate asks the environment.
//!
//! Precedence: a flag wins over its variable, which wins over the default. A secret may stand in a file instead
//! (`…_FILE`), but not in both. Defaults are the seed protocol's, or carry their reason in the help text.

mod args;
mod effective;
mod environment;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use shared::keys::Keys;

pub use self::args::Args;
pub use self::environment::Environment;
use self::environment::{otlp, secret, test_panic, unknown_variables};
use crate::backplane::redis::RedisSettings;

/// Descriptors that are not client sockets: listeners, Redis, the runtime, connections that have not upgraded yet.
pub const RESERVED_DESCRIPTORS: u64 = 512;

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
    pub replay_bytes: usize,
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

/// Gathers what is wrong while the rest is read on.
#[derive(Default)]
struct Problems(Vec<ConfigError>);

impl Problems {
    fn add(&mut self, option: &str, problem: impl Into<String>) {
        self.0.push(ConfigError { option: option.to_owned(), problem: problem.into() });
    }

    /// The value, or `stand_in` with the problem noted.
    fn take_or<T>(&mut self, option: &str, result: Result<T, String>, stand_in: T) -> T {
        result.unwrap_or_else(|problem| {
            self.add(option, problem);
            stand_in
        })
    }

    fn take<T: Default>(&mut self, option: &str, result: Result<T, String>) -> T {
        self.take_or(option, result, T::default())
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
            listen: p.take_or("GATEWAY_LISTEN", value::address(&args.listen), any_port),
            internal_listen: p.take_or("GATEWAY_INTERNAL_LISTEN", value::address(&args.internal_listen), any_port),
            proxy_protocol: p.take_or(
                "GATEWAY_PROXY_PROTOCOL",
                value::one_of(&args.proxy_protocol, &[("off", ProxyProtocol::Off), ("on", ProxyProtocol::On)]),
                ProxyProtocol::Off,
            ),
            trusted_proxies: p.take("GATEWAY_TRUSTED_PROXIES", value::networks(&args.trusted_proxies)),
            allowed_origins: p.take_or(
                "GATEWAY_ALLOWED_ORIGINS",
                value::origins(&args.allowed_origins),
                AllowedOrigins::Any,
            ),
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
            replay_bytes: p.take("GATEWAY_REPLAY_BYTES", value::size(&args.replay_bytes, 0, 1 << 30)),
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
            log_format: p.take_or(
                "GATEWAY_LOG_FORMAT",
                value::one_of(&args.log_format, &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
                LogFormat::Text,
            ),
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

#[cfg(test)]
mod tests;
