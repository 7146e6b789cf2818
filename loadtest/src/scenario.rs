//! From the command line to runs: which plan each scenario is, and what it is compared with.

use std::net::SocketAddr;

use anyhow::{Context, anyhow, bail};

use crate::args::{Command, Common, SlowArgs, SoakArgs, Target};
use crate::control::{Job, SlowManner};
use crate::lead::{Middle, Plan, PublishFrom, Source};
use crate::report::Report;
use crate::series::{Round, Series, WITHOUT};
use crate::serve::Served;

/// Descriptors besides the sockets: the standard three, the poll, the producer, `/proc`.
const OTHER_DESCRIPTORS: u64 = 64;

/// What was found, in the form in which it is said.
#[derive(Debug)]
pub(crate) enum Verdict {
    One(Box<Report>),
    Many(Series),
}

impl Verdict {
    /// Whether every promise was kept, and every threshold.
    pub(crate) fn is_ok(&self) -> bool {
        match self {
            Self::One(report) => report.is_ok(),
            Self::Many(series) => series.is_ok(),
        }
    }

    /// As it was asked for.
    ///
    /// # Errors
    /// When it has no JSON form.
    pub(crate) fn text(&self, json: bool) -> anyhow::Result<String> {
        Ok(match self {
            Self::One(report) if json => serde_json::to_string_pretty(report)?,
            Self::Many(series) if json => serde_json::to_string_pretty(series)?,
            Self::One(report) => report.to_string(),
            Self::Many(series) => series.to_string(),
        })
    }
}

/// A test, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Connect,
    Idle,
    Fanout,
    Storm,
    Slow,
    Soak,
    Million,
}

/// Runs what the command line asks for (anything but a server or a worker).
///
/// # Errors
/// When it cannot be run.
pub(crate) fn run(command: Option<Command>, plain: Common) -> anyhow::Result<(Verdict, bool)> {
    let mut slow = (0.0, SlowManner::Drip);
    let mut lives = None;
    let (kind, common) = match command {
        None => (Kind::Plain, plain),
        Some(Command::Connect(common)) => (Kind::Connect, common),
        Some(Command::Idle(common)) => (Kind::Idle, common),
        Some(Command::Fanout(common)) => (Kind::Fanout, common),
        Some(Command::Storm(common)) => (Kind::Storm, common),
        Some(Command::Million(common)) => (Kind::Million, common),
        Some(Command::Slow(SlowArgs { common, slow_share, slow_manner })) => {
            slow = (slow_share, slow_manner);
            (Kind::Slow, common)
        }
        Some(Command::Soak(SoakArgs { common, life_min, life_max })) => {
            lives = Some((life_min, life_max.max(life_min)));
            (Kind::Soak, common)
        }
        Some(Command::Serve(_) | Command::Bare(_) | Command::Worker) => bail!("not a test"),
    };
    let mut plan = plan(kind, &common)?;
    plan.job.lives = lives;
    (plan.job.slow_share, plan.job.slow_manner) = slow;
    let json = common.json;
    let names = beside(&common);
    if kind != Kind::Slow && names.is_empty() && common.runs == 1 {
        let mut report = plan.run()?;
        report.note_broken(common.limits.broken_by(&report));
        return Ok((Verdict::One(Box::new(report)), json));
    }
    let mut rounds = Vec::new();
    for _ in 0..common.runs {
        let mut beside = Vec::new();
        for name in &names {
            beside.push(((*name).to_owned(), against(name, &plan)?));
        }
        if kind == Kind::Slow {
            let mut without = plan.clone();
            without.job.slow_share = 0.0;
            beside.push((WITHOUT.to_owned(), without.run()?));
            plan.first_number = without.after(&beside);
        }
        let mut subject = plan.run()?;
        plan.first_number = plan.first_number.saturating_add(subject.published());
        subject.note_broken(common.limits.broken_by(&subject));
        rounds.push(Round { subject, beside });
    }
    Ok((Verdict::Many(Series::new(rounds, &common.limits)), json))
}

impl Plan {
    /// The first number after those of the run that was just made: viewers of the next must not see it again.
    fn after(&self, beside: &[(String, Report)]) -> u64 {
        self.first_number.saturating_add(beside.last().map_or(0, |(_, report)| report.published()))
    }
}

