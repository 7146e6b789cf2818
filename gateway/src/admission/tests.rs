//! Admission against a backplane that answers late, wrongly, or not at all. Time is tokio's, paused.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use super::fake::{Fake, Mood};
use super::*;

const CAP: u32 = 3;

fn admission(fake: &Arc<Fake>, max_connections: u32, max_per_address: u32) -> Arc<Admission> {
    let settings = AdmissionSettings {
        max_connections,
        max_per_address,
        handshakes_per_second: 0,
        backplane_wait: Duration::from_millis(250),
        visitor_window: Duration::from_secs(300),
    };
    let backplane = Arc::clone(fake) as Arc<dyn Backplane>;
    let admission = Admission::new(settings, NodeId::from_random(1), backplane, Arc::default(), Clock::start());
    admission.set_secret([7; 32]);
    admission
}

fn ip(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn told(fake: &Fake, n: u8) -> Option<u32> {
    fake.told.lock().get(&address_hash(&[7; 32], ip(n))).copied()
}

/// Time is paused, so waiting in vain ends at once.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("happens")
}

async fn becomes_dirty(admission: &Admission) {
    within(admission.dirty()).await;
}

/// Polls once: the future has started whatever it starts, and must not have ended.
async fn start<F: Future>(future: &mut std::pin::Pin<&mut F>) {
    std::future::poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending(), "ended early");
        Poll::Ready(())
    })
    .await;
}

// Inv. CAP
#[tokio::test(start_paused = true)]
async fn one_too_many_is_refused_and_a_dropped_permit_makes_room() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    let mut permits = Vec::new();
    for _ in 0..CAP {
        permits.push(admission.admit(ip(1)).await.expect("room"));
    }
    assert_eq!(admission.admit(ip(1)).await.unwrap_err(), Refusal::AddressCap);
    assert_eq!(fake.asked.load(Ordering::Relaxed), 3, "an address that is full here needs no question");
    assert!(admission.admit(ip(2)).await.is_ok());

    permits.pop();
    becomes_dirty(&admission).await;
    admission.flush_dirty().await.expect("answers");
    assert_eq!((told(&fake, 1), told(&fake, 2)), (Some(2), Some(0)));
    assert!(admission.admit(ip(1)).await.is_ok());
}

// Inv. CAP: the sockets of other nodes count.
#[tokio::test(start_paused = true)]
async fn the_cluster_has_the_last_word() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    *fake.others.lock() = 2;
    let permit = admission.admit(ip(1)).await.expect("room");
    assert_eq!(admission.admit(ip(1)).await.unwrap_err(), Refusal::AddressCap);
    *fake.others.lock() = 1;
    assert!(admission.admit(ip(1)).await.is_ok());
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn the_nodes_cap_and_readiness() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 2, 0);
    let one = admission.admit(ip(1)).await.expect("room");
    let _two = admission.admit(ip(1)).await.expect("room");
    assert_eq!(admission.admit(ip(2)).await.unwrap_err(), Refusal::Full);
    drop(one);
    assert!(admission.admit(ip(2)).await.is_ok());
    assert_eq!(fake.asked.load(Ordering::Relaxed), 0, "without a cap per address nobody is asked");

    let settings = admission.settings;
    let early = Admission::new(settings, NodeId::from_random(1), fake, Arc::default(), Clock::start());
    assert_eq!(early.admit(ip(1)).await.unwrap_err(), Refusal::NotReady);
}

