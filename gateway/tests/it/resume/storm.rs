//! A thousand returns, to nodes of which some remember little, some have just begun and some have slept, of a stream
//! that is trimmed all the time.
//!
//! Of what was published, each viewer must have got everything but what it was told is missing, and nothing of that;
//! [`audit`] judges. What is done is chosen by a seed, which is printed; `SEED=` plays the choice again, if not the
//! timing. A storm in which nothing is missing, or everything, would prove nothing: both are counted.

mod audit;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shared::ids::{EntryDigest, EventId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::audit::{Heard, Tally, judge};
use super::viewer::{busy, stream};
use crate::support::client::{Client, Incoming, Message, Upgrade};
use crate::support::frame::{self, Frame};
use crate::support::gateway::{Gateway, Setup};
use crate::support::producer::Producer;
use crate::support::redis_server::{Durability, Options, RedisServer};
use crate::support::resp::Resp;
use crate::support::wait::SOON;

const NODES: usize = 3;
const VIEWERS: usize = 48;
const RETURNS: usize = 22;
/// Pause between two steps of the producer; each adds up to five events.
const PACE: Duration = Duration::from_millis(10);
/// Where the events are.
const STREAM: &str = "{analytics}:events";

/// How far the storm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Everything happens.
    Storm,
    /// Nothing breaks any more.
    Calm,
    /// Nothing is published any more.
    Over,
}

/// What all tasks of a storm share.
#[derive(Clone)]
struct World {
    redis: Arc<RedisServer>,
    /// Where the nodes are at present.
    nodes: Arc<Mutex<Vec<SocketAddr>>>,
    /// Where each page stands, by its number.
    published: Arc<Mutex<Vec<EventId>>>,
    /// How many pages there are.
    count: Arc<watch::Sender<usize>>,
    phase: Arc<watch::Sender<Phase>>,
}

impl World {
    fn of(redis: RedisServer, nodes: Vec<SocketAddr>) -> Self {
        let (count, phase) = (watch::Sender::new(0), watch::Sender::new(Phase::Storm));
        Self {
            redis: Arc::new(redis),
            nodes: Arc::new(Mutex::new(nodes)),
            published: Arc::default(),
            count: Arc::new(count),
            phase: Arc::new(phase),
        }
    }

    fn node(&self, index: usize) -> SocketAddr {
        self.nodes.lock().expect("nobody panicked")[index]
    }

    fn pages(&self) -> usize {
        *self.count.borrow()
    }

    async fn until_pages(&self, pages: usize) {
        self.count.subscribe().wait_for(|count| *count >= pages).await.expect("the sender lives");
    }

    async fn publish(&self, redis: &mut Resp, pages: usize) {
        for _ in 0..pages {
            let page = self.pages();
            let id = stream(redis, [page as u64]).await[0];
            self.published.lock().expect("nobody panicked").push(id);
            self.count.send_replace(page + 1);
        }
    }

    /// Adds that many pages at once.
    async fn fill(&self, redis: &mut Resp, pages: usize) {
        let script = "local ids = {} \
                      for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do \
                      ids[#ids + 1] = redis.call('XADD', KEYS[1], '*', 'type', 'new_event', 'data', ARGV[3] .. n .. ARGV[4]) \
                      end return ids";
        let (first, data) = (self.pages(), Producer::page_data("/#"));
        let (head, tail) = data.split_once('#').expect("it was put there");
        let range = [first.to_string(), (first + pages - 1).to_string()];
        let ids = redis.call(&["EVAL", script, "1", STREAM, &range[0], &range[1], head, tail]).await;
        let ids = ids.many().iter().zip(first..).map(|(id, page)| {
            let data = Producer::page_data(&format!("/{page}"));
            EventId { stream: id.text().parse().expect("an id"), digest: EntryDigest::of("new_event", data.as_bytes()) }
        });
        self.published.lock().expect("nobody panicked").extend(ids);
        self.count.send_replace(first + pages);
    }

    /// Where a page stands.
    fn place(&self, page: usize) -> EventId {
        self.published.lock().expect("nobody panicked")[page]
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }
}

/// Adds events until the storm is over.
async fn produce(world: World, mut random: StdRng) {
    let mut redis = Resp::to(&world.redis).await;
    let mut pace = tokio::time::interval(PACE);
    while world.phase() < Phase::Over {
        pace.tick().await;
        world.publish(&mut redis, random.random_range(0..=5)).await;
    }
}

