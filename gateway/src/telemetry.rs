//! Logs and traces: what goes where, decided once at start.
//!
//! Logs are events: a lower-case message, values as fields, nothing from outside in them (Inv. PRIVATE). Spans exist
//! for traces alone; they carry the target [`TRACE_TARGET`], which the log layer never looks at, so that a node
//! without a collector pays one disabled check per handshake and nothing per socket.

use anyhow::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Config, LogFormat};

/// The target of spans that are meant for traces.
pub const TRACE_TARGET: &str = "trace";

/// Keeps the exporters alive; dropping it sends what they still hold.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Installs the log and trace layers for the process.
    ///
    /// # Errors
    /// When an exporter cannot be built from the `OTEL_*` variables, or a subscriber is installed already.
    pub fn install(config: &Config) -> anyhow::Result<Self> {
        let filter = EnvFilter::try_new(&config.log)
            .context("GATEWAY_LOG")?
            .add_directive(format!("{TRACE_TARGET}=off").parse().context("the directive is a constant")?);
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match config.log_format {
            LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let traces = if config.otlp.traces { Some(tracer_provider()?) } else { None };
        let spans = traces.as_ref().map(|provider| {
            let only_spans = Targets::new().with_target(TRACE_TARGET, tracing::Level::INFO);
            tracing_opentelemetry::layer().with_tracer(provider.tracer("gateway")).with_filter(only_spans)
        });
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self { traces })
    }

    /// The exporter of metrics, if they are to leave through OTLP.
    ///
    /// # Errors
    /// When it cannot be built from the `OTEL_*` variables.
    pub fn metric_exporter(config: &Config) -> anyhow::Result<Option<MetricExporter>> {
        if !config.otlp.metrics {
            return Ok(None);
        }
        Ok(Some(MetricExporter::builder().with_http().build().context("OTLP metric exporter")?))
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.traces.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::debug!(%error, "trace exporter did not end cleanly");
        }
    }
}

fn tracer_provider() -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder().with_http().build().context("OTLP span exporter")?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).build())
}
