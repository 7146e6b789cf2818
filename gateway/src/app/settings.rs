//! From the configuration to what each room goes by.

use std::time::Duration;

use crate::admission::AdmissionSettings;
use crate::config::{Config, RESERVED_DESCRIPTORS, TestPanic};
use crate::drain::DrainSettings;
use crate::http::HttpSettings;
use crate::hub::{HubSettings, PanicOn};
use crate::ticker::TickerSettings;

/// How long the ticker's lease holds without renewal.
const TICKER_LEASE: Duration = Duration::from_secs(3);
/// How long a handshake waits for the backplane before the node decides alone.
const ADMISSION_WAIT: Duration = Duration::from_millis(250);

pub(super) fn ticker(config: &Config) -> TickerSettings {
    TickerSettings { interval: config.tick_interval, window: config.visitor_window, lease: TICKER_LEASE }
}

pub(super) fn admission(config: &Config) -> AdmissionSettings {
    AdmissionSettings {
        max_connections: config.max_connections,
        max_per_address: config.max_connections_per_ip,
        handshakes_per_second: config.handshakes_per_second_per_ip,
        backplane_wait: ADMISSION_WAIT,
        visitor_window: config.visitor_window,
    }
}

pub(super) fn hub(config: &Config) -> HubSettings {
    HubSettings {
        outbox_bytes_max: config.outbox_bytes,
        outbox_total_bytes_max: config.outbox_total_bytes,
        ping_interval: config.ping_interval,
        pong_timeout: config.pong_timeout,
        messages_per_second: config.client_messages_per_second,
        message_burst: config.client_message_burst,
        snapshot_interval: config.tick_interval,
        flush_interval: config.flush_interval,
        max_age: config.connection_max_age,
        replay_bytes_max: config.replay_bytes,
        panic_on: (config.test_panic == Some(TestPanic::Connection)).then_some(PanicOn::ClientMessage),
        ..HubSettings::default()
    }
}

/// Of the descriptors that sockets leave, those for connections that have not upgraded.
const PENDING_DESCRIPTORS: usize = 256;
const _: () = assert!(PENDING_DESCRIPTORS as u64 <= RESERVED_DESCRIPTORS / 2, "the rest needs some too");

pub(super) fn http(config: &Config) -> HttpSettings {
    HttpSettings {
        origins: config.allowed_origins.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        proxy_protocol: config.proxy_protocol,
        ingest_tokens: config.ingest_tokens.clone(),
        connections_max: config.max_connections as usize + PENDING_DESCRIPTORS,
        ..HttpSettings::default()
    }
}

pub(super) fn drain(config: &Config) -> DrainSettings {
    DrainSettings {
        delay: config.drain_delay,
        window: config.drain_window,
        grace: config.drain_grace,
        reconnect_budget: config.reconnect_budget,
    }
}