#[tokio::test(start_paused = true)]
async fn a_silent_backplane_is_waited_for_once() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    *fake.mood.lock() = Mood::Silent;
    let began = tokio::time::Instant::now();
    let mut permits = vec![admission.admit(ip(1)).await.expect("decided alone")];
    assert_eq!(began.elapsed(), Duration::from_millis(250));
    assert!(admission.is_alone());
    for _ in 1..CAP {
        permits.push(admission.admit(ip(1)).await.expect("decided alone"));
    }
    // Inv. CAP: alone, the node's own count decides.
    assert_eq!(admission.admit(ip(1)).await.unwrap_err(), Refusal::AddressCap);
    assert_eq!(began.elapsed(), Duration::from_millis(250), "the others did not wait");
    assert_eq!(admission.metrics.admissions_alone.value(), 3);

    // What was decided alone is asked about, not told.
    *fake.mood.lock() = Mood::Well;
    admission.flush_dirty().await.expect("answers");
    assert!(admission.is_alone());
    assert_ne!(told(&fake, 1), Some(CAP));
    within(admission.unadmitted()).await;
    assert_eq!(admission.readmit().await.expect("answers"), Readmission::default());
    assert!(!admission.is_alone());
    assert_eq!(told(&fake, 1), Some(CAP));
    assert!(admission.admit(ip(2)).await.is_ok());
    assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_broken_backplane_is_not_waited_for_and_a_failed_batch_stays_dirty() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    let permit = admission.admit(ip(1)).await.expect("room");
    admission.mark_all_dirty();
    *fake.mood.lock() = Mood::Broken;
    assert_eq!(admission.flush_dirty().await, Err(backplane::BackplaneError::Unreachable));
    becomes_dirty(&admission).await;
    drop(permit);
    *fake.mood.lock() = Mood::Well;
    admission.flush_dirty().await.expect("answers");
    assert_eq!(told(&fake, 1), Some(0));
    assert!(!admission.counts.lock().has_work());
}

#[tokio::test(start_paused = true)]
async fn questions_about_one_address_never_overlap() {
    let fake = Arc::new(Fake { answers: tokio::sync::Semaphore::new(0), ..Fake::default() });
    let admission = admission(&fake, 100, CAP);
    let (mut a, mut b) = (pin!(admission.admit(ip(1))), pin!(admission.admit(ip(1))));
    let (mut c, mut flush) = (pin!(admission.admit(ip(1))), pin!(admission.flush_dirty()));
    start(&mut a).await;
    start(&mut b).await;
    start(&mut c).await;
    admission.mark_all_dirty();
    assert!(futures_util::poll!(flush.as_mut()).is_ready(), "an address that is being asked about is skipped");
    assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
    // Three handshakes wait: a fourth is one too many although no socket is open yet.
    assert_eq!(admission.admit(ip(1)).await.unwrap_err(), Refusal::AddressCap);
    fake.answers.add_permits(100);
    let (a, b, c) = tokio::join!(a, b, c);
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert!(!fake.overlapped.load(Ordering::Relaxed));
    assert_eq!(told(&fake, 1), Some(3));
}

// Inv. CAP: a backplane that answers each question in time is no silent one, however many wait for their turn.
#[tokio::test(start_paused = true)]
async fn a_queue_of_handshakes_is_not_taken_for_silence() {
    let fake = Arc::new(Fake { answers: tokio::sync::Semaphore::new(0), ..Fake::default() });
    let admission = admission(&fake, 100, 10);
    *fake.others.lock() = 10;
    let handshakes = futures_util::future::join_all((0..10).map(|_| admission.admit(ip(1))));
    let answering = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            fake.answers.add_permits(1);
        }
    };
    let outcomes = tokio::select! {
        outcomes = handshakes => outcomes,
        () = answering => unreachable!("it answers for ever"),
    };
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Refusal::AddressCap))), "{outcomes:?}");
    assert!(!admission.is_alone());

    // And one that is silent is waited for once, not once by each.
    *fake.mood.lock() = Mood::Silent;
    let began = tokio::time::Instant::now();
    let outcomes = futures_util::future::join_all((0..10).map(|_| admission.admit(ip(1)))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(began.elapsed(), Duration::from_millis(250));
}

// Inv. CAP: a handshake that is given up while the question is open leaves neither a place taken nor a wrong count.
#[tokio::test(start_paused = true)]
async fn an_abandoned_handshake_gives_everything_back() {
    let fake = Arc::new(Fake { answers: tokio::sync::Semaphore::new(0), ..Fake::default() });
    let admission = admission(&fake, 1, CAP);
    {
        let mut abandoned = pin!(admission.admit(ip(1)));
        start(&mut abandoned).await;
        assert_eq!(told(&fake, 1), Some(1), "the question was carried out");
    }
    fake.answers.add_permits(100);
    becomes_dirty(&admission).await;
    admission.flush_dirty().await.expect("answers");
    assert_eq!(told(&fake, 1), Some(0));
    assert!(admission.admit(ip(1)).await.is_ok(), "the node's only place is free");
}

