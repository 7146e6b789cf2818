use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use shared::message::MessageKinds;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::*;
use crate::admission::{AdmissionSettings, Permit};
use crate::backplane::memory::MemoryBackplane;
use crate::backplane::{Admit, AdmitReply, Join, Standing};
use crate::hub::{HubSettings, Ids, NewSocket};
use crate::identity::{VisitorDigest, address_hash};
use crate::metrics::Metrics;
use crate::testing::{Call, Fault, Unreliable, within};

const CAP: u32 = 2;
const SECRET: [u8; 32] = [7; 32];
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

struct World {
    memory: Arc<MemoryBackplane>,
    /// This node's way to it.
    backplane: Arc<Unreliable>,
    now: Arc<AtomicU64>,
    hub: Arc<Hub>,
    admission: Arc<Admission>,
    presence: Arc<Presence>,
    cluster: Option<Cluster>,
    lifecycle: Lifecycle,
    tasks: TaskTracker,
}

fn memory(now: &Arc<AtomicU64>) -> Arc<MemoryBackplane> {
    let now = Arc::clone(now);
    MemoryBackplane::with_time(Box::new(move || now.load(Ordering::Relaxed)))
}

impl World {
    fn new() -> Self {
        let now = Arc::new(AtomicU64::new(1_700_000_000_000));
        let memory = memory(&now);
        let backplane = Unreliable::new(Arc::clone(&memory));
        let (node, clock, metrics) = (NodeId::from_random(1), Clock::start(), Arc::new(Metrics::default()));
        let (vitals, time) = (Arc::new(Vitals::new(clock)), Arc::new(ClusterTime::new(clock)));
        let port: Arc<dyn Backplane> = Arc::clone(&backplane) as _;
        let window = Duration::from_secs(300);
        let settings = AdmissionSettings {
            max_connections: 100,
            max_per_address: CAP,
            handshakes_per_second: 0,
            backplane_wait: Duration::from_millis(250),
            visitor_window: window,
        };
        let admission = Admission::new(settings, node, Arc::clone(&port), Arc::clone(&metrics), clock);
        admission.set_secret(SECRET);
        let hub = Hub::new(HubSettings::default(), clock, Arc::clone(&metrics), Arc::clone(&vitals));
        let presence = Presence::new(Arc::clone(&port), node, window, Arc::clone(&metrics), clock, Arc::clone(&time));
        let cluster = Cluster::new(ClusterParts {
            backplane: port,
            node,
            admission: Arc::clone(&admission),
            hub: Arc::clone(&hub),
            presence: Arc::clone(&presence),
            vitals,
            clock,
            time,
        });
        let (lifecycle, tasks) = (Lifecycle::default(), TaskTracker::new());
        Self { memory, backplane, now, hub, admission, presence, cluster: Some(cluster), lifecycle, tasks }
    }

    fn pass(&self, ms: u64) {
        self.now.fetch_add(ms, Ordering::Relaxed);
    }

    /// A socket of [`CLIENT`] that was let in.
    async fn permit(&self) -> Permit {
        self.admission.admit(CLIENT).await.expect("there is room")
    }

    /// Opens a socket of [`CLIENT`]; returns the client's end.
    async fn socket(&self) -> TcpStream {
        self.open(self.permit().await).await
    }

    /// Opens a socket that was let in; returns the client's end.
    async fn open(&self, permit: Permit) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let new = NewSocket {
            stream: accepted.expect("accepts").0,
            answer: Bytes::new(),
            leftover: Bytes::new(),
            kinds: MessageKinds::ALL,
            ids: Ids::Without,
            resume: None,
            visitor: VisitorDigest([1; 16]),
            permit: Some(Box::new(permit)),
        };
        self.hub.open(new, &self.tasks);
        client.expect("connects")
    }

    /// Runs `test` beside the cluster's loops.
    async fn with_cluster(&mut self, test: impl AsyncFnOnce(&Self)) {
        let cluster = self.cluster.take().expect("runs once");
        tokio::select! {
            () = cluster.run(self.lifecycle.clone()) => panic!("the loops ended"),
            () = within(test(self)) => {}
        }
    }

    /// What stands for [`CLIENT`]'s address is removed, and the other node fills the cap.
    async fn others_take_all(&self) {
        let removed = [(address_hash(&SECRET, CLIENT), 0)];
        assert_eq!(self.memory.set_counts(NodeId::from_random(1), &removed).await, Ok(vec![]));
        assert_eq!(self.memory.admit(&self.other_admits(0, CAP)).await, Ok(AdmitReply::Granted));
    }

    fn other_admits(&self, held: u32, wanted: u32) -> Admit {
        let address = address_hash(&SECRET, CLIENT);
        Admit { node: NodeId::from_random(2), address, held, wanted, cap: CAP }
    }
}

