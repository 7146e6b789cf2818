//! Real gateway processes.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::http::{self, Answer};
use super::ports;
use super::process::{self, Process, Signal};
use super::redis_server::RedisServer;
use super::wait::{SOON, until};

/// The ingest token that each gateway of these tests accepts.
pub(crate) const TOKEN: &str = "token-of-the-tests";
/// Longest wait until a gateway is ready; unhindered it takes a fraction of a second.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A port can be taken by a stranger between choosing and binding.
const START_TRIES: usize = 5;
/// How much of a gateway's log a failed test shows.
const LOG_BYTES_SHOWN: usize = 8 * 1024;

/// How to start a gateway: its environment, which is nothing but what is set here.
#[derive(Debug, Clone)]
pub(crate) struct Setup(Vec<(String, String)>);

impl Setup {
    /// Embedded, with the documented defaults and an ingest token.
    pub(crate) fn embedded() -> Self {
        Self(Vec::new()).with("GATEWAY_INGEST_TOKEN", TOKEN)
    }

    /// On that Redis, else the same.
    pub(crate) fn on(redis: &RedisServer) -> Self {
        Self::embedded().with("REDIS_URL", &redis.url())
    }

    /// With one more variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without a variable.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.retain(|(known, _)| known != name);
        self
    }

    /// Ticks every second, where the tick and not its length is the point.
    pub(crate) fn brisk(self) -> Self {
        self.with("GATEWAY_TICK_INTERVAL", "1s")
    }

    /// Without limits per address: all clients of a test come from the same.
    pub(crate) fn crowded(self) -> Self {
        self.with("GATEWAY_MAX_CONNECTIONS_PER_IP", "0").with("GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", "0")
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn ready(&self) -> Gateway {
        let mut gateway = self.start().await;
        let deadline = Instant::now() + READY_WITHIN;
        while gateway.probe("/readyz").await != Some(200) {
            assert!(Instant::now() < deadline, "not ready within {READY_WITHIN:?}");
            if let Some(status) = gateway.process.ended() {
                panic!("the gateway ended instead of getting ready: {status}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gateway
    }

    /// Starts it and waits until its internal listener answers.
    pub(crate) async fn start(&self) -> Gateway {
        for _ in 0..START_TRIES {
            let mut gateway = self.spawn();
            let deadline = Instant::now() + READY_WITHIN;
            loop {
                if gateway.probe("/livez").await.is_some() {
                    return gateway;
                }
                if let Some(status) = gateway.process.ended() {
                    let clash = gateway.log().to_lowercase().contains("address already in use");
                    assert!(clash, "the gateway ended at start: {status}");
                    break;
                }
                assert!(Instant::now() < deadline, "the internal listener does not answer");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("no free ports in {START_TRIES} tries");
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(&self) -> Gateway {
        let directory = TempDir::with_prefix("pulsegate-gateway-").expect("a temporary directory");
        let log = directory.path().join("log");
        let (public, internal) = (ports::free(), ports::free());
        let output = File::create(&log).expect("a log file");
        let mut command = self.command();
        command
            .env("GATEWAY_LISTEN", public.to_string())
            .env("GATEWAY_INTERNAL_LISTEN", internal.to_string())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output);
        let process = Process::spawn(&mut command).expect("the gateway starts");
        Gateway { process, public, internal, log, _directory: directory }
    }

    /// Runs it with these arguments to its end: for `--check-config` and its like.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("the gateway starts")
    }

    fn command(&self) -> Command {
        let mut command = process::command(env!("CARGO_BIN_EXE_gateway"));
        command.env_clear().envs(self.0.iter().cloned()).stdin(Stdio::null());
        command
    }
}

/// A running gateway; killed when dropped. A test that fails shows the end of its log.
#[derive(Debug)]
pub(crate) struct Gateway {
    process: Process,
    /// Where viewers and producers connect.
    pub(crate) public: SocketAddr,
    /// Where probes and metrics are asked for.
    pub(crate) internal: SocketAddr,
    log: PathBuf,
    _directory: TempDir,
}

impl Gateway {
    /// SIGKILL: it says goodbye to nobody.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGTERM: it drains.
    pub(crate) fn terminate(&self) {
        self.process.signal(Signal::Term);
    }

    /// SIGSTOP: to the others it looks dead.
    pub(crate) fn freeze(&self) {
        self.process.signal(Signal::Stop);
    }

    /// SIGCONT: it goes on and knows nothing of the pause.
    pub(crate) fn thaw(&self) {
        self.process.signal(Signal::Cont);
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// See [`Process::state`].
    pub(crate) fn state(&self) -> Option<char> {
        self.process.state()
    }

    /// Waits for its end and gives the exit code; none when a signal ended it. Panics when it lives on.
    pub(crate) async fn exit_code(&mut self, within: Duration) -> Option<i32> {
        let status = self.process.end(within).await;
        status.unwrap_or_else(|| panic!("still running after {within:?}")).code()
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Panics when the process has ended.
    pub(crate) fn assert_alive(&mut self) {
        assert_eq!(self.process.ended(), None, "the gateway ended");
    }

    /// All that it has logged.
    pub(crate) fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).expect("its log file");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The status that a probe answers; none when nobody does.
    pub(crate) async fn probe(&self, path: &str) -> Option<u16> {
        http::try_get(self.internal, path).await.map(|answer| answer.status())
    }

    /// The document of `/healthz`.
    pub(crate) async fn health(&self) -> Value {
        let answer = http::get(self.internal, "/healthz").await;
        assert_eq!(answer.status(), 200, "/healthz always answers 200");
        answer.json()
    }

    /// Waits until `/healthz` says so.
    pub(crate) async fn until_health(&self, status: &str, within: Duration) {
        until(&format!("/healthz says {status}"), within, async || {
            (self.health().await["status"] == status).then_some(())
        })
        .await;
    }

    /// The metric of exactly that name and those labels, as they stand on the page; absent is 0.
    pub(crate) async fn metric(&self, series: &str) -> u64 {
        let page = self.metrics_page().await;
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{series} {value}: not a count")))
    }

    /// The whole metrics page.
    pub(crate) async fn metrics_page(&self) -> String {
        let answer = http::get(self.internal, "/metrics").await;
        assert_eq!(answer.status(), 200);
        answer.body
    }

    /// Waits until the metric is exactly `value`; the page may be a second old.
    pub(crate) async fn until_metric_is(&self, series: &str, value: u64) {
        let mut last = 0;
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            last = self.metric(series).await;
            if last == value {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{series} is {last}, not {value}");
    }

    /// Waits until the metric is at least `least`.
    pub(crate) async fn until_metric(&self, series: &str, least: u64) {
        until(&format!("{series} >= {least}"), SOON, async || (self.metric(series).await >= least).then_some(())).await;
    }

    /// Posts events, with the right token.
    pub(crate) async fn post(&self, body: &str) -> Answer {
        http::post(self.public, "/api/v1/events", Some(TOKEN), body.as_bytes()).await
    }

    /// Posts one page view; panics when it is not accepted.
    pub(crate) async fn post_page(&self, page: &str) {
        let answer = self.post(&format!(r#"{{"event_type":"page_view","page_url":"{page}"}}"#)).await;
        assert_eq!(answer.status(), 202, "{}", answer.body);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let mut from = log.len().saturating_sub(LOG_BYTES_SHOWN);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            eprintln!("--- log of the gateway on {} ---\n{}---", self.public, &log[from..]);
        }
    }
}
