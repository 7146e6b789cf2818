//! What of the past is gone, and what a client that comes back for it is told.

use shared::ids::EventId;

use super::viewer::{Ears, Viewer, busy, resumes, stream};
use crate::support::cluster::Cluster;
use crate::support::gateway::Setup;
use crate::support::redis_server::{Durability, Options, RedisServer};
use crate::support::resp::Resp;
use crate::support::wait::{SOON, until};

// Inv. GAP: the past of a node has an end, and what lies before it is said exactly.
#[tokio::test]
async fn what_the_past_does_not_reach_is_a_gap_with_exact_bounds() {
    let cluster = Cluster::of(1, |setup| busy(setup).with("GATEWAY_REPLAY_BYTES", "16KiB")).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..500).await;
    ears.until(499).await;
    let mut viewer = Viewer::at(&ids[3].to_string());
    viewer.visit(&cluster.nodes[0], |viewer| viewer.pages.last() == Some(&499)).await;
    let first = viewer.pages[0];
    assert!((5..499).contains(&first), "{first}: 16 KiB hold some tens of messages");
    viewer.assert_heard(first..500);
    let [(from, to)] = viewer.gaps[..] else { panic!("{:?}", viewer.gaps) };
    assert_eq!(from, Some(ids[3]));
    // It ends with the last that is missing; a snapshot may stand between that and the first that is not.
    let (to, first) = (to.expect("known"), usize::try_from(first).expect("small"));
    assert!(ids[first - 1].stream <= to.stream && to.stream < ids[first].stream, "{to} before {}", ids[first]);
    until("it is counted", SOON, async || (cluster.nodes[0].metric(&resumes("trimmed")).await == 1).then_some(()))
        .await;
}

// Inv. GAP: the stream was trimmed before the node came to read it.
#[tokio::test]
async fn what_redis_has_trimmed_is_a_gap_with_exact_bounds() {
    let cluster = Cluster::of(1, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..100).await;
    ears.until(99).await;
    redis.call(&["XTRIM", "{analytics}:events", "MINID", &ids[60].stream.to_string()]).await;
    let late = busy(Setup::on(&cluster.redis)).ready().await;
    let mut viewer = Viewer::at(&ids[3].to_string());
    viewer.visit(&late, |viewer| viewer.pages.last() == Some(&99)).await;
    // The oldest that is left is the end of the gap, and part of it: what lies before it has no name any more.
    viewer.assert_heard(61..100);
    assert_eq!(viewer.gaps, [(Some(ids[3]), Some(ids[60]))]);
    // Who has the oldest misses nothing.
    let mut viewer = Viewer::at(&ids[60].to_string());
    viewer.visit(&late, |viewer| viewer.pages.last() == Some(&99)).await;
    viewer.assert_heard(61..100);
    assert_eq!(viewer.gaps, []);
    // On the node that has seen it all, nobody does.
    let mut viewer = Viewer::at(&ids[3].to_string());
    viewer.visit(&cluster.nodes[0], |viewer| viewer.pages.last() == Some(&99)).await;
    viewer.assert_heard(4..100);
    assert_eq!(viewer.gaps, []);
}

