//! `publish`: at most once, in order, fenced; times, counts and shares are the backplane's.

use gateway::backplane::{
    PUBLISH_ITEMS_MAX, Publication, PublishReply, Seen, TOUCH_VISITORS_MAX, TouchReply, VisitorHash,
};
use shared::event::{Event, OTHER_THEME, THEMES_MAX};
use shared::field::PAGE_PATH_BYTES_MAX;
use shared::message::{LetterGenerated, NewEvent, Percentage, PublicMessage, ThemeStats};
use shared::time::Timestamp;
use tokio::task::JoinSet;

use super::bench::{Bench, WINDOW, done, ids, name, node, page, request, theme};

pub(crate) async fn items_are_appended_in_order_and_complete(bench: Bench) {
    let before = bench.now().await;
    let letter = Publication::Event(Event::LetterGenerate { letter_type: name("motivation") });
    let long = format!("/{}", "é".repeat(PAGE_PATH_BYTES_MAX / 2 - 1));
    let odd = "/a\"b\\c/\u{2028}%20'`$(x)";
    let mut publish = request(node(1), 1, vec![page("/cv"), theme("backend"), letter, page(&long), page(odd)]);
    publish.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    let told = done(bench.publish(&publish).await);

    let entries = bench.all().await;
    assert_eq!(ids(&entries), told);
    let kinds: Vec<_> = entries.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(kinds, ["new_event", "theme_stats", "letter_generated", "new_event", "new_event"]);
    let seconds = Timestamp::from_unix_ms(before)..=Timestamp::from_unix_ms(bench.now().await);
    for entry in &entries {
        let message = PublicMessage::decode(&entry.kind, &mut entry.data.to_vec()).expect("what we wrote");
        // Inv. WIRE: what stands there is what an encoder of ours writes, byte for byte.
        assert_eq!(std::str::from_utf8(&entry.data), Ok(message.encode_data().as_str()));
        if let PublicMessage::NewEvent(NewEvent { timestamp, .. })
        | PublicMessage::LetterGenerated(LetterGenerated { timestamp, .. }) = message
        {
            assert!(seconds.contains(&timestamp), "{timestamp} outside of {seconds:?}");
        }
        assert_eq!(entry.traceparent, publish.traceparent);
        assert_eq!((entry.visitor.as_ref(), entry.tick), (None, None));
    }
    let path = |at: usize| match PublicMessage::decode(&entries[at].kind, &mut entries[at].data.to_vec()) {
        Ok(PublicMessage::NewEvent(event)) => event.page_url.as_str().to_owned(),
        other => panic!("not an event: {other:?}"),
    };
    assert_eq!([path(0), path(3), path(4)], ["/cv".to_owned(), long, odd.to_owned()]);
}

pub(crate) async fn a_repeated_number_is_answered_and_not_done_again(bench: Bench) {
    let publish = request(node(1), 1, vec![page("/1"), theme("backend")]);
    let first = bench.publish(&publish).await;
    assert_eq!(bench.publish(&publish).await, first);
    assert_eq!(bench.b.publish(&publish).await.as_ref(), Ok(&first), "over another connection too");
    // What counts is the number, even where the rest changed.
    let changed = request(node(1), 1, vec![page("/other")]);
    assert_eq!(bench.publish(&changed).await, first);
    let next = done(bench.publish(&request(node(1), 2, vec![theme("backend")])).await);
    let entries = bench.all().await;
    assert_eq!(ids(&entries), [done(first), next].concat());
    assert_eq!(stats(&entries[2].data), ("backend".to_owned(), 2, Percentage::of(1, 1)), "counted once each");
}

pub(crate) async fn a_lower_number_is_superseded(bench: Bench) {
    done(bench.publish(&request(node(1), 7, vec![page("/7")])).await);
    for number in [6, 1] {
        let late = request(node(1), number, vec![page("/late")]);
        assert_eq!(bench.publish(&late).await, PublishReply::Superseded, "{number}");
    }
    done(bench.publish(&request(node(1), 10, vec![page("/10")])).await);
    assert_eq!(bench.publish(&request(node(1), 9, vec![page("/late")])).await, PublishReply::Superseded, "9 < 10");
    assert_eq!(bench.all().await.len(), 2);
}

/// What it sent before may still be on its way over another connection.
pub(crate) async fn who_left_is_not_done_again(bench: Bench) {
    bench.enter(&[node(1), node(2)]).await;
    done(bench.publish(&request(node(1), 1, vec![page("/1")])).await);
    let last = request(node(1), 2, vec![page("/2")]);
    let first = bench.publish(&last).await;
    bench.a.leave(node(1)).await.expect("an answer");
    assert_eq!(bench.publish(&last).await, first);
    let late = request(node(1), 1, vec![page("/1")]);
    assert_eq!(bench.publish(&late).await, PublishReply::Superseded);
    assert_eq!(bench.all().await.len(), 2);
}

