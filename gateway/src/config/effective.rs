//! What `--check-config` prints: the configuration that would run, as an environment file that gives the same again.
//! What cannot be given again (secrets, and what is absent) stands in comments.

use std::fmt::Write;
use std::time::Duration;

use super::{AllowedOrigins, Config, LogFormat, ProxyProtocol};

/// What a line says of its option.
enum Shown {
    /// Its value.
    Value(String),
    /// Why it has none that could be given again.
    Note(&'static str),
}

impl Config {
    /// One line for each option: `NAME=value`, or `# NAME: …` for secrets, which are hidden, and for what is absent.
    #[must_use]
    pub fn effective(&self) -> String {
        let duration =
            |d: Duration| if d.is_zero() { "0".to_owned() } else { humantime::format_duration(d).to_string() };
        let join = |items: Vec<String>| items.join(",");
        let redis = self.redis_url.as_ref().map_or("absent: embedded backplane, one node", |_| "hidden");
        let tokens = if self.ingest_tokens.is_empty() { "absent: ingest is off" } else { "hidden" };
        let origins = match &self.allowed_origins {
            AllowedOrigins::Any => "*".to_owned(),
            AllowedOrigins::Only(set) => join(set.iter().cloned().collect()),
        };
        let ca_file = self.redis_ca_file.as_ref().map_or(String::new(), |path| path.display().to_string());
        let proxy_protocol = match self.proxy_protocol {
            ProxyProtocol::Off => "off",
            ProxyProtocol::On => "on",
        };
        let log_format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let value = Shown::Value;
        let lines: [(&str, Shown); 29] = [
            ("GATEWAY_LISTEN", value(self.listen.to_string())),
            ("GATEWAY_INTERNAL_LISTEN", value(self.internal_listen.to_string())),
            ("GATEWAY_PROXY_PROTOCOL", value(proxy_protocol.to_owned())),
            ("GATEWAY_TRUSTED_PROXIES", value(join(self.trusted_proxies.iter().map(ToString::to_string).collect()))),
            ("GATEWAY_ALLOWED_ORIGINS", value(origins)),
            ("REDIS_URL", Shown::Note(redis)),
            ("REDIS_CA_FILE", value(ca_file)),
            ("GATEWAY_KEY_PREFIX", value(self.keys.prefix().to_owned())),
            ("GATEWAY_INGEST_TOKEN", Shown::Note(tokens)),
            ("GATEWAY_MAX_CONNECTIONS_PER_IP", value(self.max_connections_per_ip.to_string())),
            ("GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", value(self.handshakes_per_second_per_ip.to_string())),
            ("GATEWAY_MAX_CONNECTIONS", value(self.max_connections.to_string())),
            ("GATEWAY_CLIENT_MESSAGES_PER_SECOND", value(self.client_messages_per_second.to_string())),
            ("GATEWAY_CLIENT_MESSAGE_BURST", value(self.client_message_burst.to_string())),
            ("GATEWAY_OUTBOX_BYTES", value(self.outbox_bytes.to_string())),
            ("GATEWAY_OUTBOX_TOTAL_BYTES", value(self.outbox_total_bytes.to_string())),
            ("GATEWAY_REPLAY_BYTES", value(self.replay_bytes.to_string())),
            ("GATEWAY_TICK_INTERVAL", value(duration(self.tick_interval))),
            ("GATEWAY_PING_INTERVAL", value(duration(self.ping_interval))),
            ("GATEWAY_PONG_TIMEOUT", value(duration(self.pong_timeout))),
            ("GATEWAY_VISITOR_WINDOW", value(duration(self.visitor_window))),
            ("GATEWAY_FLUSH_INTERVAL", value(duration(self.flush_interval))),
            ("GATEWAY_CONNECTION_MAX_AGE", value(self.connection_max_age.map_or("off".to_owned(), duration))),
            ("GATEWAY_DRAIN_DELAY", value(duration(self.drain_delay))),
            ("GATEWAY_DRAIN_WINDOW", value(duration(self.drain_window))),
            ("GATEWAY_DRAIN_GRACE", value(duration(self.drain_grace))),
            ("GATEWAY_RECONNECT_BUDGET", value(self.reconnect_budget.to_string())),
            ("GATEWAY_LOG", value(self.log.clone())),
            ("GATEWAY_LOG_FORMAT", value(log_format.to_owned())),
        ];
        lines.into_iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = match value {
                Shown::Value(value) => writeln!(text, "{name}={value}"),
                Shown::Note(note) => writeln!(text, "# {name}: {note}"),
            };
            text
        })
    }
}
