//! The words: every option as it was written, as a flag or as a variable.
//!
//! All of them are text here. Were they numbers and addresses, the first that does not parse would end the reading,
//! and an operator would learn of one mistake per start.

use std::path::PathBuf;

use clap::Parser;

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
    pub(super) listen: String,
    /// Address of /metrics, /livez, /readyz and /healthz; keep it off the internet
    #[arg(long, env = "GATEWAY_INTERNAL_LISTEN", default_value = "127.0.0.1:9464", help_heading = "Listeners")]
    pub(super) internal_listen: String,
    /// Read a PROXY protocol v1 or v2 header from trusted proxies; X-Forwarded-For is then ignored [off, on]
    #[arg(long, env = "GATEWAY_PROXY_PROTOCOL", default_value = "off", help_heading = "Listeners")]
    pub(super) proxy_protocol: String,
    /// Proxies (addresses or CIDRs, comma list) whose word about the client's address is believed
    #[arg(long, env = "GATEWAY_TRUSTED_PROXIES", default_value = "", help_heading = "Listeners")]
    pub(super) trusted_proxies: String,
    /// Origins that browsers may connect from (comma list, `*` for all), beside the gateway's own
    #[arg(long, env = "GATEWAY_ALLOWED_ORIGINS", default_value = "http://localhost:3000", help_heading = "Listeners")]
    pub(super) allowed_origins: String,

    /// Redis: redis://, rediss://, redis-sentinel://, redis-cluster://, redis+unix://. Absent: embedded, one node
    #[arg(long, env = "REDIS_URL", hide_env_values = true, help_heading = "Backplane")]
    pub(super) redis_url: Option<String>,
    /// File that holds the Redis URL
    #[arg(long, env = "REDIS_URL_FILE", help_heading = "Backplane")]
    pub(super) redis_url_file: Option<PathBuf>,
    /// PEM file of the authority that signed Redis's certificate, for rediss://
    #[arg(long, env = "REDIS_CA_FILE", help_heading = "Backplane")]
    pub(super) redis_ca_file: Option<PathBuf>,
    /// Prefix of every Redis name; gateways that share it form one cluster
    #[arg(long, env = "GATEWAY_KEY_PREFIX", default_value = "analytics", help_heading = "Backplane")]
    pub(super) key_prefix: String,

    /// Bearer tokens (comma list, for rotation) of POST /api/v1/events. Absent: the path does not exist
    #[arg(long, env = "GATEWAY_INGEST_TOKEN", hide_env_values = true, help_heading = "Ingest")]
    pub(super) ingest_token: Option<String>,
    /// File that holds the tokens
    #[arg(long, env = "GATEWAY_INGEST_TOKEN_FILE", help_heading = "Ingest")]
    pub(super) ingest_token_file: Option<PathBuf>,

    /// Sockets of one client address, over all nodes; IPv6 counts per /64; 0 is no limit
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS_PER_IP", default_value = "10", help_heading = "Limits")]
    pub(super) max_connections_per_ip: String,
    /// Handshakes per second of one client address, burst four times that; 0 is no limit
    #[arg(long, env = "GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", default_value = "5", help_heading = "Limits")]
    pub(super) handshakes_per_second_per_ip: String,
    /// Sockets of this node [default: the descriptor limit less 512]
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS", help_heading = "Limits")]
    pub(super) max_connections: Option<String>,
    /// Messages per second that a client may send; answers to pings always pass
    #[arg(long, env = "GATEWAY_CLIENT_MESSAGES_PER_SECOND", default_value = "1", help_heading = "Limits")]
    pub(super) client_messages_per_second: String,
    /// Messages that a client may send at once
    #[arg(long, env = "GATEWAY_CLIENT_MESSAGE_BURST", default_value = "5", help_heading = "Limits")]
    pub(super) client_message_burst: String,
    /// Bytes that may wait for one slow reader before its events are dropped for the newest state
    #[arg(long, env = "GATEWAY_OUTBOX_BYTES", default_value = "64KiB", help_heading = "Limits")]
    pub(super) outbox_bytes: String,
    /// Bytes that may wait for all slow readers together before the slowest is closed
    #[arg(long, env = "GATEWAY_OUTBOX_TOTAL_BYTES", default_value = "64MiB", help_heading = "Limits")]
    pub(super) outbox_total_bytes: String,
    /// Bytes of the newest messages that are kept for clients which come back; at most 10,000 messages; 0 keeps none
    #[arg(long, env = "GATEWAY_REPLAY_BYTES", default_value = "4MiB", help_heading = "Limits")]
    pub(super) replay_bytes: String,

    /// Time between two counts of the active visitors
    #[arg(long, env = "GATEWAY_TICK_INTERVAL", default_value = "5s", help_heading = "Times")]
    pub(super) tick_interval: String,
    /// Time between two pings of a socket
    #[arg(long, env = "GATEWAY_PING_INTERVAL", default_value = "30s", help_heading = "Times")]
    pub(super) ping_interval: String,
    /// Time in which a ping must be answered
    #[arg(long, env = "GATEWAY_PONG_TIMEOUT", default_value = "10s", help_heading = "Times")]
    pub(super) pong_timeout: String,
    /// Time for which a visitor counts after it was last seen
    #[arg(long, env = "GATEWAY_VISITOR_WINDOW", default_value = "5m", help_heading = "Times")]
    pub(super) visitor_window: String,
    /// Least time between two broadcasts, to gather events of a flood into fewer writes; 0: as long as pays by itself
    #[arg(long, env = "GATEWAY_FLUSH_INTERVAL", default_value = "0", help_heading = "Times")]
    pub(super) flush_interval: String,
    /// Age at which a socket is asked to reconnect (±10 %), so that a grown fleet gets its share; `off` for never
    #[arg(long, env = "GATEWAY_CONNECTION_MAX_AGE", default_value = "off", help_heading = "Times")]
    pub(super) connection_max_age: String,

    /// After SIGTERM: time in which upgrades are still taken while load balancers learn of it
    #[arg(long, env = "GATEWAY_DRAIN_DELAY", default_value = "5s", help_heading = "Shutdown")]
    pub(super) drain_delay: String,
    /// Then: time over which the sockets' closes are spread
    #[arg(long, env = "GATEWAY_DRAIN_WINDOW", default_value = "25s", help_heading = "Shutdown")]
    pub(super) drain_window: String,
    /// Then: time that is left for the last of them
    #[arg(long, env = "GATEWAY_DRAIN_GRACE", default_value = "10s", help_heading = "Shutdown")]
    pub(super) drain_grace: String,
    /// Reconnects per second that the rest of the fleet can take; a drain that must exceed it warns
    #[arg(long, env = "GATEWAY_RECONNECT_BUDGET", default_value = "500", help_heading = "Shutdown")]
    pub(super) reconnect_budget: String,

    /// Log filter: off, error, warn, info, debug, trace, or per target (`info,gateway::relay=debug`)
    #[arg(long, env = "GATEWAY_LOG", default_value = "info", help_heading = "Logs")]
    pub(super) log: String,
    /// Log format [text, json]
    #[arg(long, env = "GATEWAY_LOG_FORMAT", default_value = "text", help_heading = "Logs")]
    pub(super) log_format: String,

    /// Print the configuration that would run, secrets hidden, or every error (exit 2), and end
    #[arg(long)]
    pub check_config: bool,
    /// Ask a running gateway whether it is ready (exit 0) and end; for containers. ADDRESS is its internal listener
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "")]
    pub healthcheck: Option<String>,
}
