//! A process of a test: what its leader says and hears, in lines of JSON over its standard input and output.
//!
//! The leader's end of the pipe is the process's lease on life: when it closes, the process leaves, so nothing stays
//! behind whatever becomes of the leader.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};

use super::{Published, Threads};
use crate::audit::Numbers;
use crate::control::{Job, Order, Progress};
use crate::tally::Tally;

/// How often a process tells how far it has got.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// The first line to a process.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    job: Job,
    threads: u32,
}

/// A line from a process.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Progress(Progress),
    Tally(Box<Tally>),
}

/// A process of this test. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    orders: Option<ChildStdin>,
    progress: Arc<Mutex<Progress>>,
    reader: Option<JoinHandle<Option<Tally>>>,
}

impl Child {
    pub(super) fn start(job: &Job, threads: u32) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding myself")?;
        let mut command = Command::new(program);
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("starting a process")?;
        let (orders, told) = (process.stdin.take(), process.stdout.take());
        let told = told.ok_or_else(|| anyhow!("a process without an output"))?;
        let progress = Arc::new(Mutex::new(Progress::default()));
        let noted = progress.clone();
        let reader = std::thread::Builder::new().name("reader".to_owned()).spawn(move || read(told, &noted));
        let reader = Some(reader.context("starting a thread")?);
        let mut child = Self { process, orders, progress, reader };
        child.tell(&Task { job: job.clone(), threads })?;
        Ok(child)
    }

    pub(super) fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub(super) fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        self.tell(order)
    }

    pub(super) fn finish(mut self) -> anyhow::Result<Tally> {
        let tally = self.reader.take().and_then(|reader| reader.join().ok()).flatten();
        tally.ok_or_else(|| anyhow!("a process of this test failed"))
    }

    fn tell(&mut self, what: &impl Serialize) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().ok_or_else(|| anyhow!("a process without an input"))?;
        writeln!(orders, "{}", serde_json::to_string(what)?).context("telling a process")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(told: impl std::io::Read, progress: &Mutex<Progress>) -> Option<Tally> {
    for line in BufReader::new(told).lines() {
        match serde_json::from_str(&line.ok()?).ok()? {
            Told::Progress(new) => *progress.lock().unwrap_or_else(PoisonError::into_inner) = new,
            Told::Tally(tally) => return Some(*tally),
        }
    }
    None
}

/// Does what the leader says, as one of its processes.
///
/// # Errors
/// When it says nothing of sense, or the sockets cannot be polled.
pub(crate) fn work() -> anyhow::Result<()> {
    let mut lines = BufReader::new(std::io::stdin()).lines();
    let first = lines.next().ok_or_else(|| anyhow!("no task"))?.context("reading the task")?;
    let Task { job, threads } = serde_json::from_str(&first).context("reading the task")?;
    rlimit::increase_nofile_limit(u64::MAX).context("raising the descriptor limit")?;
    let crew = Threads::start(&job, threads, &Published::default()).context("starting threads")?;
    let control = crew.control.clone();
    let named = std::thread::Builder::new().name("orders".to_owned());
    named.spawn(move || {
        for line in lines {
            let Some(order) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { break };
            control.order(order);
        }
        control.order(Order::Leave(Numbers::default()));
    })?;
    let mut out = std::io::stdout();
    while !crew.handles.iter().all(JoinHandle::is_finished) {
        let told = Told::Progress(crew.control.progress());
        writeln!(out, "{}", serde_json::to_string(&told)?).context("telling the leader")?;
        std::thread::sleep(TELL_EVERY);
    }
    let tally = Told::Tally(Box::new(crew.finish()?));
    writeln!(out, "{}", serde_json::to_string(&tally)?).context("telling the leader")
}
