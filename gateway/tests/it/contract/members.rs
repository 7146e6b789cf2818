//! `beat`, `leave`, `admit`, `readmit`, `set_counts`, `secret`: who lives, and never an eleventh socket.

use gateway::backplane::{AddressHash, AdmitReply, Join, READMIT_ADDRESSES_MAX, Standing};
use tokio::task::JoinSet;

use super::bench::{Bench, LONG, SHORT, address, eventually, ms, node};

pub(crate) async fn a_node_enters_stays_and_sees_the_others(bench: Bench) {
    let first = bench.beat(node(1), Join::Enter, LONG).await;
    assert_eq!((first.standing, first.members), (Standing::Member, 1));
    let second = bench.beat(node(2), Join::Enter, LONG).await;
    assert_eq!((second.standing, second.members), (Standing::Member, 2));
    let stayed = bench.beat(node(1), Join::Stay, LONG).await;
    assert_eq!((stayed.standing, stayed.members), (Standing::Member, 2));
    let again = bench.beat(node(1), Join::Enter, LONG).await;
    assert_eq!((again.standing, again.members), (Standing::Member, 2), "entering twice is one membership");
    assert!(first.now > 0 && again.now >= first.now);
}

pub(crate) async fn the_generation_is_one_and_stays(bench: Bench) {
    let mut racers = JoinSet::new();
    for i in 0..10 {
        let handle = if i % 2 == 0 { bench.a.clone() } else { bench.b.clone() };
        racers.spawn(async move { handle.beat(node(i), Join::Enter, LONG).await.expect("an answer").generation });
    }
    let generations = racers.join_all().await;
    assert!(!generations[0].is_empty());
    assert!(generations.iter().all(|generation| *generation == generations[0]), "{generations:?}");
    assert_eq!(bench.beat(node(1), Join::Stay, LONG).await.generation, generations[0]);
    bench.a.leave(node(1)).await.expect("an answer");
    let gone = bench.beat(node(1), Join::Stay, LONG).await;
    assert_eq!((gone.standing, &gone.generation), (Standing::Gone, &generations[0]), "told to who is gone too");
}

pub(crate) async fn who_never_entered_is_gone(bench: Bench) {
    bench.enter(&[node(1)]).await;
    let reply = bench.beat(node(2), Join::Stay, LONG).await;
    assert_eq!((reply.standing, reply.members), (Standing::Gone, 1));
    assert_eq!(bench.beat(node(1), Join::Stay, LONG).await.members, 1, "asking makes nobody a member");
}

pub(crate) async fn a_membership_runs_out_while_others_live(bench: Bench) {
    bench.enter(&[node(1)]).await;
    bench.beat(node(2), Join::Enter, SHORT).await;
    eventually("the membership ends", || async {
        (bench.beat(node(1), Join::Stay, LONG).await.members == 1).then_some(())
    })
    .await;
    let late = bench.beat(node(2), Join::Stay, LONG).await;
    assert_eq!((late.standing, late.members), (Standing::Gone, 1));
    let back = bench.beat(node(2), Join::Enter, LONG).await;
    assert_eq!((back.standing, back.members), (Standing::Member, 2));
}

/// It was the backplane that was away, then, not the nodes.
pub(crate) async fn when_all_ran_out_nobody_did(bench: Bench) {
    let ip = address(1);
    let entered = bench.beat(node(1), Join::Enter, SHORT).await;
    let last = bench.beat(node(2), Join::Enter, SHORT).await;
    assert_eq!(bench.admit(node(2), ip, 0, 10).await, AdmitReply::Granted);
    bench.past(last.now.max(entered.now) + ms(SHORT) + 1).await;
    let stayed = bench.beat(node(1), Join::Stay, LONG).await;
    assert_eq!((stayed.standing, stayed.members), (Standing::Member, 2));
    assert_eq!(bench.admit(node(1), ip, 0, 1).await, AdmitReply::Refused { counted: 0 }, "the other's still count");
}

pub(crate) async fn who_left_is_gone_and_counts_no_more(bench: Bench) {
    let ip = address(1);
    bench.enter(&[node(1), node(2)]).await;
    assert_eq!(bench.admit(node(1), ip, 0, 10).await, AdmitReply::Granted);
    assert_eq!(bench.admit(node(2), ip, 0, 1).await, AdmitReply::Refused { counted: 0 });
    bench.a.leave(node(1)).await.expect("an answer");
    assert_eq!(bench.admit(node(2), ip, 0, 10).await, AdmitReply::Granted);
    let reply = bench.beat(node(1), Join::Stay, LONG).await;
    assert_eq!((reply.standing, reply.members), (Standing::Gone, 1));
    bench.a.leave(node(1)).await.expect("leaving twice is nothing");
}

