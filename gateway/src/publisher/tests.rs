use std::sync::atomic::{AtomicU64, Ordering};

use shared::event::Event;
use shared::field::{Name, PagePath, VisitorId};
use shared::ids::{Epoch, StreamId};

use super::*;
use crate::backplane::STREAM_ENTRIES_MAX;
use crate::backplane::memory::MemoryBackplane;
use crate::clock::Clock;
use crate::cluster_time::ClusterTime;
use crate::testing::{Call, Fault, Unreliable, within};

struct Setup {
    backplane: Arc<Unreliable>,
    publisher: Publisher,
    task: PublisherTask,
    presence: Arc<Presence>,
    metrics: Arc<Metrics>,
    /// The backplane's time.
    now: Arc<AtomicU64>,
}

fn setup() -> Setup {
    let now = Arc::new(AtomicU64::new(1_700_000_000_000));
    let time = Arc::clone(&now);
    let backplane = Unreliable::new(MemoryBackplane::with_time(Box::new(move || time.load(Ordering::Relaxed))));
    let (node, clock, metrics) = (NodeId::from_random(1), Clock::start(), Arc::new(Metrics::default()));
    let port: Arc<dyn Backplane> = Arc::clone(&backplane) as _;
    let time = Arc::new(ClusterTime::new(clock));
    let window = Duration::from_secs(300);
    let presence = Presence::new(Arc::clone(&port), node, window, Arc::clone(&metrics), clock, time);
    let (publisher, task) = Publisher::channel(port, node, Arc::clone(&presence), Arc::clone(&metrics));
    Setup { backplane, publisher, task, presence, metrics, now }
}

fn page(path: &str) -> Publication {
    Publication::Event(Event::Page {
        event_type: Name::parse("event_type", Some("page_view")).expect("a name"),
        page_url: PagePath::parse("page_url", Some(path)).expect("a path"),
    })
}

fn submission(paths: &[&str]) -> Submission {
    Submission { items: paths.iter().map(|path| (page(path), None)).collect(), lease: None, traceparent: None }
}

fn visitor() -> VisitorDigest {
    VisitorDigest::of_id(&VisitorId::parse("visitor", "v").expect("an id"))
}

/// Runs `test` while the task runs; the task is left when the test is done.
async fn with_task<T>(task: PublisherTask, test: impl Future<Output = T>) -> T {
    tokio::select! {
        () = task.run(Lifecycle::default()) => panic!("the task ended"),
        result = within(test) => result,
    }
}

/// What stands in the stream.
async fn stream(backplane: &Unreliable) -> Vec<EventId> {
    let entries = backplane.read_from(StreamId::ZERO, STREAM_ENTRIES_MAX, Duration::ZERO).await.expect("answers");
    entries.iter().map(crate::backplane::Entry::event_id).collect()
}

#[tokio::test]
async fn a_lost_answer_does_not_publish_twice() {
    let Setup { backplane, publisher, task, .. } = setup();
    backplane.fail(Call::Publish, [Fault::AnswerLost, Fault::AnswerLost, Fault::Lost]);
    let ids = with_task(task, publisher.publish(submission(&["/a", "/b"]))).await.expect("published");
    assert_eq!(stream(&backplane).await, ids);
    assert_eq!((ids.len(), backplane.count(Call::Publish)), (2, 4));
}

#[tokio::test]
async fn what_waits_goes_as_one_request_and_each_gets_its_own_ids() {
    let Setup { backplane, publisher, task, .. } = setup();
    let third = Submission { traceparent: Some("00-trace".into()), ..submission(&["/d"]) };
    let (a, b, c) = with_task(task, async {
        tokio::join!(
            publisher.publish(submission(&["/a"])),
            publisher.publish(submission(&["/b", "/c"])),
            publisher.publish(third)
        )
    })
    .await;
    let answers = [a.expect("published"), b.expect("published"), c.expect("published")];
    assert_eq!(answers.each_ref().map(Vec::len), [1, 2, 1]);
    assert_eq!(stream(&backplane).await, answers.concat());
    assert_eq!(backplane.count(Call::Publish), 2, "the one with another trace goes by itself");
}