// Inv. GAP: the stream is trimmed past the place of a node that slept. Who is live is told before anything that comes
// behind the hole, so who leaves then has not missed it unsaid; and who comes back is told in its place.
#[tokio::test]
async fn a_node_that_was_outrun_says_so_before_it_goes_on() {
    let cluster = Cluster::of(2, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let mut ids = stream(&mut redis, 0..5).await;
    ears.until(4).await;
    let (outrun, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let mut viewer = Viewer::at(&ids[2].to_string());
    let mut client = viewer.connect(outrun).await;
    viewer.read(&mut client, |viewer| viewer.pages.len() == 2).await;
    // Shorter than what would make the node doubt its place by itself.
    outrun.freeze();
    ids.extend(stream(&mut redis, 5..100).await);
    ears.0[1].until_heard(r#""page_url":"/99","#, SOON).await;
    redis.call(&["XTRIM", "{analytics}:events", "MINID", &ids[60].stream.to_string()]).await;
    outrun.thaw();
    viewer.read(&mut client, |viewer| viewer.pages.last() >= Some(&60)).await;
    // The last that it got before it fell asleep.
    let got = viewer.pages[viewer.pages.len() - 2];
    viewer.assert_heard((3..=got).chain([60]));
    let got = usize::try_from(got).expect("small");
    let [(from, None)] = viewer.gaps[..] else { panic!("{:?}", viewer.gaps) };
    assert!(from.is_some_and(|from| ids[got].stream <= from.stream && from.stream < ids[60].stream), "{from:?}");
    // Who was away then, and comes to this node, is told the same.
    ears.until(99).await;
    let mut away = Viewer::at(&ids[3].to_string());
    away.visit(outrun, |viewer| viewer.pages.last() == Some(&99)).await;
    away.assert_heard((4..=got as u64).chain(60..100));
    assert_eq!(away.gaps, viewer.gaps);
    // The other node was awake.
    let mut away = Viewer::at(&ids[3].to_string());
    away.visit(other, |viewer| viewer.pages.last() == Some(&99)).await;
    away.assert_heard(4..100);
    assert_eq!(away.gaps, []);
}

// Inv. GAP: ids of another stream, of no stream, and of the future.
#[tokio::test]
async fn an_id_that_never_was_gets_a_gap_up_to_now() {
    let cluster = Cluster::of(2, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..10).await;
    ears.until(9).await;
    let foreign = EventId { digest: shared::ids::EntryDigest::of("new_event", b"{}"), ..ids[4] };
    let mut between = ids[4];
    between.stream.seq += 1_000;
    let future: EventId = "18446744073709551615-18446744073709551615-abcd".parse().expect("an id");
    let mut page = 10;
    for last in [foreign, between, future] {
        for node in &cluster.nodes {
            let mut viewer = Viewer::at(&last.to_string());
            let mut client = viewer.connect(node).await;
            viewer.read(&mut client, |viewer| !viewer.gaps.is_empty()).await;
            let (from, to) = viewer.gaps[0];
            assert_eq!(from, Some(last));
            // Inv. ORDER: an end that lies behind what the client had would lead it back.
            let up_to_now = to.is_some_and(|to| to.stream >= ids[9].stream);
            assert_eq!(up_to_now, last != future, "up to now, or open: {to:?}");
            assert_eq!(to.is_none(), last == future);
            stream(&mut redis, [page]).await;
            viewer.read(&mut client, |viewer| !viewer.pages.is_empty()).await;
            viewer.assert_heard([page]);
            ears.until(page).await;
            page += 1;
        }
    }
}

// Inv. GAP: Redis loses its data while the client is away. The nodes tell it, and a node that came later does.
#[tokio::test]
async fn who_was_away_while_redis_lost_its_data_is_told() {
    let redis = RedisServer::with(Options { durability: Durability::Nothing, ..Options::default() });
    let mut cluster = Cluster::on(redis, 2, busy).await;
    let mut producer = Resp::to(&cluster.redis).await;
    let mut viewer = Viewer::default();
    let mut client = viewer.connect(&cluster.nodes[0]).await;
    viewer.read(&mut client, |viewer| viewer.last.is_some()).await;
    stream(&mut producer, 0..5).await;
    viewer.read(&mut client, |viewer| viewer.pages.len() == 5).await;
    drop(client);
    // Some more that it will never see, if the node saw them.
    let ears = Ears::on(&cluster.nodes).await;
    let lost = stream(&mut producer, 5..8).await;
    ears.until(7).await;

    cluster.redis.kill9();
    for node in &cluster.nodes {
        node.until_health("degraded", SOON).await;
    }
    cluster.redis.restart();
    let mut producer = Resp::to(&cluster.redis).await;
    stream(&mut producer, 10..15).await;
    for node in &cluster.nodes {
        node.until_metric("gateway_gap_entries_total", 1).await;
    }
    stream(&mut producer, 15..20).await;
    let last = viewer.last.clone().expect("some");
    let had: EventId = last.parse().expect("an id");
    viewer.visit(&cluster.nodes[1], |viewer| viewer.pages.last() == Some(&19)).await;
    // The node still has what it saw before, and knows where the hole is.
    viewer.assert_heard((0..8).chain(10..20));
    let [(from, _)] = viewer.gaps[..] else { panic!("{:?}", viewer.gaps) };
    assert!(from.is_some_and(|from| from.stream >= lost[2].stream), "behind what it has got: {from:?}");

    let late = busy(Setup::on(&cluster.redis)).ready().await;
    let mut again = Viewer::at(&last);
    again.visit(&late, |viewer| viewer.pages.last() == Some(&19)).await;
    let [(from, to)] = again.gaps[..] else { panic!("{:?}", again.gaps) };
    assert_eq!(from, Some(had));
    let first = again.pages[0];
    again.assert_heard(first..20);
    let to = to.expect("the oldest that is left is known");
    assert!(again.ids[0].stream > to.stream && had.stream < to.stream, "{to}");
}
