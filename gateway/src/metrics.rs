//! What the node counts, and how it is read.
//!
//! The hot path must pay nothing, so a counter is one relaxed atomic in a plain struct, and broadcast passes add once
//! per pass rather than once per socket. OpenTelemetry's observable instruments read the atomics when somebody asks;
//! the same instruments feed the Prometheus page and, where configured, OTLP.
//!
//! Three names are the seed's and carry exactly its labels: `websocket_connections_active`,
//! `websocket_messages_total{direction}` and `websocket_errors_total`. Details have names of their own under
//! `gateway_`, whose labels are closed enums: nothing that comes from outside can make a time series.

mod labels;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};

pub use self::labels::{
    BackplaneFailure, Close, Connect, Direction, Handshake, Inbound, Ingest, IngestRefused, Label, Legacy, Relayed,
    Resume, TickOutcome,
};

/// The content type of the metrics page: the Prometheus text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the number.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters, one for each value of a label.
#[derive(Debug)]
pub struct Family<L> {
    values: Box<[Counter]>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> Default for Family<L> {
    fn default() -> Self {
        Self { values: L::VALUES.iter().map(|_| Counter::default()).collect(), label: std::marker::PhantomData }
    }
}

impl<L: Label> Family<L> {
    /// One more of `label`.
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// `n` more of `label`.
    pub fn add(&self, label: L, n: u64) {
        self.values[label.index()].add(n);
    }

    /// How many of `label` so far.
    #[must_use]
    pub fn value(&self, label: L) -> u64 {
        self.values[label.index()].value()
    }
}

/// Everything that a node counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Open WebSockets.
    pub connections_active: Gauge,
    /// WebSocket messages, both ways.
    pub messages: Family<Direction>,
    /// Sockets that ended by a fault: everything but normal and draining closes.
    pub errors: Counter,
    /// Requests to open a WebSocket.
    pub handshakes: Family<Handshake>,
    /// TCP connections that came to nothing.
    pub connects_failed: Family<Connect>,
    /// Sockets that ended.
    pub closes: Family<Close>,
    /// What clients sent.
    pub inbound: Family<Inbound>,
    /// Events that producers POSTed.
    pub ingest: Family<Ingest>,
    /// Requests to the ingest path that were refused.
    pub ingest_refused: Family<IngestRefused>,
    /// Stream entries.
    pub relayed: Family<Relayed>,
    /// Messages of the legacy channel.
    pub legacy: Family<Legacy>,
    /// Ticks that this node tried.
    pub ticks: Family<TickOutcome>,
    /// Calls of the backplane that failed.
    pub backplane_failures: Family<BackplaneFailure>,
    /// Times that the connection to the backplane was made anew.
    pub backplane_reconnects: Counter,
    /// 1 while the backplane answers.
    pub backplane_up: Gauge,
    /// 1 while this node is the ticker.
    pub ticker: Gauge,
    /// 1 while clients are told that the number is stale.
    pub stale: Gauge,
    /// Admissions that the node decided alone because the backplane did not answer.
    pub admissions_alone: Counter,
    /// Broadcast passes.
    pub passes: Counter,
    /// Bytes that wait in outboxes.
    pub outbox_bytes: Gauge,
    /// Events that slow readers missed.
    pub events_discarded: Counter,
    /// Sockets whose outbox overflowed.
    pub outbox_overflows: Counter,
    /// Entries that are missing from the stream, as far as gaps told.
    pub gaps: Counter,
    /// Clients that named the last message that they have.
    pub resumes: Family<Resume>,
    /// Messages of the past that are kept for them.
    pub replay_entries: Gauge,
    /// What those cost, in bytes.
    pub replay_bytes: Gauge,
    /// Reads of the backplane for more of the past.
    pub replay_reads: Counter,
    /// Visitors that were marked as seen.
    pub visitors_touched: Counter,
    /// Drains that closed faster than the fleet's reconnect budget.
    pub drains_over_budget: Counter,
}

