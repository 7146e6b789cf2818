//! What `--check-config` prints: the configuration that would run, as variables that could be pasted back.

use std::fmt::Write;
use std::time::Duration;

use super::{AllowedOrigins, Config, LogFormat, ProxyProtocol};

impl Config {
    /// One `NAME=value` line for each option; secrets are hidden, options without a value say what that means.
    #[must_use]
    pub fn effective(&self) -> String {
        let duration =
            |d: Duration| if d.is_zero() { "0".to_owned() } else { humantime::format_duration(d).to_string() };
        let join = |items: Vec<String>| items.join(",");
        let redis = self.redis_url.as_ref().map_or("# absent: embedded backplane, one node", |_| "(hidden)");
        let tokens = if self.ingest_tokens.is_empty() { "# absent: ingest is off" } else { "(hidden)" };
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
        let lines: [(&str, String); 28] = [
            ("GATEWAY_LISTEN", self.listen.to_string()),
            ("GATEWAY_INTERNAL_LISTEN", self.internal_listen.to_string()),
            ("GATEWAY_PROXY_PROTOCOL", proxy_protocol.to_owned()),
            ("GATEWAY_TRUSTED_PROXIES", join(self.trusted_proxies.iter().map(ToString::to_string).collect())),
            ("GATEWAY_ALLOWED_ORIGINS", origins),
            ("REDIS_URL", redis.to_owned()),
            ("REDIS_CA_FILE", ca_file),
            ("GATEWAY_KEY_PREFIX", self.keys.prefix().to_owned()),
            ("GATEWAY_INGEST_TOKEN", tokens.to_owned()),
            ("GATEWAY_MAX_CONNECTIONS_PER_IP", self.max_connections_per_ip.to_string()),
            ("GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", self.handshakes_per_second_per_ip.to_string()),
            ("GATEWAY_MAX_CONNECTIONS", self.max_connections.to_string()),
            ("GATEWAY_CLIENT_MESSAGES_PER_SECOND", self.client_messages_per_second.to_string()),
            ("GATEWAY_CLIENT_MESSAGE_BURST", self.client_message_burst.to_string()),
            ("GATEWAY_OUTBOX_BYTES", self.outbox_bytes.to_string()),
            ("GATEWAY_OUTBOX_TOTAL_BYTES", self.outbox_total_bytes.to_string()),
            ("GATEWAY_TICK_INTERVAL", duration(self.tick_interval)),
            ("GATEWAY_PING_INTERVAL", duration(self.ping_interval)),
            ("GATEWAY_PONG_TIMEOUT", duration(self.pong_timeout)),
            ("GATEWAY_VISITOR_WINDOW", duration(self.visitor_window)),
            ("GATEWAY_FLUSH_INTERVAL", duration(self.flush_interval)),
            ("GATEWAY_CONNECTION_MAX_AGE", self.connection_max_age.map_or("off".to_owned(), duration)),
            ("GATEWAY_DRAIN_DELAY", duration(self.drain_delay)),
            ("GATEWAY_DRAIN_WINDOW", duration(self.drain_window)),
            ("GATEWAY_DRAIN_GRACE", duration(self.drain_grace)),
            ("GATEWAY_RECONNECT_BUDGET", self.reconnect_budget.to_string()),
            ("GATEWAY_LOG", self.log.clone()),
            ("GATEWAY_LOG_FORMAT", log_format.to_owned()),
        ];
        lines.into_iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}={value}");
            text
        })
    }
}
