//! The gateways of a run, and what is done to them.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::evidence::{Ms, Node, NodeLog};
use crate::plan::{Plan, Which};
use crate::stage::{Place, Stage, Standing};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http;
use crate::topology::{Backend, Struck};

/// From one `ping` of a socket to the next: short, so that runs see some.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(12);
/// A probe that takes longer has no answer.
const PROBED_WITHIN: Duration = Duration::from_millis(500);
/// Some gateway ticks before this is over; else any will do.
const TICKER_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A signal has its effect within this.
const STOPPED_WITHIN_MS: Ms = 1_000;

/// One of the gateways; what runs there now.
struct Berth {
    setup: Setup,
    gateway: Gateway,
    node: Node,
}

/// See the module's documentation. The gateways end with it.
pub(crate) struct Fleet {
    berths: Vec<Berth>,
    /// By process: one for each start.
    pub(crate) logs: Vec<NodeLog>,
    /// What the ones that are gone have logged.
    last_words: Vec<(Node, String)>,
}

impl Fleet {
    pub(crate) async fn start(plan: &Plan, bug: Option<&str>, backend: &dyn Backend, stage: &Stage) -> Self {
        let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut fleet = Self { berths: Vec::new(), logs: Vec::new(), last_words: Vec::new() };
        for index in 0..plan.gateways {
            let mut setup = Setup::embedded()
                .with("REDIS_URL", &backend.url(index))
                .with("GATEWAY_TICK_INTERVAL", &milliseconds(plan.interval))
                .with("GATEWAY_TRUSTED_PROXIES", "127.0.0.1")
                .with("GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", "0")
                // A slow reader fills it within seconds at the lab's rate of events.
                .with("GATEWAY_OUTBOX_BYTES", "8KiB")
                .with("GATEWAY_PING_INTERVAL", &milliseconds(PING_INTERVAL));
            if let Some(bug) = bug {
                setup = setup.with("PULSEGATE_PLANTED_BUG", bug);
            }
            let gateway = setup.ready().await;
            let node = fleet.enlist(&gateway, stage);
            fleet.berths.push(Berth { setup, gateway, node });
        }
        fleet
    }

    fn enlist(&mut self, gateway: &Gateway, stage: &Stage) -> Node {
        let node = self.logs.len();
        self.logs.push(NodeLog::default());
        stage.roster.lock().push(Place { node, public: gateway.public, standing: Standing::Up });
        node
    }

    /// Which berth is meant.
    pub(crate) async fn find(&self, which: Which) -> usize {
        let ticker = self.ticker().await;
        match which {
            Which::Ticker => ticker,
            Which::Other => (ticker + 1) % self.berths.len(),
        }
    }

    async fn ticker(&self) -> usize {
        self.ticker_but(None, TICKER_WITHIN).await.unwrap_or(0)
    }

    /// The one that says that it ticks, beside that one; none when nobody does for so long.
    pub(crate) async fn ticker_but(&self, not: Option<usize>, within: Duration) -> Option<usize> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            for (index, berth) in self.berths.iter().enumerate().filter(|(index, _)| Some(*index) != not) {
                let page = timeout(PROBED_WITHIN, http::try_get(berth.gateway.internal, "/metrics")).await;
                if page.ok().flatten().is_some_and(|page| page.body.contains("\ngateway_ticker 1")) {
                    return Some(index);
                }
            }
            sleep(LOOK_EVERY).await;
        }
        None
    }

    /// kill -9, and after a while a new process in its place.
    pub(crate) async fn kill(&mut self, index: usize, away: Duration, stage: &Stage) -> Struck {
        let berth = &mut self.berths[index];
        let (node, pid) = (berth.node, berth.gateway.pid());
        let begun = stage.now();
        // Before it dies, or a viewer could learn of its end before we do.
        self.logs[node].killed = Some(begun);
        stage.stands(node, Standing::Gone);
        berth.gateway.kill9();
        let gone = berth.gateway.state().is_none() && berth.gateway.has_ended();
        self.last_words.push((node, berth.gateway.log()));
        // The others have all they need from the beginning.
        let good = stage.now();
        sleep(away).await;
        let gateway = berth.setup.ready().await;
        let node = self.enlist(&gateway, stage);
        let berth = &mut self.berths[index];
        (berth.gateway, berth.node) = (gateway, node);
        Struck {
            begun,
            takes_from: begun,
            good,
            confirmed: if gone { format!("pid {pid} gone") } else { String::new() },
        }
    }

    /// SIGSTOP, and after a while SIGCONT.
    pub(crate) async fn freeze(&mut self, index: usize, away: Duration, stage: &Stage) -> Struck {
        let (begun, confirmed) = self.stop(index, stage).await;
        sleep(away).await;
        Struck { begun, takes_from: begun, good: self.go_on(index, begun, stage), confirmed }
    }

    /// SIGSTOP: when, and what shows that it stands; empty when nothing does.
    pub(crate) async fn stop(&self, index: usize, stage: &Stage) -> (Ms, String) {
        let berth = &self.berths[index];
        let begun = stage.now();
        stage.stands(berth.node, Standing::Frozen);
        berth.gateway.freeze();
        let mut stopped = false;
        while !stopped && stage.now() < begun + STOPPED_WITHIN_MS {
            stopped = berth.gateway.state() == Some('T');
            sleep(LOOK_EVERY).await;
        }
        (begun, if stopped { format!("pid {} in state T", berth.gateway.pid()) } else { String::new() })
    }

    /// SIGCONT: when.
    pub(crate) fn go_on(&mut self, index: usize, begun: Ms, stage: &Stage) -> Ms {
        let berth = &self.berths[index];
        berth.gateway.thaw();
        let good = stage.now();
        stage.stands(berth.node, Standing::Up);
        self.logs[berth.node].frozen.push((begun, good));
        good
    }

    /// Gateways that run at a time.
    pub(crate) fn size(&self) -> usize {
        self.berths.len()
    }

    /// The process that runs there now.
    pub(crate) fn node(&self, index: usize) -> Node {
        self.berths[index].node
    }

    /// Takes note of those that have ended by themselves, and gives what each process has logged.
    pub(crate) fn inspect(&mut self) -> Vec<(Node, String)> {
        for berth in &mut self.berths {
            self.logs[berth.node].ended_by_itself = berth.gateway.has_ended();
        }
        let alive = self.berths.iter().map(|berth| (berth.node, berth.gateway.log()));
        self.last_words.iter().cloned().chain(alive).collect()
    }
}