pub(crate) async fn numbers_belong_to_their_node(bench: Bench) {
    let first = done(bench.publish(&request(node(1), 5, vec![page("/a")])).await);
    let second = done(bench.publish(&request(node(2), 5, vec![page("/a")])).await);
    let third = done(bench.publish(&request(node(3), 1, vec![page("/a")])).await);
    assert_eq!(ids(&bench.all().await), [first, second, third].concat());
}

pub(crate) async fn racing_repeats_are_done_once(bench: Bench) {
    let mut racers = JoinSet::new();
    for i in 0..20 {
        let handle = if i % 2 == 0 { bench.a.clone() } else { bench.b.clone() };
        racers.spawn(async move {
            done(handle.publish(&request(node(1), 1, vec![page("/1"), page("/2")])).await.expect("an answer"))
        });
    }
    let answers = racers.join_all().await;
    let there = ids(&bench.all().await);
    assert_eq!(there.len(), 2);
    assert!(answers.iter().all(|answer| *answer == there));
}

// Inv. FENCE
pub(crate) async fn a_lost_lease_fences_and_does_nothing(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let mut publish = request(node(1), 1, vec![page("/1")]);
    publish.lease = Some(lease);
    let first = done(bench.publish(&publish).await);

    bench.a.release(lease).await.expect("an answer");
    (publish.number, publish.items) = (2, vec![theme("backend")]);
    assert_eq!(bench.publish(&publish).await, PublishReply::Fenced, "nobody holds it");
    let successor = bench.reign(node(2)).await;
    assert_eq!(bench.publish(&publish).await, PublishReply::Fenced, "another node holds it");
    bench.a.release(successor).await.expect("an answer");
    let again = bench.reign(node(1)).await;
    assert_eq!(bench.publish(&publish).await, PublishReply::Fenced, "a later reign of the same node");
    assert_eq!(ids(&bench.all().await), first, "nothing was appended");

    publish.lease = Some(again);
    let second = done(bench.publish(&publish).await);
    let entries = bench.all().await;
    assert_eq!(ids(&entries), [first, second].concat(), "the fenced number was not used up");
    assert_eq!(stats(&entries[1].data).1, 1, "nothing was counted");
}

pub(crate) async fn a_repeat_is_answered_though_the_lease_is_lost(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let mut publish = request(node(1), 1, vec![page("/1")]);
    publish.lease = Some(lease);
    let first = bench.publish(&publish).await;
    bench.a.release(lease).await.expect("an answer");
    assert_eq!(bench.publish(&publish).await, first);
    assert_eq!(ids(&bench.all().await), done(first));
}

pub(crate) async fn themes_are_counted_and_shared_out(bench: Bench) {
    let views = ["backend", "frontend", "backend", "data", "backend"];
    done(bench.publish(&request(node(1), 1, views.map(theme).into())).await);
    done(bench.b.publish(&request(node(2), 1, vec![theme("data")])).await.expect("an answer"));
    let got: Vec<_> = bench.all().await.iter().map(|entry| stats(&entry.data)).collect();
    let want = [
        ("backend", 1, 1, 1),
        ("frontend", 1, 1, 2),
        ("backend", 2, 2, 3),
        ("data", 1, 1, 4),
        ("backend", 3, 3, 5),
        ("data", 2, 2, 6),
    ];
    let want: Vec<_> =
        want.iter().map(|(theme, count, part, of)| (theme.to_string(), *count, Percentage::of(*part, *of))).collect();
    assert_eq!(got, want);
}

pub(crate) async fn shares_are_rounded_half_up(bench: Bench) {
    // A new theme among n views has 1/n: 6.25 % at 16, 3.125 % at 32, 1.5625 % at 64, exact halves and odd thirds.
    let views = (0..100).map(|i| theme(&format!("t{i}"))).collect();
    done(bench.publish(&request(node(1), 1, views)).await);
    for (entry, views) in bench.all().await.iter().zip(1..) {
        assert_eq!(stats(&entry.data).2, Percentage::of(1, views), "1 of {views}: {:?}", entry.data);
    }
}

