//! The clients: they connect, read, remember everything, and come again when their socket ends.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use shared::time::Timestamp;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::audit::EXCUSED_OVERLAP_MS;
use crate::evidence::{Attempt, Ending, Heard, Node, Pace, Session, Shown, What};
use crate::plan::{Plan, VIEWERS};
use crate::prng::Prng;
use crate::run::until;
use crate::stage::{Place, Sight, Stage};
use crate::support::client::{Client, End, Incoming, Refusal, Upgrade};

/// A gateway that does not answer a handshake within this is tried no longer.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
/// Pause before the next try to connect, at least and at most.
const RETRY_MS: (u64, u64) = (50, 400);
/// What the kernel may hold for a slow reader: it rounds up to a few KiB.
const SLOW_BUFFER_BYTES: u32 = 2_048;
/// For how long a slow reader does not read, and then reads.
const PAUSE_MS: (u64, u64) = (2_000, 7_000);
const READ_MS: (u64, u64) = (300, 1_500);
/// From one attempt of an eleventh socket to the next.
const ATTEMPT_EVERY: Duration = Duration::from_millis(400);
/// How long the socket is held if it is granted, at most: for longer than any run that proves something excuses one, or no
/// run could report it. Who has taken a place that one of the ten wants gives it back sooner.
pub(crate) const ATTEMPT_HELD: Duration = Duration::from_millis(2_500);
const _: () = assert!(ATTEMPT_HELD.as_millis() > (EXCUSED_OVERLAP_MS + 300) as u128, "what is held could be found");
const PLACE_HELD: Duration = Duration::from_millis(1_200);
/// A gateway has its witness at most this long after it has started.
const WITNESS_WITHIN: Duration = Duration::from_millis(20);

/// Whether viewers name the last id that they have when they come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Resume {
    /// They begin afresh.
    Never,
    /// Who has ids goes on where it was.
    #[default]
    ByLastId,
}

/// Who it is.
#[derive(Debug, Clone)]
pub(crate) struct Viewer {
    /// Its number.
    pub(crate) index: usize,
    /// Which visitor of the site it is.
    pub(crate) visitor: usize,
    /// It asks for ids.
    pub(crate) ids: bool,
    /// How it reads.
    pub(crate) pace: Pace,
    /// One of those that share an address.
    pub(crate) crowded: bool,
    /// What it does when it comes again.
    pub(crate) resume: Resume,
    /// It comes to this gateway only.
    pub(crate) pinned: Option<Node>,
    /// It is there to hear what this gateway announces, for as long as the gateway lives.
    pub(crate) witness: bool,
}

/// The address that many share.
const CROWD_ADDRESS: &str = "203.0.113.200";

impl Viewer {
    fn upgrade(&self, last_id: Option<&str>) -> Upgrade {
        let mut query = format!("visitor=viewer-{}", self.visitor);
        if self.ids {
            query.push_str("&ids=1");
        }
        if let Some(id) = last_id {
            query.push_str("&last_event_id=");
            query.push_str(id);
        }
        let own = format!("198.51.100.{}", self.index);
        Upgrade::query(&query).header("X-Forwarded-For", if self.crowded { CROWD_ADDRESS } else { &own })
    }

    /// Watches until told to leave; gives all its sockets.
    pub(crate) async fn watch(self, stage: Arc<Stage>, mut prng: Prng) -> Vec<Session> {
        let mut sessions: Vec<Session> = Vec::new();
        let mut last_id: Option<String> = None;
        while !stage.leave.is_cancelled() {
            let resumes = last_id.as_deref().filter(|_| self.resume == Resume::ByLastId);
            let opened = tokio::select! {
                biased;
                () = stage.leave.cancelled() => break,
                opened = self.open(&stage, resumes, &mut prng) => opened,
            };
            let Some((client, node)) = opened else {
                sleep(Duration::from_millis(prng.between(RETRY_MS.0, RETRY_MS.1))).await;
                continue;
            };
            let resumed = resumes.is_some();
            let session = self.listen(client, node, resumed, &stage, &mut prng).await;
            last_id = session.heard.iter().rev().find_map(|heard| heard.id.clone()).or(last_id);
            sessions.push(session);
        }
        sessions
    }

