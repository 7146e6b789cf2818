//! What stands in the environment and in files: the variables, secrets, and what no option names.
//!
//! This is the one place that reads the process's environment. It is taken whole and handed on as a value, so that a
//! test brings its own, and so that a `GATEWAY_*` variable that means nothing is found.

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;

use super::{Args, Otlp, Problems, TestPanic, value};

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

/// The secret from its variable or its file.
pub(super) fn secret(
    problems: &mut Problems,
    option: &str,
    given: Option<&str>,
    file: Option<&Path>,
) -> Option<String> {
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
pub(super) fn unknown_variables(environment: &Environment, problems: &mut Problems) {
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

pub(super) fn otlp(environment: &Environment) -> Otlp {
    let off = environment.variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let wanted = |signal: &str| {
        let endpoint = environment.variable("OTEL_EXPORTER_OTLP_ENDPOINT").is_some()
            || environment.variable(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")).is_some();
        let exporter = environment.variable(&format!("OTEL_{signal}_EXPORTER")).unwrap_or("otlp");
        endpoint && !off && exporter.split(',').any(|name| name.trim() == "otlp")
    };
    Otlp { traces: wanted("TRACES"), metrics: wanted("METRICS") }
}

pub(super) fn test_panic(problems: &mut Problems, environment: &Environment) -> Option<TestPanic> {
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
