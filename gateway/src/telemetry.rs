//! Logs and traces: what goes where, decided once at start.
//!
//! Logs are events: a lower-case message, values as fields, nothing from outside in them (Inv. PRIVATE). Spans exist
//! for traces alone; they carry the target [`TRACE_TARGET`], which the log layer never looks at, so that a node
//! without a collector pays one disabled check per handshake and nothing per socket.

use std::collections::HashMap;

use anyhow::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider as _};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Config, LogFormat};

/// The target of spans that are meant for traces.
pub const TRACE_TARGET: &str = "trace";
/// The name under which W3C trace context travels.
const TRACEPARENT: &str = "traceparent";

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

/// Makes `span` a child of the trace that a request names (W3C `traceparent`, already validated), and returns what
/// the work done in it should name: the span itself where traces are exported, else what the request named.
pub fn join_trace(span: &tracing::Span, traceparent: Option<String>) -> Option<String> {
    let propagator = TraceContextPropagator::new();
    if let Some(named) = &traceparent {
        let carrier = HashMap::from([(TRACEPARENT.to_owned(), named.clone())]);
        // Without a layer that exports traces there is nothing to join.
        let _ = span.set_parent(propagator.extract(&carrier));
    }
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return traceparent;
    }
    let mut carrier = HashMap::new();
    propagator.inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT).or(traceparent)
}

fn tracer_provider() -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder().with_http().build().context("OTLP span exporter")?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).build())
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    const NAMED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn work_joins_the_trace_that_its_request_names() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!(target: TRACE_TARGET, "ingest");
            let joined = join_trace(&span, Some(NAMED.to_owned())).expect("a trace");
            // The same trace, another span.
            assert_eq!(joined[..36], NAMED[..36]);
            assert_ne!(joined, NAMED);
            let alone = tracing::info_span!(target: TRACE_TARGET, "ingest");
            assert!(join_trace(&alone, None).is_some_and(|own| own[..36] != NAMED[..36]));
        });
    }

    #[test]
    fn without_an_exporter_the_requests_own_word_is_passed_on() {
        let span = tracing::info_span!(target: TRACE_TARGET, "ingest");
        assert_eq!(join_trace(&span, Some(NAMED.to_owned())).as_deref(), Some(NAMED));
        assert_eq!(join_trace(&span, None), None);
    }
}