    async fn open(&self, stage: &Stage, last_id: Option<&str>, prng: &mut Prng) -> Option<(Client, Node)> {
        let mut up = stage.up();
        up.retain(|place| self.pinned.is_none_or(|node| node == place.node));
        if up.is_empty() {
            return None;
        }
        let place = prng.pick(&up);
        let attempt = async {
            let socket = TcpSocket::new_v4().ok()?;
            if self.pace == Pace::Slow {
                socket.set_recv_buffer_size(SLOW_BUFFER_BYTES).ok()?;
            }
            self.upgrade(last_id).over(socket.connect(place.public).await.ok()?).await.ok()
        };
        Some((timeout(HANDSHAKE_WITHIN, attempt).await.ok()??, place.node))
    }

    async fn listen(&self, mut client: Client, node: Node, resumed: bool, stage: &Stage, prng: &mut Prng) -> Session {
        let opened = stage.now();
        stage.sights.lock()[self.index].at = Some(node);
        let mut heard = Vec::new();
        let mut pause_at = stage.now() + prng.between(READ_MS.0, READ_MS.1);
        let end = loop {
            if self.pace == Pace::Slow && stage.now() >= pause_at && !stage.hurry.is_cancelled() {
                let pause = Duration::from_millis(prng.between(PAUSE_MS.0, PAUSE_MS.1));
                let _ = timeout(pause, stage.hurry.cancelled()).await;
                pause_at = stage.now() + prng.between(READ_MS.0, READ_MS.1);
            }
            // Biased: what is there comes before leaving. Reading is cancel safe.
            let incoming = tokio::select! {
                biased;
                incoming = client.next() => incoming,
                () = stage.leave.cancelled() => break Ending::Left,
            };
            match incoming {
                Incoming::Text(text) => heard.push(self.understand(&text, stage)),
                Incoming::Pong(_) => {}
                Incoming::End(End::Close { code, .. }) => break Ending::Closed(code),
                Incoming::End(End::Broken) => break Ending::Broken,
            }
        };
        stage.sights.lock()[self.index].at = None;
        let Self { index, ids, pace, crowded, witness, .. } = *self;
        Session { client: index, node, ids, pace, witness, crowded, resumed, opened, heard, closed: stage.now(), end }
    }

    /// Reads a message, and takes note of what the viewer sees now.
    fn understand(&self, text: &str, stage: &Stage) -> Heard {
        let heard = Heard::of(text, stage.now());
        let mut sights = stage.sights.lock();
        let sight = &mut sights[self.index];
        match &heard.what {
            What::Init(shown) | What::Update(shown) => {
                sight.counted = (!shown.stale).then_some(shown.counted);
                sight.visitors = shown.visitors;
            }
            What::Event(number) => sight.newest = sight.newest.max(sent_at(text, *number)),
            _ => {}
        }
        heard
    }
}