/// What the stream and the nodes went through.
#[derive(Debug, Default)]
struct Troubles {
    trims: usize,
    outruns: usize,
    replaced: usize,
}

/// Trims the stream, lets nodes sleep while it is trimmed past them, and replaces nodes, until it is calm.
async fn trouble(world: World, mut random: StdRng, mut nodes: Vec<Gateway>) -> (Vec<Gateway>, Troubles) {
    let mut redis = Resp::to(&world.redis).await;
    let mut troubles = Troubles::default();
    while world.phase() == Phase::Storm {
        let (index, kept) = (random.random_range(0..NODES), [3, 40, 300, 1_000][random.random_range(0..4)]);
        match random.random_range(0..10) {
            0..4 => {
                redis.call(&["XTRIM", STREAM, "MAXLEN", &kept.to_string()]).await;
                troubles.trims += 1;
            }
            4..7 => {
                let oldest = world.place(world.pages().saturating_sub(random.random_range(1..400)));
                redis.call(&["XTRIM", STREAM, "MINID", &oldest.stream.to_string()]).await;
                troubles.trims += 1;
            }
            7..9 => {
                nodes[index].freeze();
                world.until_pages(world.pages() + random.random_range(20..200)).await;
                redis.call(&["XTRIM", STREAM, "MAXLEN", &random.random_range(1..20).to_string()]).await;
                nodes[index].thaw();
                troubles.outruns += 1;
            }
            _ => {
                // The first is the one that remembers little.
                let index = index.max(1);
                let fresh = busy(Setup::on(&world.redis)).ready().await;
                world.nodes.lock().expect("nobody panicked")[index] = fresh.public;
                // Killed without a word.
                nodes[index] = fresh;
                troubles.replaced += 1;
            }
        }
        world.until_pages(world.pages() + random.random_range(5..60)).await;
    }
    (nodes, troubles)
}

/// How a viewer goes.
#[derive(Debug, Clone, Copy)]
enum Leave {
    /// It says goodbye and reads to the end.
    Closing,
    /// Its connection ends.
    Dropping,
    /// Its connection is reset.
    Resetting,
}

/// How the returns of a viewer went.
#[derive(Debug, Clone, Copy, Default)]
struct Returns {
    /// All.
    all: usize,
    /// In which it was told that something is missing.
    with_gap: usize,
    /// From which it went before it had caught up.
    cut_short: usize,
    /// Which the node ended.
    broken: usize,
}

impl Returns {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.with_gap += other.with_gap;
        self.cut_short += other.cut_short;
        self.broken += other.broken;
    }
}

/// A viewer, over all its connections.
struct Viewer {
    world: World,
    random: StdRng,
    last: Option<String>,
    heard: Vec<Heard>,
    /// The page after the last that it heard of, or was told is missing.
    next: usize,
    returns: Returns,
}

impl Viewer {
    fn new(world: World, random: StdRng) -> Self {
        Self { world, random, last: None, heard: Vec::new(), next: 0, returns: Returns::default() }
    }

    async fn live(mut self) -> Self {
        self.visit(|viewer| viewer.next > 0).await;
        for _ in 0..RETURNS {
            let away = match self.random.random_range(0..10) {
                0..4 => 0,
                4..7 => self.random.random_range(0..60),
                7..9 => self.random.random_range(60..300),
                _ => self.random.random_range(300..900),
            };
            self.world.until_pages(self.world.pages() + away).await;
            let gaps = self.gaps();
            let more = self.random.random_range(0..50);
            let visit = if self.random.random_bool(0.3) {
                // Perhaps in the middle of what it missed.
                let messages = self.heard.len() + more;
                self.visit(|viewer| viewer.heard.len() >= messages).await
            } else {
                let page = self.world.pages() + more;
                self.visit(|viewer| viewer.next >= page).await
            };
            self.returns.all += 1;
            self.returns.with_gap += usize::from(self.gaps() > gaps);
            self.returns.broken += usize::from(visit == Visit::Broken);
            self.returns.cut_short += usize::from(self.next + 5 < self.world.pages());
        }
        self
    }