// Inv. BOUND
pub(crate) async fn themes_beyond_the_bound_are_other(bench: Bench) {
    let views = (0..THEMES_MAX + 10).map(|i| theme(&format!("t{i}"))).collect();
    done(bench.publish(&request(node(1), 1, views)).await);
    done(bench.publish(&request(node(1), 2, vec![theme("t0"), theme("new")])).await);
    let entries = bench.all().await;
    let at = |i: usize| stats(&entries[i].data);
    assert_eq!((at(THEMES_MAX - 1).0, at(THEMES_MAX - 1).1), (format!("t{}", THEMES_MAX - 1), 1));
    for i in 0..10 {
        let (theme, count, _) = at(THEMES_MAX + i);
        assert_eq!((theme.as_str(), count), (OTHER_THEME, i as u64 + 1));
    }
    assert_eq!((at(THEMES_MAX + 10).0.as_str(), at(THEMES_MAX + 10).1), ("t0", 2), "known names go on");
    assert_eq!((at(THEMES_MAX + 11).0.as_str(), at(THEMES_MAX + 11).1), (OTHER_THEME, 11));
}

pub(crate) async fn complete_messages_pass_uncounted(bench: Bench) {
    let percentage = Percentage::from_percent(25.8).expect("a share");
    let stats_88 = PublicMessage::ThemeStats(ThemeStats { theme: name("backend"), count: 88, percentage });
    let timestamp = Timestamp::parse("2025-12-08T10:31:00Z").expect("a time");
    let letter = PublicMessage::LetterGenerated(LetterGenerated { letter_type: name("motivation"), timestamp });
    let items = vec![Publication::Public(stats_88.clone()), Publication::Public(letter.clone()), theme("backend")];
    done(bench.publish(&request(node(1), 1, items)).await);
    let entries = bench.all().await;
    assert_eq!(entries[0].data, stats_88.encode_data());
    assert_eq!(entries[1].data, letter.encode_data(), "its time is the producer's");
    assert_eq!(stats(&entries[2].data), ("backend".to_owned(), 1, Percentage::of(1, 1)));
}

pub(crate) async fn who_caused_it_is_touched_in_the_same_step(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let mut publish = request(node(1), 1, vec![page("/1")]);
    publish.touch = Some(bench.touch_of(&[1, 2, 2]).await);
    done(bench.publish(&publish).await);
    assert_eq!(bench.population(lease, WINDOW).await, 2);
}

pub(crate) async fn a_turned_salt_does_not_hinder_publishing(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let mut touch = bench.touch_of(&[1]).await;
    touch.fingerprint = "00000000".to_owned();
    let mut publish = request(node(1), 1, vec![page("/1")]);
    publish.touch = Some(touch);
    let PublishReply::Done { ids: told, touch } = bench.publish(&publish).await else { panic!("not done") };
    assert_eq!(touch, TouchReply::Refused);
    assert_eq!(ids(&bench.all().await), told);
    assert_eq!(bench.population(lease, WINDOW).await, 0);
    let PublishReply::Done { touch, .. } = bench.publish(&publish).await else { panic!("not done") };
    assert_eq!(touch, TouchReply::Refused, "a repeat is answered with what came of it the first time");
}

pub(crate) async fn the_largest_request_fits(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let hash = |kind: u8, i: usize| {
        let [high, low] = u16::try_from(i).expect("few").to_be_bytes();
        VisitorHash([kind, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    };
    let mut touch = bench.touch_of(&[]).await;
    let seen = |i| Seen { visitor: hash(1, i), alias: Some(hash(2, i)) };
    touch.seen = (0..TOUCH_VISITORS_MAX).map(seen).collect();
    touch.round_of = Some(node(1));
    assert_eq!(bench.b.touch(&touch).await, Ok(TouchReply::Done));
    let path = format!("/{}", "x".repeat(PAGE_PATH_BYTES_MAX - 1));
    let mut publish = request(node(1), 1, (0..PUBLISH_ITEMS_MAX).map(|_| page(&path)).collect());
    touch.seen = (TOUCH_VISITORS_MAX..2 * TOUCH_VISITORS_MAX).map(seen).collect();
    publish.touch = Some(touch);
    let told = done(bench.publish(&publish).await);
    assert_eq!(told.len(), PUBLISH_ITEMS_MAX);
    assert_eq!(done(bench.publish(&publish).await), told, "and so does its repeat");
    assert_eq!(bench.population(lease, WINDOW).await, 2 * TOUCH_VISITORS_MAX as u64);
}

/// Theme, count and share of a `theme_stats`.
fn stats(data: &[u8]) -> (String, u64, Percentage) {
    match PublicMessage::decode("theme_stats", &mut data.to_vec()) {
        Ok(PublicMessage::ThemeStats(stats)) => (stats.theme.as_str().to_owned(), stats.count, stats.percentage),
        other => panic!("not theme_stats: {other:?}"),
    }
}