impl Metrics {
    /// Says how much of the past is kept: messages, and their bytes.
    pub fn replay_size(&self, (entries, bytes): (usize, usize)) {
        self.replay_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.replay_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Counts the end of a socket, and an error where it is one.
    pub fn closed(&self, close: Close) {
        self.closes.inc(close);
        if !matches!(close, Close::Normal | Close::Draining) {
            self.errors.inc();
        }
    }
}

/// The metrics page. Keeps the instruments alive.
#[derive(Debug)]
pub struct Page {
    registry: Registry,
    _provider: SdkMeterProvider,
}

impl Page {
    /// Registers an instrument for each field of `metrics`; `otlp` gets them too, where metrics leave that way.
    ///
    /// # Errors
    /// When the exporter cannot be built; that is a programming error, met at start.
    pub fn new(metrics: &Arc<Metrics>, otlp: Option<MetricExporter>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_counter_suffixes()
            .without_units()
            .without_target_info()
            .scope_info_enabled(false)
            .build()?;
        let mut provider = SdkMeterProvider::builder().with_reader(exporter);
        if let Some(otlp) = otlp {
            provider = provider.with_periodic_exporter(otlp);
        }
        let provider = provider.build();
        register(&provider.meter("gateway"), metrics);
        Ok(Self { registry, _provider: provider })
    }

