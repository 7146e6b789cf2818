//! Who owns the sockets: threads of this process, or processes with threads of their own.
//!
//! The leader need not know. A process has a limit of descriptors that an ordinary user cannot raise, often 20,000; a
//! million sockets need many. Latencies are measured by threads alone: a clock is not shared across processes.

mod child;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};

use self::child::Child;
pub(crate) use self::child::work;
use crate::control::{Control, Job, Order, Progress};
use crate::latency::Sends;
use crate::pace::{Pace, Slowest};
use crate::swarm::{Swarm, Watch};
use crate::tally::Tally;

/// What the clients have to know of the events that this test publishes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    pub(crate) sends: Option<Arc<Sends>>,
    /// Of a closed loop: who waits, and how many events may be on their way.
    pub(crate) closed: Option<(Arc<Slowest>, u32)>,
}

/// The owners of all sockets. Dropping it ends what runs.
#[derive(Debug)]
pub(crate) enum Crew {
    Threads(Threads),
    Processes(Vec<Child>),
}

/// Threads of this process.
#[derive(Debug)]
pub(crate) struct Threads {
    control: Arc<Control>,
    handles: Vec<JoinHandle<io::Result<Tally>>>,
}

impl Threads {
    fn start(job: &Job, threads: u32, published: &Published) -> io::Result<Self> {
        let control = Arc::new(Control::new(threads as usize));
        let mut handles = Vec::new();
        for thread in 0..threads {
            let number = thread as usize;
            let pace = published.closed.as_ref().map(|(slowest, most)| Pace::new(slowest.clone(), number, *most));
            let watch = Watch { sends: published.sends.clone(), pace };
            let (part, shared) = (job.part(thread, threads), control.clone());
            let named = std::thread::Builder::new().name(format!("sockets-{thread}"));
            handles.push(named.spawn(move || Swarm::new(part, number, shared, watch)?.run())?);
        }
        Ok(Self { control, handles })
    }

    fn finish(self) -> anyhow::Result<Tally> {
        let mut all = Tally::default();
        for handle in self.handles {
            let tally = handle.join().map_err(|_| anyhow!("a thread with sockets panicked"))?;
            all.merge(tally.context("polling")?);
        }
        Ok(all)
    }

    fn has_failed(&self) -> bool {
        // Before it is told to leave, a thread ends by an error only.
        self.handles.iter().any(JoinHandle::is_finished)
    }
}

impl Crew {
    /// Starts to open the sockets of `job`.
    ///
    /// # Errors
    /// When there is no thread, no process or no poll left.
    pub(crate) fn start(job: &Job, threads: u32, processes: u32, published: &Published) -> anyhow::Result<Self> {
        if processes <= 1 {
            return Ok(Self::Threads(Threads::start(job, threads, published).context("starting threads")?));
        }
        let children = (0..processes).map(|n| Child::start(&job.part(n, processes), threads));
        Ok(Self::Processes(children.collect::<anyhow::Result<_>>()?))
    }

    /// How far all have got.
    pub(crate) fn progress(&self) -> Progress {
        match self {
            Self::Threads(threads) => threads.control.progress(),
            Self::Processes(children) => children.iter().map(Child::progress).reduce(Progress::and).unwrap_or_default(),
        }
    }

    /// Whether one of them ended before its time.
    pub(crate) fn has_failed(&self) -> bool {
        match self {
            Self::Threads(threads) => threads.has_failed(),
            Self::Processes(children) => children.iter().any(Child::has_failed),
        }
    }

    /// Tells all of them.
    ///
    /// # Errors
    /// When a process does not hear any more.
    pub(crate) fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        match self {
            Self::Threads(threads) => threads.control.order(order.clone()),
            Self::Processes(children) => {
                for child in children {
                    child.order(order)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until all have left (they have been told to), and adds up what they saw.
    ///
    /// # Errors
    /// When one of them failed.
    pub(crate) fn finish(self) -> anyhow::Result<Tally> {
        match self {
            Self::Threads(threads) => threads.finish(),
            Self::Processes(children) => {
                let mut all = Tally::default();
                for child in children {
                    all.merge(child.finish()?);
                }
                Ok(all)
            }
        }
    }
}