    fn gaps(&self) -> usize {
        self.heard.iter().filter(|heard| matches!(heard, Heard::Gap(..))).count()
    }

    /// Connects to a node that takes it.
    async fn connect(&mut self) -> Client {
        let query = self.last.as_ref().map_or("ids=1".to_owned(), |last| format!("last_event_id={last}"));
        let deadline = Instant::now() + SOON * 2;
        loop {
            let node = self.world.node(self.random.random_range(0..NODES));
            match Upgrade::query(&query).try_open(node).await {
                Ok(client) => return client,
                // It has just been killed, or too many wait for one that sleeps.
                Err(refusal) => assert!(Instant::now() < deadline, "{refusal:?}"),
            }
            self.world.until_pages(self.world.pages() + 1).await;
        }
    }

    /// Connects, reads until it has enough, and goes.
    async fn visit(&mut self, enough: impl Fn(&Self) -> bool) -> Visit {
        let leave = [Leave::Closing, Leave::Dropping, Leave::Resetting][self.random.random_range(0..3)];
        let mut client = self.connect().await;
        let deadline = Instant::now() + SOON * 2;
        while !enough(self) {
            match client.next_before(deadline).await {
                Some(Incoming::Text(text)) => self.hear(&Message::of(text)),
                Some(Incoming::End(_)) => return Visit::Broken,
                other => panic!("{other:?} at page {} from {:?}", self.next, self.last),
            }
        }
        match leave {
            Leave::Dropping => drop(client),
            Leave::Resetting => client.reset(),
            Leave::Closing => {
                client.send(&Frame::of(frame::CLOSE, &frame::close_payload(1000, ""))).await;
                while let Some(Incoming::Text(text)) = client.next_before(deadline).await {
                    self.hear(&Message::of(text));
                }
            }
        }
        Visit::Left
    }

    /// As docs/PROTOCOL.md says: the last id that came, or the end of a gap, is where a client goes on.
    fn hear(&mut self, message: &Message) {
        let id = |key: &str| message.json[key].as_str().map(|id| id.parse::<EventId>().expect("an id"));
        let heard = match message.kind() {
            "new_event" => {
                let page = message.json["data"]["page_url"].as_str().expect("a page");
                let page = page.trim_start_matches('/').parse().expect("a number");
                self.next = page + 1;
                Heard::Page(page, id("id").expect("each event has an id"))
            }
            "realtime_update" => match id("id") {
                Some(id) => Heard::Update(id),
                // Repeated as stale.
                None => return,
            },
            "gap" => Heard::Gap(id("from"), id("to")),
            "init" => {
                self.last = self.last.take().or(id("id").map(|id| id.to_string()));
                return;
            }
            _ => return,
        };
        self.last = match heard {
            Heard::Page(_, id) | Heard::Update(id) | Heard::Gap(_, Some(id)) => Some(id.to_string()),
            Heard::Gap(_, None) => self.last.take(),
        };
        self.heard.push(heard);
    }
}

/// How a visit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visit {
    /// The viewer left.
    Left,
    /// The node did.
    Broken,
}

#[expect(clippy::disallowed_methods, reason = "an option of the test, not of the product")]
fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    eprintln!("seed {seed}");
    seed
}

