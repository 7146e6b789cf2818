//! One run of a test, from the first connection to the report: what is ordered when, and what is measured between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use crate::args::Target;
use crate::control::{Job, Order, Progress, Stage};
use crate::crew::{Crew, Published};
use crate::display::Display;
use crate::latency::Sends;
use crate::pace::Slowest;
use crate::process::{self, Machine, Usage};
use crate::publish::{Http, Orders, Outcome, Outlet, Publisher, Redis, Tempo};
use crate::report::Report;
use crate::scrape::{Arrivals, Written};
use crate::soak::Sample;

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After the last event was accepted, for every socket to have it.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
/// More than the sockets give themselves to open or to come back.
const STAGE_WITHIN: Duration = Duration::from_secs(60);
/// How often the server's memory is looked at.
const RSS_EVERY: Duration = Duration::from_millis(500);
/// How many samples a long run takes of the server, about.
const SAMPLES: u32 = 120;

/// Where events come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Nowhere,
    Http {
        target: Target,
        token: String,
    },
    Redis {
        url: String,
        prefix: String,
    },
    /// A comparison server makes them itself.
    Control(std::net::SocketAddr),
}

/// What happens while all sockets are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Middle {
    /// They listen.
    Listen,
    /// In the middle of the time, all drop and come again.
    Storm,
    /// They listen, and the server is sampled.
    Watch,
}

/// When the first event is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublishFrom {
    Begin,
    Open,
}

/// A run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) job: Job,
    pub(crate) threads: u32,
    pub(crate) processes: u32,
    pub(crate) duration: Duration,
    pub(crate) middle: Middle,
    pub(crate) source: Source,
    pub(crate) publish_from: PublishFrom,
    pub(crate) per_second: f64,
    pub(crate) in_flight: Option<u32>,
    pub(crate) first_number: u64,
    pub(crate) pids: Vec<u32>,
    pub(crate) metrics: Vec<Target>,
}

/// What is known at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) at: Instant,
    pub(crate) usage: Option<Usage>,
    pub(crate) written: Option<Written>,
    pub(crate) machine: Option<Machine>,
    pub(crate) progress: Progress,
}

/// What was measured, besides the clients' tally.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) before: Mark,
    pub(crate) opened: Mark,
    pub(crate) after: Mark,
    /// Before and after all dropped and came again.
    pub(crate) storm: Option<(Mark, Mark)>,
    pub(crate) samples: Vec<Sample>,
    /// The server's largest resident memory while all listened.
    pub(crate) rss_most_bytes: Option<u64>,
    pub(crate) published: Option<Outcome>,
    /// Who came to the servers.
    pub(crate) arrivals: Option<Arrivals>,
}

/// What [`Middle`] gives.
#[derive(Debug, Default)]
struct Meanwhile {
    storm: Option<(Mark, Mark)>,
    samples: Vec<Sample>,
    rss_most_bytes: Option<u64>,
}

impl Plan {
    /// Runs it.
    ///
    /// # Errors
    /// When the test cannot be run; what the audit finds is in the report.
    pub(crate) fn run(&self) -> anyhow::Result<Report> {
        let published = self.published();
        let earlier = Arrivals::of_all(&self.metrics);
        let before = self.mark(Progress::default());
        let mut crew = Crew::start(&self.job, self.threads, self.processes, &published)?;
        let mut publisher = None;
        if self.publish_from == PublishFrom::Begin {
            publisher = self.publisher(&published)?;
        }
        self.wait_for(&crew, Stage::Open, "connecting", self.connect_within())?;
        let opened = self.mark(crew.progress());
        if self.publish_from == PublishFrom::Open {
            publisher = self.publisher(&published)?;
        }
        crew.order(&Order::Listen)?;
        let Meanwhile { storm, samples, rss_most_bytes } = self.middle(&mut crew)?;
        let after = self.mark(crew.progress());
        let outcome = publisher.and_then(Publisher::outcome);
        if self.job.slow_share > 0.0 {
            crew.order(&Order::Wake)?;
            self.wait_for(&crew, Stage::Wake, "waking", STAGE_WITHIN)?;
        }
        settle(&mut crew, outcome.as_ref())?;
        crew.order(&Order::Leave(outcome.as_ref().map(|outcome| outcome.given_up.clone()).unwrap_or_default()))?;
        let tally = crew.finish()?;
        let arrivals = Arrivals::of_all(&self.metrics).zip(earlier).map(|(all, earlier)| all.since(&earlier));
        let run = Run { before, opened, after, storm, samples, rss_most_bytes, published: outcome, arrivals };
        Ok(Report::new(self, tally, &run))
    }