#[tokio::test(start_paused = true)]
async fn gives_up_in_time_and_does_not_reuse_the_number() {
    let Setup { backplane, publisher, task, .. } = setup();
    backplane.set_down(true);
    with_task(task, async {
        let start = Instant::now();
        assert_eq!(publisher.publish(submission(&["/a"])).await, Err(PublishError::Unavailable));
        assert!(start.elapsed() <= GIVE_UP_AFTER);
        // Carried out, but its answer is lost until it is given up.
        backplane.set_down(false);
        backplane.fail(Call::Publish, [Fault::AnswerLost; 1_000]);
        assert_eq!(publisher.publish(submission(&["/b"])).await, Err(PublishError::Unavailable));
        backplane.fail_no_more(Call::Publish);
        let ids = publisher.publish(submission(&["/c"])).await.expect("published");
        let stream = stream(&backplane).await;
        assert_eq!(stream.len(), 2, "the second, and the third as itself");
        assert_eq!(stream.last(), ids.first());
    })
    .await;
}

// Inv. BOUND. On a paused clock: a busy machine takes longer for 10,000 items than a submission is willing to wait.
#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused_at_once() {
    let Setup { publisher, task, .. } = setup();
    let paths = vec!["/a"; PUBLISH_ITEMS_MAX];
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..ITEMS_WAITING_MAX / PUBLISH_ITEMS_MAX {
        let (publisher, submission) = (publisher.clone(), submission(&paths));
        waiting.spawn(async move { publisher.publish(submission).await });
    }
    // The others have run as far as they can when this one gets its turn.
    tokio::task::yield_now().await;
    assert_eq!(publisher.publish(submission(&["/b"])).await, Err(PublishError::Full));
    with_task(task, async { while waiting.join_next().await.is_some_and(|done| done.expect("ends").is_ok()) {} }).await;
    assert!(waiting.is_empty(), "all that fitted was published");
}

// Inv. FENCE
#[tokio::test]
async fn a_lost_lease_publishes_nothing() {
    let Setup { backplane, publisher, task, now, .. } = setup();
    let lease = Lease { node: NodeId::from_random(1), epoch: Epoch(1) };
    let fenced = Submission { lease: Some(lease), ..submission(&["/a"]) };
    with_task(task, async {
        assert_eq!(publisher.publish(fenced).await, Err(PublishError::Fenced));
        let reply = backplane.claim(NodeId::from_random(1), Duration::from_secs(3)).await.expect("answers");
        let held = Submission { lease: reply.lease, ..submission(&["/b"]) };
        publisher.publish(held).await.expect("published");
        now.fetch_add(4_000, Ordering::Relaxed);
        let late = Submission { lease: reply.lease, ..submission(&["/c"]) };
        assert_eq!(publisher.publish(late).await, Err(PublishError::Fenced));
        assert_eq!(stream(&backplane).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn who_caused_an_event_is_marked_also_when_the_salt_has_turned() {
    let Setup { backplane, publisher, task, presence, metrics, now } = setup();
    presence.start().await.expect("salts");
    let by = |visitor| Submission { items: vec![(page("/a"), Some(visitor))], lease: None, traceparent: None };
    let lifecycle = Lifecycle::default();
    let marks = async {
        publisher.publish(by(visitor())).await.expect("published");
        assert_eq!(metrics.visitors_touched.value(), 1);
        now.fetch_add(86_400_000, Ordering::Relaxed);
        let touches = backplane.count(Call::Touch);
        publisher.publish(by(visitor())).await.expect("published, the touch is refused");
        backplane.seen(Call::Touch, touches + 1).await;
    };
    tokio::select! {
        () = presence.drive(std::collections::HashSet::new, &lifecycle) => panic!("ended"),
        () = with_task(task, marks) => {}
    }
}