/// Events carry when they were sent: `/n/<number>/<ms>`.
fn sent_at(text: &str, number: u32) -> u64 {
    let mark = format!("/n/{number}/");
    let digits = text.split_once(&mark).map_or("", |(_, rest)| rest);
    let digits = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

impl Heard {
    /// What a text message says.
    pub(crate) fn of(text: &str, at: u64) -> Self {
        let Ok(json) = serde_json::from_str::<Value>(text) else {
            return Self { at, id: None, what: What::Stranger(text.to_owned()) };
        };
        let word = |value: &Value| value.as_str().map(str::to_owned);
        let data = &json["data"];
        let what = match json["type"].as_str() {
            Some("init") => shown(data).map(What::Init),
            Some("realtime_update") => shown(data).map(What::Update),
            Some("new_event") => number(data).map(What::Event),
            Some("gap") => Some(What::Gap { from: word(&json["from"]), to: word(&json["to"]) }),
            Some("ping") => time(&json).map(What::Ping),
            _ => None,
        };
        Self { at, id: word(&json["id"]), what: what.unwrap_or_else(|| What::Stranger(text.to_owned())) }
    }
}

fn time(of: &Value) -> Option<u64> {
    Some(Timestamp::parse(of["timestamp"].as_str()?).ok()?.unix_seconds() * 1_000)
}

fn shown(data: &Value) -> Option<Shown> {
    let visitors = data["active_visitors"].as_u64()?;
    Some(Shown { visitors, counted: time(data)?, stale: data["stale"] == true })
}

fn number(data: &Value) -> Option<u32> {
    data["page_url"].as_str()?.strip_prefix("/n/")?.split('/').next()?.parse().ok()
}

/// A client with ids at each gateway, from when it starts to its end: what a gateway announces to clients with ids must
/// be heard by somebody, wherever the others happen to be.
pub(crate) async fn witness(stage: Arc<Stage>, first_index: usize, prng: Prng) -> Vec<Session> {
    let mut witnesses: JoinSet<Vec<Session>> = JoinSet::new();
    while !stage.leave.is_cancelled() {
        let known = stage.roster.lock().len();
        for node in witnesses.len()..known {
            let index = first_index + node;
            stage.sights.lock().resize(index + 1, Sight::default());
            let witness = Viewer {
                index,
                // No further visitor.
                visitor: 0,
                ids: true,
                pace: Pace::Prompt,
                crowded: false,
                resume: Resume::Never,
                pinned: Some(node),
                witness: true,
            };
            witnesses.spawn(witness.watch(Arc::clone(&stage), prng.fork(index as u64)));
        }
        let _ = timeout(WITNESS_WITHIN, stage.leave.cancelled()).await;
    }
    witnesses.join_all().await.into_iter().flatten().collect()
}

/// Tries to get one more socket for the crowded address, again and again.
pub(crate) async fn intrude(stage: Arc<Stage>, mut prng: Prng) -> Vec<Attempt> {
    let upgrade = Upgrade::query("visitor=viewer-0").header("X-Forwarded-For", CROWD_ADDRESS);
    let mut attempts = Vec::new();
    while !stage.leave.is_cancelled() {
        let _ = timeout(ATTEMPT_EVERY, stage.leave.cancelled()).await;
        let up = stage.up();
        if up.is_empty() {
            continue;
        }
        let Place { public, .. } = prng.pick(&up);
        match timeout(HANDSHAKE_WITHIN, upgrade.try_open(public)).await {
            Ok(Ok(client)) => attempts.push(hold(client, &stage).await),
            Ok(Err(Refusal::Answered(answer))) if answer.status() == 429 => {
                attempts.push(Attempt { at: stage.now(), open_until: None });
            }
            _ => {}
        }
    }
    attempts
}

/// Whether the ten have a socket each: then any other is an eleventh.
fn all_of_the_crowd_are_in(stage: &Stage) -> bool {
    stage
        .sights
        .lock()
        .iter()
        .take(VIEWERS)
        .enumerate()
        .all(|(index, sight)| !Plan::crowded(index) || sight.at.is_some())
}

async fn hold(mut client: Client, stage: &Stage) -> Attempt {
    let at = stage.now();
    let reading = async { while !matches!(client.next().await, Incoming::End(_)) {} };
    let leaving = async {
        sleep(PLACE_HELD).await;
        until(ATTEMPT_HELD - PLACE_HELD, || !all_of_the_crowd_are_in(stage)).await;
    };
    let ended = tokio::select! {
        () = reading => true,
        () = leaving => false,
        () = stage.leave.cancelled() => false,
    };
    let open_until = Some(stage.now());
    if !ended {
        // Its place is free when the gateway has read this, and nobody here needs to wait for that.
        client.reset();
    }
    Attempt { at, open_until }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood() {
        let check = |text: &str, id: Option<&str>, what: What| {
            assert_eq!(Heard::of(text, 5), Heard { at: 5, id: id.map(str::to_owned), what }, "{text}");
        };
        let shown = |stale| Shown { visitors: 5, counted: 1_765_189_800_000, stale };
        check(
            r#"{"type":"init","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}}"#,
            None,
            What::Init(shown(false)),
        );
        check(
            r#"{"type":"realtime_update","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z","stale":true},"id":"1-0-ab"}"#,
            Some("1-0-ab"),
            What::Update(shown(true)),
        );
        let event = r#"{"type":"new_event","data":{"event_type":"page_view","page_url":"/n/17/1234","timestamp":"2025-12-08T10:30:05Z"},"id":"1-0-ab"}"#;
        check(event, Some("1-0-ab"), What::Event(17));
        assert_eq!(sent_at(event, 17), 1_234);
        let gap = What::Gap { from: Some("1-0-ab".to_owned()), to: None };
        check(r#"{"type":"gap","from":"1-0-ab","to":null}"#, None, gap);
        check(r#"{"type":"ping","timestamp":"2025-12-08T10:30:30Z"}"#, None, What::Ping(1_765_189_830_000));
        let foreign = r#"{"type":"new_event","data":{"page_url":"/cv"}}"#;
        check(foreign, None, What::Stranger(foreign.to_owned()));
    }
}
