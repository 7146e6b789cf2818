//! `salts`, `touch`, and what a tick counts: each visitor once, for as long as it is there and a window longer.

use std::time::Duration;

use gateway::backplane::{DAY_MS, Salt, Seen, TouchReply};
use tokio::task::JoinSet;

use super::bench::{Bench, WINDOW, eventually, node, visitor};

pub(crate) async fn salts_are_one_for_all(bench: Bench) {
    let mut racers = JoinSet::new();
    for i in 0..10 {
        let handle = if i % 2 == 0 { bench.a.clone() } else { bench.b.clone() };
        racers.spawn(async move { handle.salts(&[]).await.expect("an answer") });
    }
    let all = racers.join_all().await;
    assert_eq!(all[0].day, all[0].now / DAY_MS);
    assert_ne!(all[0].today, all[0].yesterday);
    let same_day = |day| all.iter().filter(move |salts| salts.day == day);
    for salts in same_day(all[0].day) {
        assert_eq!((&salts.today, &salts.yesterday), (&all[0].today, &all[0].yesterday));
    }
}

pub(crate) async fn an_offered_salt_fills_a_loss_and_nothing_else(bench: Bench) {
    let day = bench.a.claim(node(1), Duration::from_millis(1)).await.expect("an answer").now / DAY_MS;
    let (yesterdays, older) = (Salt([7; 16]), Salt([8; 16]));
    let offer = [(day - 2, older.clone()), (day - 1, yesterdays.clone())];
    let salts = bench.a.salts(&offer).await.expect("an answer");
    assert_eq!(salts.yesterday, yesterdays, "it had none of that day");
    assert_ne!(salts.today, yesterdays);
    assert_ne!(salts.today, older);
    let late = [(day, Salt([1; 16])), (day - 1, Salt([2; 16]))];
    let again = bench.b.salts(&late).await.expect("an answer");
    assert_eq!((again.today, again.yesterday), (salts.today, salts.yesterday), "what is there stays");
}

pub(crate) async fn a_known_population_is_counted(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    assert_eq!(bench.population(lease, WINDOW).await, 0);
    bench.see(&[1, 2, 3]).await;
    assert_eq!(bench.population(lease, WINDOW).await, 3);
    bench.see(&[3, 3, 2]).await;
    assert_eq!(bench.population(lease, WINDOW).await, 3, "seen again is not another one");
    let all: Vec<u8> = (0..=249).collect();
    bench.see(&all).await;
    assert_eq!(bench.population(lease, WINDOW).await, 250);
}

pub(crate) async fn an_alias_does_not_count_twice(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    bench.see(&[1, 2]).await;
    let mut touch = bench.touch_of(&[]).await;
    touch.seen = vec![
        // The turn of the day: 1 becomes 11; 13 was not counted under its old name; 14 has none.
        Seen { visitor: visitor(11), alias: Some(visitor(1)) },
        Seen { visitor: visitor(13), alias: Some(visitor(3)) },
        Seen { visitor: visitor(14), alias: None },
    ];
    for _ in 0..2 {
        assert_eq!(bench.a.touch(&touch).await, Ok(TouchReply::Done));
        assert_eq!(bench.population(lease, WINDOW).await, 4, "2, 11, 13, 14");
    }
}

pub(crate) async fn another_salt_or_day_is_refused(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let salts = bench.a.salts(&[]).await.expect("an answer");
    let good = bench.touch_of(&[1]).await;
    for (day, fingerprint) in [
        (good.day, "00000000".to_owned()),
        (good.day, String::new()),
        (good.day, salts.yesterday.fingerprint()),
        (good.day - 1, salts.yesterday.fingerprint()),
        (good.day + 1, good.fingerprint.clone()),
    ] {
        let mut touch = good.clone();
        (touch.day, touch.fingerprint) = (day, fingerprint);
        assert_eq!(bench.b.touch(&touch).await, Ok(TouchReply::Refused), "{touch:?}");
    }
    assert_eq!(bench.population(lease, WINDOW).await, 0, "nobody was marked");
    assert_eq!(bench.b.touch(&good).await, Ok(TouchReply::Done));
    assert_eq!(bench.population(lease, WINDOW).await, 1);
}

pub(crate) async fn a_visitor_is_forgotten_after_the_window(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let window = Duration::from_secs(1);
    bench.see(&[1, 2]).await;
    bench.population(lease, window).await;
    eventually("those who left are forgotten, not those who stay", || async {
        bench.see(&[3]).await;
        (bench.population(lease, window).await == 1).then_some(())
    })
    .await;
}

pub(crate) async fn a_hole_between_ticks_loses_nobody_who_stayed(bench: Bench) {
    let window = Duration::from_secs(2);
    let lease = bench.reign(node(1)).await;
    bench.enter(&[node(1), node(2)]).await;
    bench.see(&[1, 2]).await;
    let before = bench.tick(lease, Duration::from_millis(100), window).await;
    assert_eq!(before.snapshot.active_visitors, 2);
    bench.past(before.now + 2500).await;
    assert_eq!(bench.population(lease, window).await, 2, "the hole was not lived");
    assert_eq!(bench.population(lease, window).await, 2, "nobody has told yet who stayed");

    let mut touch = bench.touch_of(&[1]).await;
    touch.round_of = Some(node(1));
    assert_eq!(bench.a.touch(&touch).await, Ok(TouchReply::Done));
    assert_eq!(bench.population(lease, window).await, 2, "the other node has not");
    // A machine that halts between two ticks makes another hole, after which both have to tell again.
    eventually("who left while nobody looked is known again", || async {
        for told in [node(1), node(2)] {
            let mut touch = bench.touch_of(&[1]).await;
            touch.round_of = Some(told);
            assert_eq!(bench.a.touch(&touch).await, Ok(TouchReply::Done));
        }
        (bench.population(lease, window).await == 1).then_some(())
    })
    .await;
}