    /// The page in the Prometheus text format.
    ///
    /// # Errors
    /// When two instruments share a name; the test below excludes it.
    pub fn render(&self) -> anyhow::Result<String> {
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }
}

/// Registers instruments that read `metrics`' atomics when asked.
pub fn register(meter: &Meter, metrics: &Arc<Metrics>) {
    let m = metrics;
    gauge(meter, m, "websocket_connections_active", "Open WebSocket connections", |m| &m.connections_active);
    family(meter, m, "websocket_messages_total", "WebSocket messages sent and received", |m| &m.messages);
    counter(meter, m, "websocket_errors_total", "WebSocket connections that ended by a fault", |m| &m.errors);

    family(meter, m, "gateway_handshakes_total", "Requests to open a WebSocket, by outcome", |m| &m.handshakes);
    family(meter, m, "gateway_connects_failed_total", "TCP connections that made no request of use", |m| {
        &m.connects_failed
    });
    family(meter, m, "gateway_socket_closes_total", "WebSocket connections that ended, by reason", |m| &m.closes);
    family(meter, m, "gateway_client_messages_total", "Messages and control frames of clients", |m| &m.inbound);
    family(meter, m, "gateway_ingest_events_total", "Events that producers POSTed, by outcome", |m| &m.ingest);
    family(meter, m, "gateway_ingest_refused_total", "Refused requests to the ingest path", |m| &m.ingest_refused);
    family(meter, m, "gateway_stream_entries_total", "Entries read from the stream, by outcome", |m| &m.relayed);
    family(meter, m, "gateway_legacy_messages_total", "Messages of the legacy channel, by outcome", |m| &m.legacy);
    family(meter, m, "gateway_ticks_total", "Ticks that this node tried, by outcome", |m| &m.ticks);
    family(meter, m, "gateway_backplane_failures_total", "Failed calls of the backplane", |m| &m.backplane_failures);
    counter(meter, m, "gateway_backplane_reconnects_total", "Reconnections to the backplane", |m| {
        &m.backplane_reconnects
    });
    gauge(meter, m, "gateway_backplane_up", "1 while the backplane answers", |m| &m.backplane_up);
    gauge(meter, m, "gateway_ticker", "1 while this node is the ticker", |m| &m.ticker);
    gauge(meter, m, "gateway_stale", "1 while the number shown is flagged as stale", |m| &m.stale);
    counter(meter, m, "gateway_admissions_alone_total", "Admissions decided without the backplane", |m| {
        &m.admissions_alone
    });
    counter(meter, m, "gateway_broadcast_passes_total", "Passes of the broadcaster over all sockets", |m| &m.passes);
    gauge(meter, m, "gateway_outbox_bytes", "Bytes that wait for slow readers", |m| &m.outbox_bytes);
    counter(meter, m, "gateway_events_discarded_total", "Messages that slow readers missed", |m| &m.events_discarded);
    counter(meter, m, "gateway_outbox_overflows_total", "Outboxes that overflowed", |m| &m.outbox_overflows);
    counter(meter, m, "gateway_gap_entries_total", "Stream entries known to be lost", |m| &m.gaps);
    family(meter, m, "gateway_resumes_total", "Clients that named the last message that they have", |m| &m.resumes);
    gauge(meter, m, "gateway_replay_entries", "Stream entries kept for returning clients", |m| &m.replay_entries);
    gauge(meter, m, "gateway_replay_bytes", "Bytes of the entries kept for returning clients", |m| &m.replay_bytes);
    counter(meter, m, "gateway_replay_reads_total", "Reads of the backplane for more of the past", |m| &m.replay_reads);
    counter(meter, m, "gateway_drains_over_budget_total", "Drains faster than the reconnect budget", |m| {
        &m.drains_over_budget
    });
    counter(meter, m, "gateway_visitors_touched_total", "Visitors marked as seen", |m| &m.visitors_touched);
}

fn counter(meter: &Meter, m: &Arc<Metrics>, name: &'static str, help: &'static str, field: fn(&Metrics) -> &Counter) {
    let m = Arc::clone(m);
    meter
        .u64_observable_counter(name)
        .with_description(help)
        .with_callback(move |observer| observer.observe(field(&m).value(), &[]))
        .build();
}

fn gauge(meter: &Meter, m: &Arc<Metrics>, name: &'static str, help: &'static str, field: fn(&Metrics) -> &Gauge) {
    let m = Arc::clone(m);
    meter
        .i64_observable_gauge(name)
        .with_description(help)
        .with_callback(move |observer| observer.observe(field(&m).value(), &[]))
        .build();
}

fn family<L: Label>(
    meter: &Meter,
    m: &Arc<Metrics>,
    name: &'static str,
    help: &'static str,
    field: fn(&Metrics) -> &Family<L>,
) {
    let m = Arc::clone(m);
    let labels: Vec<[KeyValue; 1]> = L::VALUES.iter().map(|value| [KeyValue::new(L::NAME, *value)]).collect();
    meter
        .u64_observable_counter(name)
        .with_description(help)
        .with_callback(move |observer| {
            for (counter, label) in field(&m).values.iter().zip(&labels) {
                observer.observe(counter.value(), label);
            }
        })
        .build();
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inv. WIRE: the seed's three names, with exactly its labels.
    #[test]
    fn the_seeds_names_and_labels() {
        let metrics = Arc::new(Metrics::default());
        metrics.connections_active.add(2);
        metrics.messages.add(Direction::Sent, 20);
        metrics.closed(Close::PongTimeout);
        metrics.closed(Close::Normal);
        let page = Page::new(&metrics, None).expect("builds").render().expect("renders");
        let seed: Vec<&str> = page.lines().filter(|line| line.starts_with("websocket_")).collect();
        assert_eq!(
            seed,
            [
                "websocket_connections_active 2",
                "websocket_errors_total 1",
                "websocket_messages_total{direction=\"received\"} 0",
                "websocket_messages_total{direction=\"sent\"} 20",
            ]
        );
    }

    // Inv. WIRE: metrics call a close what the table of close codes calls it.
    #[test]
    fn closes_are_named_as_in_the_table() {
        for reason in shared::close::CloseReason::ALL {
            assert_eq!(Close::VALUES[Close::from(reason).index()], reason.label());
        }
    }

    // What docs/OPERATIONS.md says of metrics is the page: each name, and each value of each label.
    #[test]
    fn the_documented_metrics_are_the_metrics() {
        let operations = include_str!("../../docs/OPERATIONS.md");
        let table =
            operations.split_once("## Metrics").and_then(|(_, rest)| rest.split_once("\n## ")).expect("there").0;
        let page = Page::new(&Arc::new(Metrics::default()), None).expect("builds").render().expect("renders");
        let names: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        for name in &names {
            let rows: Vec<&str> =
                table.lines().filter(|line| line.starts_with('|') && line.contains(&format!("`{name}`"))).collect();
            let [row] = rows[..] else { panic!("{name} has {} rows", rows.len()) };
            let series = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split('"').nth(1));
            for value in series {
                assert!(row.contains(&format!("`{value}`")), "{name}: {value} is not documented");
            }
        }
        let documented = table.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |"));
        let documented: Vec<&str> = documented
            .flat_map(|(cell, _)| cell.split(", "))
            .filter_map(|name| name.strip_prefix('`')?.strip_suffix('`'))
            .collect();
        for name in documented {
            assert!(names.contains(&name), "{name} is documented and not there");
        }
    }

    #[test]
    fn each_metric_has_help_and_a_name_of_its_own() {
        let page = Page::new(&Arc::new(Metrics::default()), None).expect("builds").render().expect("renders");
        let names: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let helps: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
        assert_eq!(names, helps);
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        assert_eq!(names.len(), 29);
    }
}