#[tokio::test(start_paused = true)]
async fn who_is_no_member_decides_alone_and_asks_to_be_entered() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    *fake.mood.lock() = Mood::Gone;
    let mut permits = vec![admission.admit(ip(1)).await.expect("decided alone")];
    within(admission.gone()).await;
    permits.push(admission.admit(ip(1)).await.expect("decided alone"));
    permits.push(admission.admit(ip(2)).await.expect("decided alone"));
    assert_eq!(admission.metrics.admissions_alone.value(), 3);

    // Entered again, beside two sockets that the address has elsewhere: one of the two here is too many.
    *fake.mood.lock() = Mood::Well;
    *fake.others.lock() = 2;
    admission.owe_all();
    let readmission = admission.readmit().await.expect("answers");
    assert_eq!(readmission.kept, [(address_hash(&[7; 32], ip(1)), 1)]);
    assert!(!readmission.is_stuck);
    permits.remove(0);
    // Whether no other was to be closed is asked, until that is so.
    assert_eq!(admission.readmit().await.expect("answers"), Readmission::default());
    assert!(!admission.owes_admission());
    admission.flush_dirty().await.expect("answers");
    assert_eq!((told(&fake, 1), told(&fake, 2)), (Some(1), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn readmission_reports_a_backplane_that_does_not_answer() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    let _permit = admission.admit(ip(1)).await.expect("room");
    *fake.mood.lock() = Mood::Broken;
    admission.owe_all();
    for _ in 0..2 {
        assert!(admission.readmit().await.is_err());
        within(admission.unadmitted()).await;
    }
    // Nor is it an answer that the node is no member.
    *fake.mood.lock() = Mood::Gone;
    assert!(admission.readmit().await.expect("answers").is_stuck);
    within(admission.gone()).await;
    within(admission.unadmitted()).await;
}

// Inv. CAP: what stands in one address's place by mistake is that address's affair.
#[tokio::test(start_paused = true)]
async fn an_address_whose_place_holds_something_else_costs_the_others_nothing() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    let name = |n| address_hash(&[7; 32], ip(n));
    let _older = admission.admit(ip(1)).await.expect("room");
    fake.corrupt.lock().extend([name(1), name(2)]);
    let mut permits = vec![
        admission.admit(ip(1)).await.expect("decided alone"),
        admission.admit(ip(1)).await.expect("decided alone"),
        admission.admit(ip(2)).await.expect("decided alone"),
    ];
    assert_eq!(admission.admit(ip(1)).await.unwrap_err(), Refusal::AddressCap, "by the node's own count");
    assert_eq!(admission.metrics.admissions_alone.value(), 3);
    assert!(!admission.is_alone(), "for others the cluster is asked");
    permits.push(admission.admit(ip(3)).await.expect("room"));
    assert_eq!(admission.metrics.admissions_alone.value(), 3);

    // Everything is asked about again, and told: the others are through, and nothing turns in a circle.
    fake.told.lock().clear();
    admission.owe_all();
    let readmission = admission.readmit().await.expect("answers");
    assert_eq!(readmission, Readmission::default());
    assert!(!admission.owes_admission());
    admission.mark_all_dirty();
    admission.flush_dirty().await.expect("answers");
    assert_eq!((told(&fake, 1), told(&fake, 3)), (None, Some(1)));
    assert!(!admission.counts.lock().has_work());
    // Nor does a drain wait for it: one of each address goes.
    permits.remove(0);
    permits.pop();
    within(admission.settle()).await.expect("answers");
    assert_eq!((told(&fake, 1), told(&fake, 3)), (None, Some(0)));

    // In vain.
    admission.owe_put_off();
    assert_eq!(admission.readmit().await.expect("answers"), Readmission::default());
    assert!(!admission.owes_admission());
    // It was put right; meanwhile others have let two in.
    fake.corrupt.lock().clear();
    *fake.others.lock() = 2;
    admission.owe_put_off();
    within(admission.unadmitted()).await;
    let readmission = admission.readmit().await.expect("answers");
    assert_eq!(readmission.kept, [(name(1), 1)], "of two");
    assert_eq!((told(&fake, 1), told(&fake, 2)), (Some(1), Some(1)));
}