/// The backplane goes away until this node's lease is over; the other node stays, and has a socket let in meanwhile.
async fn goes_out_and_another_takes_a_place(world: &World) {
    world.backplane.set_down(true);
    for _ in 0..2 {
        world.pass(5_000);
        other_beats(&world.memory, Join::Stay).await;
    }
    assert_eq!(world.memory.admit(&world.other_admits(0, 1)).await, Ok(AdmitReply::Granted));
}

/// What the other node's beat tells.
async fn other_beats(memory: &MemoryBackplane, join: Join) -> u32 {
    let reply = memory.beat(NodeId::from_random(2), join, MEMBER_LEASE).await.expect("answers");
    assert_eq!(reply.standing, Standing::Member);
    reply.members
}

#[tokio::test]
async fn enters_reports_and_leaves_at_the_end() {
    let mut world = World::new();
    assert_eq!(other_beats(&world.memory, Join::Enter).await, 1);
    let cluster = world.cluster.take().expect("made");
    let mut report = cluster.report();
    let test = async {
        let members = report.wait_for(|report| report.is_member).await.expect("lives").members;
        assert_eq!(members, 2);
        world.lifecycle.advance(Phase::Stopped);
    };
    within(async { tokio::join!(cluster.run(world.lifecycle.clone()), test) }).await;
    assert_eq!(other_beats(&world.memory, Join::Stay).await, 1);
}

#[tokio::test]
async fn a_count_that_changed_is_told_until_it_is_heard() {
    let mut world = World::new();
    world.backplane.fail(Call::SetCounts, [Fault::Lost, Fault::AnswerLost]);
    let mut report = world.cluster.as_ref().expect("made").report();
    world
        .with_cluster(async |world| {
            report.wait_for(|report| report.is_member).await.expect("lives");
            other_beats(&world.memory, Join::Enter).await;
            let permits = [world.admission.admit(CLIENT).await, world.admission.admit(CLIENT).await];
            assert!(permits.iter().all(Result::is_ok));
            let full = world.memory.admit(&world.other_admits(0, 1)).await;
            assert_eq!(full, Ok(AdmitReply::Refused { counted: 0 }));
            drop(permits);
            world.backplane.seen(Call::SetCounts, 3).await;
            assert_eq!(world.memory.admit(&world.other_admits(0, CAP)).await, Ok(AdmitReply::Granted));
        })
        .await;
}

// Inv. CAP: whom another node let in while this one was out keeps the place; the newest of this node's goes.
#[tokio::test]
async fn a_node_that_was_out_has_its_sockets_admitted_again_and_closes_the_surplus() {
    let mut world = World::new();
    let mut report = world.cluster.as_ref().expect("made").report();
    world
        .with_cluster(async |world| {
            report.wait_for(|report| report.is_member).await.expect("lives");
            other_beats(&world.memory, Join::Enter).await;
            let (first, mut second) = (world.socket().await, world.socket().await);
            goes_out_and_another_takes_a_place(world).await;
            // Back again; having an address admitted again fails once.
            world.backplane.fail(Call::Readmit, [Fault::AnswerLost]);
            world.backplane.set_down(false);
            is_sent_away(&mut second).await;
            let quiet = first.try_read(&mut [0; 16]).map_err(|error| error.kind());
            assert_eq!(quiet, Err(std::io::ErrorKind::WouldBlock), "the older one stays");
            assert_eq!(world.memory.admit(&world.other_admits(1, 2)).await, Ok(AdmitReply::Refused { counted: 1 }));
        })
        .await;
}

// Inv. CAP: whoever is let in and has no socket yet is not found among the sockets that are too many. It was the eleventh.
#[tokio::test]
async fn a_handshake_that_ends_after_its_address_was_admitted_again_is_not_one_too_many() {
    let mut world = World::new();
    let mut report = world.cluster.as_ref().expect("made").report();
    world
        .with_cluster(async |world| {
            report.wait_for(|report| report.is_member).await.expect("lives");
            other_beats(&world.memory, Join::Enter).await;
            let (first, pending) = (world.socket().await, world.permit().await);
            goes_out_and_another_takes_a_place(world).await;
            let asked = world.backplane.count(Call::Readmit);
            world.backplane.set_down(false);
            world.backplane.seen(Call::Readmit, asked + 1).await;
            // One of the two may stay, and there is but one to be found. Now comes the other.
            let mut second = world.open(pending).await;
            is_sent_away(&mut second).await;
            let quiet = first.try_read(&mut [0; 16]).map_err(|error| error.kind());
            assert_eq!(quiet, Err(std::io::ErrorKind::WouldBlock), "the older one stays");
            // And then there is nothing left to ask.
            while world.admission.owes_admission() {
                world.backplane.seen(Call::Readmit, world.backplane.count(Call::Readmit) + 1).await;
            }
            assert_eq!(world.memory.admit(&world.other_admits(1, 2)).await, Ok(AdmitReply::Refused { counted: 1 }));
        })
        .await;
}