// Inv. ORDER, Inv. GAP
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_returns_under_load_and_trims_miss_exactly_what_is_announced() {
    let begun = Instant::now();
    let seed = seed();
    let random = |part: u64| StdRng::seed_from_u64(seed.wrapping_add(part));
    let redis = RedisServer::with(Options { durability: Durability::Nothing, ..Options::default() });
    let mut nodes = Vec::new();
    for replay_bytes in ["48KiB", "4MiB", "4MiB"] {
        nodes.push(busy(Setup::on(&redis)).with("GATEWAY_REPLAY_BYTES", replay_bytes).ready().await);
    }
    let world = World::of(redis, nodes.iter().map(|node| node.public).collect());
    let mut producing = JoinSet::new();
    producing.spawn(produce(world.clone(), random(1)));
    world.until_pages(1).await;
    let mut troubling = JoinSet::new();
    troubling.spawn(trouble(world.clone(), random(2), nodes));
    let mut viewers = JoinSet::new();
    for part in 0..VIEWERS {
        viewers.spawn(Viewer::new(world.clone(), random(part as u64 + 3)).live());
    }
    let viewers = viewers.join_all().await;
    world.phase.send_replace(Phase::Calm);
    let (nodes, troubles) = troubling.join_next().await.expect("one").expect("it ended well");

    // Everybody comes once more, and stays for a page of now. They go on being published: who is told that all up to now
    // is missing would wait for ever for one that is older.
    let pages = world.pages();
    let mut leaving = JoinSet::new();
    for mut viewer in viewers {
        leaving.spawn(async move {
            while viewer.visit(|viewer| viewer.next > pages).await == Visit::Broken {}
            viewer
        });
    }
    let viewers = leaving.join_all().await;
    world.phase.send_replace(Phase::Over);
    producing.join_all().await;
    let pages = world.pages();
    let published = world.published.lock().expect("nobody panicked").clone();
    let (mut tally, mut returns) = (Tally::default(), Returns::default());
    for (number, viewer) in viewers.iter().enumerate() {
        let until_it_left = &published[..viewer.next];
        let one = judge(until_it_left, &viewer.heard).unwrap_or_else(|error| panic!("viewer {number}: {error}"));
        tally.add(one);
        returns.add(viewer.returns);
    }
    let took = begun.elapsed();
    eprintln!("{pages} events in {took:?}; {troubles:?}; {returns:?}; {tally:?}");
    assert!(returns.all >= 1_000);
    // Neither is the exception.
    assert!(returns.with_gap >= 100 && returns.all - returns.with_gap >= 300);
    assert!(returns.cut_short >= 50 && returns.broken >= 1);
    assert!(tally.open >= 10, "nodes were outrun while somebody was there");
    assert!(troubles.trims >= 20 && troubles.outruns >= 5 && troubles.replaced >= 2);
    drop(nodes);
}

// Inv. GAP: a node that has just begun fetches the past page by page, while the stream is trimmed beneath it. Who comes
// back from the part that was in time misses nothing, the others exactly what they are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trims_that_race_with_a_fetch_leave_exact_gaps() {
    const ROUNDS: usize = 8;
    const PAGES: usize = 3_000;
    /// What stays of them: more than a node reads at its start.
    const KEPT: usize = 1_200;
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let redis = RedisServer::with(Options { durability: Durability::Nothing, ..Options::default() });
    let world = World::of(redis, Vec::new());
    let mut resp = Resp::to(&world.redis).await;
    let mut tally = Tally::default();
    let (mut whole, mut holed) = (0, 0);
    for round in 0..ROUNDS {
        let oldest = world.pages();
        world.fill(&mut resp, PAGES).await;
        let fresh = busy(Setup::on(&world.redis)).ready().await;
        *world.nodes.lock().expect("nobody panicked") = vec![fresh.public; NODES];
        let mut returning = JoinSet::new();
        let ages = [5, 900, 1_500, PAGES - KEPT + 100];
        for (part, age) in ages.into_iter().enumerate() {
            let mut viewer = Viewer::new(world.clone(), StdRng::seed_from_u64(seed.wrapping_add(part as u64)));
            let had = Heard::Page(oldest + age, world.place(oldest + age));
            viewer.last = Some(world.place(oldest + age).to_string());
            viewer.heard.push(had);
            let pages = world.pages() + 1;
            returning.spawn(async move {
                viewer.visit(|viewer| viewer.next == pages).await;
                viewer
            });
        }
        if round > 0 {
            let mut kept = PAGES;
            while kept > KEPT {
                kept = kept.saturating_sub(random.random_range(1..600)).max(KEPT);
                resp.call(&["XTRIM", STREAM, "MAXLEN", &kept.to_string()]).await;
            }
        }
        world.publish(&mut resp, 1).await;
        let published = world.published.lock().expect("nobody panicked").clone();
        for viewer in returning.join_all().await {
            let one = judge(&published, &viewer.heard).unwrap_or_else(|error| panic!("round {round}: {error}"));
            whole += usize::from(one.gaps == 0);
            holed += usize::from(one.gaps > 0);
            tally.add(one);
        }
    }
    eprintln!("{whole} whole, {holed} with a gap: {tally:?}");
    assert!(whole >= ROUNDS && holed >= 1);
    assert!(tally.announced > 0 && tally.open == 0);
}