    fn middle(&self, crew: &mut Crew) -> anyhow::Result<Meanwhile> {
        let mut meanwhile = Meanwhile::default();
        if self.middle != Middle::Storm {
            self.listen(crew, self.duration, &mut meanwhile)?;
            return Ok(meanwhile);
        }
        self.listen(crew, self.duration / 2, &mut meanwhile)?;
        let calm = self.mark(crew.progress());
        crew.order(&Order::Scatter)?;
        self.wait_for(crew, Stage::Scatter, "returning", STAGE_WITHIN)?;
        let over = self.mark(crew.progress());
        self.listen(crew, self.duration / 2, &mut meanwhile)?;
        Ok(Meanwhile { storm: Some((calm, over)), ..meanwhile })
    }

    fn listen(&self, crew: &Crew, duration: Duration, meanwhile: &mut Meanwhile) -> anyhow::Result<()> {
        let mut display = Display::seconds("listening", duration);
        let began = Instant::now();
        let mut rss_due = Duration::ZERO;
        let every = duration / SAMPLES;
        while began.elapsed() < duration {
            std::thread::sleep(LOOK_EVERY.min(duration.saturating_sub(began.elapsed())));
            if crew.has_failed() {
                bail!("a thread or process with sockets ended before its time");
            }
            let (elapsed, progress) = (began.elapsed(), crew.progress());
            display.show(elapsed.as_secs(), &progress);
            if elapsed >= rss_due {
                rss_due = elapsed + RSS_EVERY;
                meanwhile.rss_most_bytes = meanwhile.rss_most_bytes.max(process::rss_of_all(&self.pids));
            }
            let due = every * u32::try_from(meanwhile.samples.len()).unwrap_or(u32::MAX);
            if self.middle == Middle::Watch
                && elapsed >= due
                && let Some(usage) = Usage::of_all(&self.pids)
            {
                meanwhile.samples.push(Sample::new(elapsed, usage, progress.alive));
            }
        }
        Ok(())
    }

    fn wait_for(&self, crew: &Crew, stage: Stage, what: &'static str, within: Duration) -> anyhow::Result<()> {
        let mut display = Display::sockets(what, self.job.connections);
        let deadline = Instant::now() + within;
        loop {
            let progress = crew.progress();
            display.show(u64::from(progress.alive.saturating_sub(progress.awaited)), &progress);
            if progress.has_done(stage) {
                return Ok(());
            }
            if crew.has_failed() {
                return Err(anyhow!("a thread or process with sockets ended while {what}"));
            }
            if Instant::now() > deadline {
                bail!("{what} took longer than {within:?}");
            }
            std::thread::sleep(LOOK_EVERY.min(Duration::from_millis(10)));
        }
    }

    fn connect_within(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.job.connections) / self.job.rate) * 4 + STAGE_WITHIN
    }

    fn published(&self) -> Published {
        if matches!(self.source, Source::Nowhere) || self.processes > 1 {
            return Published::default();
        }
        let slowest = |most| (Arc::new(Slowest::new(self.threads as usize, self.first_number)), most);
        Published { sends: Some(Arc::new(Sends::new())), closed: self.in_flight.map(slowest) }
    }

    fn publisher(&self, published: &Published) -> anyhow::Result<Option<Publisher>> {
        let outlet: Box<dyn Outlet> = match &self.source {
            Source::Nowhere => return Ok(None),
            Source::Http { target, token } => Box::new(Http::new(target.clone(), token.clone())),
            Source::Redis { url, prefix } => Box::new(Redis::new(url, prefix).map_err(|error| anyhow!(error))?),
            Source::Control(control) => Box::new(Orders::connect(*control).context("reaching the comparison")?),
        };
        let tempo = match &published.closed {
            Some((slowest, most)) => Tempo::InFlight(*most, slowest.clone()),
            None => Tempo::PerSecond(self.per_second),
        };
        let sends = published.sends.clone().unwrap_or_else(|| Arc::new(Sends::new()));
        Publisher::start(outlet, tempo, self.first_number, sends).map(Some).context("starting the producer")
    }

    fn mark(&self, progress: Progress) -> Mark {
        Mark {
            at: Instant::now(),
            usage: Usage::of_all(&self.pids),
            written: Written::of_all(&self.metrics),
            machine: Machine::now(),
            progress,
        }
    }
}

/// Lets everybody get what was published.
fn settle(crew: &mut Crew, outcome: Option<&Outcome>) -> anyhow::Result<()> {
    crew.order(&Order::Settle(outcome.and_then(|outcome| outcome.last)))?;
    let deadline = Instant::now() + SETTLE_WITHIN;
    while Instant::now() < deadline {
        let progress = crew.progress();
        if progress.has_done(Stage::Settle) && progress.behind == 0 {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
