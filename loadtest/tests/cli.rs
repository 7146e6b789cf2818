//! The program itself, against its own floor: what it says, and how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_loadtest");

/// A floor with events of its own.
struct Floor {
    process: Child,
    url: String,
}

impl Floor {
    fn start() -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "floor", "--events-per-second", "200"]).stdout(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let mut line = String::new();
        let out = process.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("it tells where it listens");
        let address = line.split_whitespace().nth(1).expect("an address");
        Self { url: format!("ws://{address}/ws/analytics"), process }
    }

    fn test(&self, args: &[&str]) -> Output {
        let pid = self.process.id().to_string();
        let common = ["--url", &self.url, "--pid", &pid, "--duration", "300ms", "--json"];
        Command::new(PROGRAM).args(args).args(common).output().expect("it runs")
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.process.kill().expect("it runs until now");
        self.process.wait().expect("it ends");
    }
}

fn report(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn threads_and_processes_count_the_same() {
    let floor = Floor::start();
    for more in [["--threads", "1"], ["--threads", "3"], ["--processes", "3"]] {
        let output = floor.test(&[&["idle", "--connections", "20"], &more[..]].concat());
        let report = report(&output);
        assert!(output.status.success(), "{more:?}: {report:#}");
        assert_eq!((&report["opened"], &report["open_at_end"]), (&20.into(), &20.into()), "{more:?}");
        assert_eq!(report["messages"]["init"], 20);
        assert!(report["messages"]["new_event"].as_u64() > Some(0), "{report:#}");
        assert!(report["server"]["rss_after_bytes"].as_u64() > Some(100_000));
    }
}

#[test]
fn all_come_back_after_a_storm() {
    let floor = Floor::start();
    let output = floor.test(&["storm", "--connections", "20", "--min-returns", "1/s"]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!((&report["storm"]["returned"], &report["open_at_end"]), (&20.into(), &20.into()));
}

#[test]
fn lives_end_and_begin_again() {
    let floor = Floor::start();
    let output = floor.test(&["soak", "--connections", "20", "--life-min", "20ms", "--life-max", "60ms"]);
    let report = report(&output);
    assert!(report["opened"].as_u64() > Some(40), "{report:#}");
    assert_eq!(report["unexpected_closes"], serde_json::json!({}));
}

#[test]
fn the_floor_is_compared_with_a_bare_loop() {
    let bare = |limit| {
        let args = ["bare", "--connections", "50", "--rounds", "3", "--json", "--max-ratio", limit];
        Command::new(PROGRAM).args(args).output().expect("it runs")
    };
    let (kept, broken) = (bare("1000"), bare("0.001"));
    assert_eq!((kept.status.code(), broken.status.code()), (Some(0), Some(1)), "{kept:?} {broken:?}");
    for figure in ["bare_us", "floor_us", "ratio"] {
        assert!(report(&kept)[figure].as_f64() > Some(0.0), "{kept:?}");
    }
}

#[test]
fn exit_codes() {
    let floor = Floor::start();
    let broken = floor.test(&["idle", "--connections", "2", "--min-pings", "1"]);
    assert_eq!(broken.status.code(), Some(1));
    assert_eq!(report(&broken)["findings"]["client with too few heartbeats"], 2);
    let unmeasured = floor.test(&["idle", "--connections", "2", "--max-p99", "1h"]);
    assert_eq!(unmeasured.status.code(), Some(1));
    assert_eq!(report(&unmeasured)["broken"].as_array().map(Vec::len), Some(1));
    let impossible = floor.test(&["fanout", "--connections", "2"]);
    assert_eq!(impossible.status.code(), Some(2));
}