// Inv. CAP: somebody has removed the counts of an address, and this node saw nothing of it. It was a count stated as a
// fact, beside which others had been let in: for as long as their clients stayed.
#[tokio::test]
async fn sockets_whose_count_was_removed_are_not_uncounted_for_ever() {
    let mut world = World::new();
    let cluster = world.cluster.take().expect("made");
    let mut report = cluster.report();
    let test = async {
        within(report.wait_for(|report| report.is_member)).await.expect("lives");
        other_beats(&world.memory, Join::Enter).await;
        let mut sockets = [world.socket().await, world.socket().await];
        world.others_take_all().await;
        tokio::time::pause();
        tokio::time::advance(REWRITE_EVERY).await;
        tokio::time::resume();
        for socket in &mut sockets {
            within(is_sent_away(socket)).await;
        }
        assert_eq!(world.memory.admit(&world.other_admits(CAP, CAP)).await, Ok(AdmitReply::Granted));
    };
    tokio::select! {
        () = cluster.run(world.lifecycle.clone()) => panic!("the loops ended"),
        () = test => {}
    }
}

// A handshake may take its time after it was let in, and there is nothing to be closed before its socket is open. It was
// fifty questions a second, each with a walk over all sockets.
#[tokio::test(start_paused = true)]
async fn a_surplus_that_is_not_to_be_found_yet_is_asked_about_ever_more_rarely() {
    let mut world = World::new();
    let mut report = world.cluster.as_ref().expect("made").report();
    world
        .with_cluster(async |world| {
            report.wait_for(|report| report.is_member).await.expect("lives");
            other_beats(&world.memory, Join::Enter).await;
            let _pending = [world.permit().await, world.permit().await];
            world.others_take_all().await;
            world.admission.owe_all();
            let before = world.backplane.count(Call::Readmit);
            tokio::time::sleep(Duration::from_secs(5)).await;
            let asked = world.backplane.count(Call::Readmit) - before;
            assert!((2..60).contains(&asked), "{asked}");
        })
        .await;
}

/// Waits for the end of a socket: the last frame is a close with 1013.
async fn is_sent_away(socket: &mut TcpStream) {
    let mut received = Vec::new();
    socket.read_to_end(&mut received).await.expect("reads");
    let close = [&[0x88, 17][..], &1013u16.to_be_bytes(), b"try again later"].concat();
    assert!(received.ends_with(&close), "{received:?}");
}

#[tokio::test]
async fn another_data_set_is_entered_told_of_and_filled_again() {
    let mut world = World::new();
    let cluster = world.cluster.as_ref().expect("made");
    let (mut report, mut data_set) = (cluster.report(), cluster.data_set());
    world.presence.start().await.expect("salts");
    let (presence, hub, lifecycle) = (Arc::clone(&world.presence), Arc::clone(&world.hub), world.lifecycle.clone());
    let test = world.with_cluster(async |world| {
        let before = report.wait_for(|report| report.is_member).await.expect("lives").generation.clone();
        let _socket = world.socket().await;
        assert!(!data_set.has_changed().expect("lives"), "the first data set is no other one");
        let touches = world.backplane.count(Call::Touch);
        let fresh = memory(&world.now);
        world.backplane.replace(Arc::clone(&fresh));
        data_set.changed().await.expect("lives");
        let entered = report.wait_for(|report| report.is_member && report.generation != before).await;
        entered.expect("lives");
        // The visitors are marked at once, and the count of the address is known.
        world.backplane.seen(Call::Touch, touches + 1).await;
        other_beats(&fresh, Join::Enter).await;
        assert_eq!(fresh.admit(&world.other_admits(0, 2)).await, Ok(AdmitReply::Refused { counted: 0 }));
    });
    tokio::select! {
        () = presence.run(hub, lifecycle) => panic!("ended"),
        () = test => {}
    }
}