// Inv. CAP: a count that is told meets it, too.
#[tokio::test(start_paused = true)]
async fn a_batch_is_told_but_for_addresses_whose_place_holds_something_else() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, CAP);
    let mut permits = Vec::new();
    for n in [1, 1, 2, 2, 3] {
        permits.push(admission.admit(ip(n)).await.expect("room"));
    }
    fake.corrupt.lock().extend([1, 3].map(|n| address_hash(&[7; 32], ip(n))));
    permits.remove(4);
    permits.remove(2);
    permits.remove(0);
    admission.flush_dirty().await.expect("answers");
    assert_eq!((told(&fake, 1), told(&fake, 2)), (Some(2), Some(1)));
    assert!(!admission.counts.lock().has_work() && !admission.owes_admission());
    // What could not be told is no fact any more when it can be: others may have gone by their own counts as well.
    fake.corrupt.lock().clear();
    admission.mark_all_dirty();
    admission.flush_dirty().await.expect("answers");
    assert_eq!((told(&fake, 1), told(&fake, 3)), (Some(2), Some(0)));
    admission.owe_put_off();
    assert_eq!(admission.readmit().await.expect("answers"), Readmission::default());
    assert_eq!(told(&fake, 1), Some(1));
    assert!(!admission.owes_admission());
}

// Inv. CAP: the question was carried out; then the node was out, and others were let in; then the answer is heard. Nobody
// counted that socket, and nobody asked about it.
#[tokio::test(start_paused = true)]
async fn a_grant_from_before_the_node_was_out_is_asked_about_again() {
    let fake = Arc::new(Fake { answers: tokio::sync::Semaphore::new(0), ..Fake::default() });
    let admission = admission(&fake, 100, CAP);
    let mut handshake = pin!(admission.admit(ip(1)));
    start(&mut handshake).await;
    assert_eq!(told(&fake, 1), Some(1));
    fake.told.lock().clear();
    *fake.others.lock() = CAP;
    admission.owe_all();
    fake.answers.add_permits(100);
    let _permit = handshake.await.expect("granted, before");
    within(admission.unadmitted()).await;
    let readmission = admission.readmit().await.expect("answers");
    assert_eq!(readmission.kept, [(address_hash(&[7; 32], ip(1)), 0)]);
}

// Inv. PRIVATE
#[test]
fn nothing_that_can_be_printed_shows_an_address() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 100, 0);
    let permit = futures_util::FutureExt::now_or_never(admission.admit(ip(77))).expect("no wait").expect("room");
    assert!(!format!("{admission:?} {permit:?}").contains("192.0.2"));
}

// Inv. CAP: nothing is told of an address before it was admitted, while all others are, whoever is asked about.
#[tokio::test(start_paused = true)]
async fn a_walk_over_many_addresses_goes_call_by_call_and_hinders_nobody() {
    let fake = Arc::new(Fake::default());
    let admission = admission(&fake, 1_000, CAP);
    let mut permits = Vec::new();
    for n in 0..=u8::MAX {
        permits.push(admission.admit(ip(n)).await.expect("room"));
    }
    let asked = fake.asked.load(Ordering::Relaxed);
    fake.told.lock().clear();
    admission.owe_all();
    admission.mark_all_dirty();
    admission.flush_dirty().await.expect("answers");
    assert!(fake.told.lock().is_empty());

    assert!(!admission.readmit().await.expect("answers").is_stuck);
    assert_eq!(fake.told.lock().len(), READMIT_ADDRESSES_MAX);
    // In between somebody comes and somebody goes.
    permits.push(admission.admit(ip(1)).await.expect("room"));
    permits.remove(2);
    admission.flush_dirty().await.expect("answers");
    assert_eq!((told(&fake, 1), told(&fake, 2)), (Some(2), Some(0)));
    while admission.owes_admission() {
        assert!(!admission.readmit().await.expect("answers").is_stuck);
    }
    assert_eq!(fake.told.lock().len(), 256);
    assert!(fake.asked.load(Ordering::Relaxed) <= asked + 1 + 256_usize.div_ceil(READMIT_ADDRESSES_MAX));
    assert!(!fake.overlapped.load(Ordering::Relaxed));
}