// Inv. CAP
pub(crate) async fn the_cap_holds_over_all_nodes(bench: Bench) {
    let ip = address(1);
    bench.enter(&[node(1), node(2), node(3)]).await;
    for held in 0..5 {
        assert_eq!(bench.admit(node(1), ip, held, held + 1).await, AdmitReply::Granted);
    }
    assert_eq!(bench.admit(node(2), ip, 0, 4).await, AdmitReply::Granted);
    assert_eq!(bench.admit(node(3), ip, 0, 2).await, AdmitReply::Refused { counted: 0 }, "not a part of a wish");
    assert_eq!(bench.admit(node(3), ip, 0, 1).await, AdmitReply::Granted);
    for (name, held) in [(1, 5), (2, 4), (3, 1)] {
        let refused = AdmitReply::Refused { counted: held };
        assert_eq!(bench.admit(node(name), ip, held, held + 1).await, refused, "the eleventh, at node {name}");
        assert_eq!(bench.admit(node(name), ip, held, held).await, AdmitReply::Granted, "what it has fits");
    }
}

// Inv. CAP
pub(crate) async fn racing_admissions_stop_at_the_cap(bench: Bench) {
    let nodes: Vec<_> = (0..50).map(node).collect();
    bench.enter(&nodes).await;
    let bench = std::sync::Arc::new(bench);
    let mut racers = JoinSet::new();
    for node in nodes {
        let bench = bench.clone();
        racers.spawn(async move { bench.admit(node, address(1), 0, 1).await });
    }
    let replies = racers.join_all().await;
    let granted = replies.iter().filter(|reply| **reply == AdmitReply::Granted).count();
    assert_eq!(granted, 10, "{replies:?}");
    assert!(replies.iter().all(|reply| matches!(reply, AdmitReply::Granted | AdmitReply::Refused { counted: 0 })));
}

pub(crate) async fn addresses_are_counted_apart(bench: Bench) {
    bench.enter(&[node(1), node(2)]).await;
    assert_eq!(bench.admit(node(1), address(1), 0, 10).await, AdmitReply::Granted);
    assert_eq!(bench.admit(node(2), address(2), 0, 10).await, AdmitReply::Granted);
    assert_eq!(bench.admit(node(2), address(1), 0, 1).await, AdmitReply::Refused { counted: 0 });
}

pub(crate) async fn a_dead_node_counts_no_more(bench: Bench) {
    let ip = address(1);
    bench.enter(&[node(1)]).await;
    bench.beat(node(2), Join::Enter, SHORT).await;
    // It may have died already where the machine is slow: then there is nothing to wait for, and no harm.
    bench.admit(node(2), ip, 0, 10).await;
    eventually("the dead node's sockets are forgotten", || async {
        (bench.admit(node(1), ip, 0, 10).await == AdmitReply::Granted).then_some(())
    })
    .await;
    assert_eq!(bench.admit(node(2), ip, 10, 10).await, AdmitReply::Gone);
}

// Inv. CAP
pub(crate) async fn readmission_takes_what_fits(bench: Bench) {
    let ip = address(1);
    bench.enter(&[node(1), node(2)]).await;
    assert_eq!(bench.admit(node(1), ip, 0, 6).await, AdmitReply::Granted);
    // Node 2 was away with seven sockets and comes back: three of them must go.
    assert_eq!(bench.admit(node(2), ip, 7, 7).await, AdmitReply::Refused { counted: 4 });
    assert_eq!(bench.admit(node(1), ip, 6, 7).await, AdmitReply::Refused { counted: 6 }, "the four are counted");
    assert_eq!(bench.admit(node(2), ip, 4, 4).await, AdmitReply::Granted);
    bench.a.set_counts(node(1), &[(ip, 3)]).await.expect("an answer");
    assert_eq!(bench.admit(node(2), ip, 4, 9).await, AdmitReply::Refused { counted: 4 }, "no more than it held");
    assert_eq!(bench.admit(node(2), ip, 4, 7).await, AdmitReply::Granted);
}