fn beside(common: &Common) -> Vec<&'static str> {
    let mut names = Vec::new();
    if common.floor {
        names.push("floor");
    }
    #[cfg(feature = "comparison")]
    if common.tungstenite {
        names.push("tungstenite");
    }
    names
}

/// The same test against a server to compare with.
fn against(name: &str, plan: &Plan) -> anyhow::Result<Report> {
    let served = Served::start(name, 1)?;
    let mut plan = plan.clone();
    plan.job.urls = vec![format!("ws://{}/ws/analytics", served.sockets)];
    plan.job.query.clear();
    plan.pids = vec![served.pid()];
    plan.metrics = vec![target(served.sockets)?];
    if !matches!(plan.source, Source::Nowhere) {
        plan.source = Source::Control(served.control);
    }
    plan.run().with_context(|| format!("running against {name}"))
}

fn target(address: SocketAddr) -> anyhow::Result<Target> {
    Target::resolve(&format!("http://{address}/metrics"), "http").map_err(|error| anyhow!(error))
}

fn plan(kind: Kind, common: &Common) -> anyhow::Result<Plan> {
    let publishing = &common.publishing;
    let source = match (&publishing.publish, &publishing.token, &publishing.redis) {
        (Some(url), Some(token), _) => {
            let target = Target::resolve(url, "http").map_err(|error| anyhow!(error))?;
            Source::Http { target, token: token.clone() }
        }
        (_, _, Some(url)) => Source::Redis { url: url.clone(), prefix: publishing.key_prefix.clone() },
        _ => Source::Nowhere,
    };
    let publishes = !matches!(source, Source::Nowhere);
    if matches!(kind, Kind::Fanout | Kind::Slow) && !publishes {
        bail!("this scenario publishes events: say where, with --redis, or --publish and --token");
    }
    let metrics = common.metrics.iter().map(|url| Target::resolve(url, "http"));
    let processes = processes(kind, common)?;
    if processes > 1 && publishing.in_flight.is_some() {
        bail!("--in-flight needs the slowest of all clients at once: use --processes 1");
    }
    Ok(Plan {
        job: job(common)?,
        threads: common.threads,
        processes,
        duration: if kind == Kind::Connect { common.duration.min(CONNECT_REST) } else { common.duration },
        middle: match kind {
            Kind::Storm => Middle::Storm,
            Kind::Soak => Middle::Watch,
            _ => Middle::Listen,
        },
        source,
        publish_from: if kind == Kind::Plain { PublishFrom::Begin } else { PublishFrom::Open },
        per_second: publishing.events_per_second,
        in_flight: publishing.in_flight,
        first_number: publishing.first_number,
        pids: common.pid.clone(),
        metrics: metrics.collect::<Result<_, _>>().map_err(|error| anyhow!(error))?,
    })
}

/// After connecting, where connecting is all: so that what goes on in the background is in nobody's way.
const CONNECT_REST: std::time::Duration = std::time::Duration::from_secs(1);

fn job(common: &Common) -> anyhow::Result<Job> {
    for url in &common.url {
        Target::resolve(url, "ws").map_err(|error| anyhow!(error))?;
    }
    Ok(Job {
        query: common.query.clone(),
        spread: common.spread,
        forwarded_for: common.forwarded_for,
        answer_pings: common.answer_pings,
        interval_ms: u64::try_from(common.interval.as_millis()).unwrap_or(u64::MAX),
        late: common.late,
        heard_min: (common.min_pings, common.min_updates),
        open_within: common.open_within,
        ..Job::new(common.url.clone(), common.connections, common.rate)
    })
}

/// How many processes own the sockets, given what a process may open.
fn processes(kind: Kind, common: &Common) -> anyhow::Result<u32> {
    let limit = rlimit::increase_nofile_limit(u64::MAX).context("raising the descriptor limit")?;
    let room = limit.saturating_sub(OTHER_DESCRIPTORS + u64::from(common.threads)).max(1);
    let needed = u32::try_from(u64::from(common.connections).div_ceil(room)).unwrap_or(u32::MAX).max(1);
    let automatic = common.processes == 0 || (kind == Kind::Million && common.processes == 1);
    let processes = if automatic { needed } else { common.processes };
    if processes < needed {
        bail!(
            "{} sockets need more descriptors than the hard limit of {limit} allows to {processes} process(es): raise \
             it (ulimit -Hn, LimitNOFILE=, nofile in limits.conf), or use --processes {needed} or --processes 0",
            common.connections
        );
    }
    Ok(processes)
}