// Inv. CAP
pub(crate) async fn many_addresses_are_admitted_again_together(bench: Bench) {
    let own = |name: u8| AddressHash([name, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    let held: Vec<_> = (0..READMIT_ADDRESSES_MAX).map(|n| (own(u8::try_from(n).expect("few")), 7)).collect();
    bench.enter(&[node(1)]).await;
    let gone = bench.a.readmit(node(2), 10, &held).await.expect("an answer");
    assert_eq!(gone, vec![Ok(AdmitReply::Gone); held.len()]);
    bench.enter(&[node(2)]).await;
    // Another one holds six of the third address, ten of the fifth.
    assert_eq!(bench.admit(node(1), own(2), 0, 6).await, AdmitReply::Granted, "nothing was counted");
    assert_eq!(bench.admit(node(1), own(4), 0, 10).await, AdmitReply::Granted);
    let mut expected = vec![Ok(AdmitReply::Granted); held.len()];
    expected[2] = Ok(AdmitReply::Refused { counted: 4 });
    expected[4] = Ok(AdmitReply::Refused { counted: 0 });
    for _ in 0..2 {
        assert_eq!(bench.a.readmit(node(2), 10, &held).await.expect("an answer"), expected);
    }
    for (name, free) in [(0, 3), (2, 6), (4, 10), (127, 3)] {
        let full = bench.admit(node(1), own(name), free, free + 1).await;
        assert_eq!(full, AdmitReply::Refused { counted: free }, "address {name}");
    }
    assert_eq!(bench.a.readmit(node(2), 10, &[]).await, Ok(Vec::new()));
}

// Inv. CAP: a lease ran out, and what it covered was given to somebody else; or was not.
pub(crate) async fn who_was_taken_for_dead_is_asked_what_still_fits(bench: Bench) {
    let (lost, kept) = (address(1), address(2));
    bench.enter(&[node(1)]).await;
    bench.beat(node(2), Join::Enter, SHORT).await;
    bench.a.set_counts(node(2), &[(lost, 7), (kept, 7)]).await.expect("an answer");
    eventually("the membership ends", || async {
        (bench.beat(node(1), Join::Stay, LONG).await.members == 1).then_some(())
    })
    .await;
    assert_eq!(bench.admit(node(1), lost, 0, 8).await, AdmitReply::Granted);
    bench.enter(&[node(2)]).await;
    let again = bench.a.readmit(node(2), 10, &[(lost, 7), (kept, 7)]).await.expect("an answer");
    assert_eq!(again, [Ok(AdmitReply::Refused { counted: 2 }), Ok(AdmitReply::Granted)]);
    assert_eq!(bench.admit(node(1), lost, 8, 9).await, AdmitReply::Refused { counted: 8 });
    assert_eq!(bench.admit(node(1), kept, 0, 4).await, AdmitReply::Refused { counted: 0 });
    assert_eq!(bench.admit(node(1), kept, 0, 3).await, AdmitReply::Granted);
}

// Inv. CAP: while one node is over the cap for a moment, another one's question must not cut what that one holds.
pub(crate) async fn a_refusal_hides_no_socket_that_stays(bench: Bench) {
    let ip = address(1);
    bench.enter(&[node(1), node(2)]).await;
    bench.a.set_counts(node(1), &[(ip, 10)]).await.expect("an answer");
    bench.a.set_counts(node(2), &[(ip, 4)]).await.expect("an answer");
    assert_eq!(bench.admit(node(2), ip, 4, 5).await, AdmitReply::Refused { counted: 4 });
    bench.a.set_counts(node(1), &[(ip, 6)]).await.expect("an answer");
    assert_eq!(bench.admit(node(1), ip, 6, 7).await, AdmitReply::Refused { counted: 6 }, "the four are counted");
}

pub(crate) async fn counts_are_stated_not_added(bench: Bench) {
    bench.enter(&[node(1), node(2)]).await;
    let counts: Vec<_> = (0..100).map(|name| (address(name), 4)).collect();
    for _ in 0..3 {
        bench.a.set_counts(node(1), &counts).await.expect("an answer");
    }
    for name in [0, 50, 99] {
        assert_eq!(bench.admit(node(2), address(name), 0, 6).await, AdmitReply::Granted);
        assert_eq!(bench.admit(node(2), address(name), 6, 7).await, AdmitReply::Refused { counted: 6 });
    }
    bench.a.set_counts(node(1), &[]).await.expect("nothing to say is fine");
}

pub(crate) async fn zero_forgets(bench: Bench) {
    let (ip, other) = (address(1), address(2));
    bench.enter(&[node(1), node(2)]).await;
    assert_eq!(bench.admit(node(1), ip, 0, 10).await, AdmitReply::Granted);
    for _ in 0..2 {
        bench.b.set_counts(node(1), &[(other, 0), (ip, 0)]).await.expect("an answer");
    }
    assert_eq!(bench.admit(node(2), ip, 0, 10).await, AdmitReply::Granted);
}

pub(crate) async fn who_is_no_member_is_not_admitted(bench: Bench) {
    let ip = address(1);
    bench.enter(&[node(1)]).await;
    assert_eq!(bench.admit(node(2), ip, 0, 1).await, AdmitReply::Gone);
    assert_eq!(bench.admit(node(2), ip, 3, 3).await, AdmitReply::Gone);
    assert_eq!(bench.admit(node(1), ip, 0, 10).await, AdmitReply::Granted, "nothing of it was counted");
}

pub(crate) async fn the_secret_is_one_and_stays(bench: Bench) {
    let mut racers = JoinSet::new();
    for i in 1..=10_u8 {
        let handle = if i % 2 == 0 { bench.a.clone() } else { bench.b.clone() };
        // A node that comes from another data set offers what it goes by.
        let held = (i % 3 == 0).then_some([i; 32]);
        racers.spawn(async move { handle.secret(held).await.expect("an answer") });
    }
    let secrets = racers.join_all().await;
    assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    assert_eq!(bench.a.secret(Some([77; 32])).await.expect("an answer"), secrets[0], "too late");
}

pub(crate) async fn a_lost_secret_is_replaced_by_the_one_that_a_node_holds(bench: Bench) {
    assert_eq!(bench.a.secret(Some([7; 32])).await.expect("an answer"), [7; 32]);
    assert_eq!(bench.b.secret(None).await.expect("an answer"), [7; 32]);
}
