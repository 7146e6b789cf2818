//! The cap per address under everything that can happen to three nodes and what lies between them: random steps,
//! thousands in each run, against an oracle that knows who really holds sockets.
//!
//! The nodes' [`Admission`](gateway::admission::Admission) is the real one, on the embedded backplane and on a real
//! Redis; time is paused and everything happens in the order of the steps, so a failure shrinks to a few of them and
//! can be played again. Real processes are tormented in `cap_storm.rs`, where nothing can be played again.

mod node;
mod oracle;
mod truth;
mod wire;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use self::node::{CLIENTS, Link};
use self::truth::{Memory, Redis, Truth};
use self::world::{NODES, World};

/// The most steps of one sequence.
const STEPS_MAX: usize = 80;

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Step {
    Connect {
        node: usize,
        client: usize,
        host: u16,
    },
    /// A handshake is given up while it is being decided.
    Abandon {
        node: usize,
        which: usize,
    },
    Disconnect {
        node: usize,
        which: usize,
    },
    Pass {
        ms: u64,
    },
    Link {
        node: usize,
        link: Link,
    },
    /// The same for all: the backplane is away, or back.
    LinkAll {
        link: Link,
    },
    /// A node's connection breaks; what was sent may arrive later.
    Cut {
        node: usize,
    },
    /// One call is carried out, where that is done by hand.
    Carry {
        node: usize,
    },
    /// One answer arrives.
    Answer {
        node: usize,
    },
    /// A call of a connection that is gone arrives.
    Late {
        which: usize,
    },
    Pause {
        node: usize,
    },
    Resume {
        node: usize,
    },
    /// A node is killed and another started.
    Kill {
        node: usize,
    },
    /// What the backplane knows now is on its disk.
    Save,
    /// The backplane is restarted, and knows what was on its disk.
    Restart,
    /// It is restarted, and its disk is gone.
    LoseData,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 0..NODES;
    let link = || {
        prop_oneof![
            4 => Just(Link::Up),
            2 => Just(Link::ByHand),
            1 => Just(Link::Mute),
            1 => Just(Link::Dead),
            1 => Just(Link::Down),
        ]
    };
    let step = prop_oneof![
        20 => (node(), 0..CLIENTS, any::<u16>()).prop_map(|(node, client, host)| Step::Connect { node, client, host }),
        2 => (node(), 0..4_usize).prop_map(|(node, which)| Step::Abandon { node, which }),
        8 => (node(), 0..6_usize).prop_map(|(node, which)| Step::Disconnect { node, which }),
        6 => prop_oneof![4 => 1..600_u64, 2 => 600..4000_u64, 1 => 4000..9000_u64].prop_map(|ms| Step::Pass { ms }),
        4 => (node(), link()).prop_map(|(node, link)| Step::Link { node, link }),
        2 => link().prop_map(|link| Step::LinkAll { link }),
        2 => node().prop_map(|node| Step::Cut { node }),
        3 => node().prop_map(|node| Step::Carry { node }),
        3 => node().prop_map(|node| Step::Answer { node }),
        2 => (0..4_usize).prop_map(|which| Step::Late { which }),
        2 => node().prop_map(|node| Step::Pause { node }),
        3 => node().prop_map(|node| Step::Resume { node }),
        1 => node().prop_map(|node| Step::Kill { node }),
        1 => Just(Step::Save),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseData),
    ];
    proptest::collection::vec(step, 0..STEPS_MAX)
}

/// Plays the steps on paused time, and heals at the end.
fn play<T: Truth>(truth: &T, steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    // Unconstrained: everything is polled by one task, which must not be told to take turns with others.
    runtime.expect("a runtime").block_on(tokio::task::unconstrained(async {
        let mut world = World::new(truth).await;
        for step in steps {
            take(&mut world, *step).await;
            world.settle().await;
            world.check().await;
        }
        world.heal().await;
    }));
}

async fn take<T: Truth>(world: &mut World<'_, T>, step: Step) {
    match step {
        Step::Connect { node, client, host } => world.connect(node, client, host),
        Step::Abandon { node, which } => world.abandon(node, which),
        Step::Disconnect { node, which } => world.disconnect(node, which),
        Step::Pass { ms } => world.pass(Duration::from_millis(ms)).await,
        Step::Link { node, link } => world.link(node, link),
        Step::LinkAll { link } => (0..NODES).for_each(|node| world.link(node, link)),
        Step::Cut { node } => world.cut(node),
        Step::Carry { node } => world.carry(node).await,
        Step::Answer { node } => world.answer(node),
        Step::Late { which } => world.arrive_late(which).await,
        Step::Pause { node } => world.pause(node),
        Step::Resume { node } => world.resume(node),
        Step::Kill { node } => world.kill(node),
        Step::Save => world.save().await,
        Step::Restart => world.restart_backplane().await,
        Step::LoseData => world.lose_data().await,
    }
}

/// Random sequences, `cases` of them; a failure is shrunk and printed.
fn storm<T: Truth>(truth: &T, cases: u32) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&steps(), |steps| {
        play(truth, &steps);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

// Inv. CAP
#[test]
fn random_steps_on_the_embedded_backplane() {
    storm(&Memory::new(), 200);
}

// Inv. CAP
#[test]
fn random_steps_on_redis() {
    storm(&Redis::start(), 60);
}

/// What once went wrong, or what random steps would not meet in years.
fn check(steps: &[Step]) {
    play(&Memory::new(), steps);
    play(&Redis::start(), steps);
}

const FIRST: Step = Step::Connect { node: 0, client: 0, host: 0 };
const SECOND: Step = Step::Connect { node: 1, client: 0, host: 0 };

// Inv. CAP: what a node gave up arrives all the same, on a connection that it has given up as well.
#[test]
fn a_call_that_was_given_up_and_arrives_is_made_good() {
    let by_hand = Step::Link { node: 0, link: Link::ByHand };
    let up = Step::Link { node: 0, link: Link::Up };
    let cut = Step::Cut { node: 0 };
    check(&[FIRST, by_hand, Step::Disconnect { node: 0, which: 0 }, cut, up, FIRST, Step::Late { which: 0 }]);
    // Nor does a place stay taken by a handshake that was given up.
    check(&[
        by_hand,
        FIRST,
        Step::Abandon { node: 0, which: 0 },
        cut,
        up,
        Step::Pass { ms: 500 },
        Step::Late { which: 0 },
    ]);
}

// Inv. CAP: a Redis that writes its log every second comes back without the last one, under the same name.
#[test]
fn what_a_restart_has_lost_is_told_again() {
    check(&[FIRST, Step::Save, FIRST, Step::Restart, SECOND, SECOND]);
    // Nor is a place taken again that was given back.
    check(&[FIRST, Step::Save, Step::Disconnect { node: 0, which: 0 }, Step::Restart]);
}

// Inv. CAP: a node that had let too many in alone told that number once more beside its answer of how many may stay;
// another one's handshake was refused for it and lost the count of what it held; and the first let one in in its place.
#[test]
fn a_surplus_that_is_about_to_go_hides_nobody_elses_sockets() {
    let connect = |node, client| Step::Connect { node, client, host: 0 };
    check(&[
        connect(0, 0),
        connect(1, 1),
        Step::LinkAll { link: Link::ByHand },
        connect(0, 1),
        Step::Disconnect { node: 0, which: 0 },
        connect(0, 0),
        connect(0, 1),
        connect(1, 0),
        connect(0, 1),
        Step::Pass { ms: 250 },
        Step::LinkAll { link: Link::Up },
        connect(1, 1),
        connect(0, 1),
    ]);
}

// Inv. CAP: a node was taken for dead, others were let in in the place of its sockets, and then the backplane was away
// until nobody's lease was left: all got another, the dead one too, and never learned that it had been away.
#[test]
fn who_was_taken_for_dead_is_not_revived_with_the_others() {
    check(&[
        FIRST,
        FIRST,
        FIRST,
        Step::Pause { node: 0 },
        Step::Link { node: 2, link: Link::Down },
        Step::Pass { ms: 500 },
        // Its beats come at other times than those of the first.
        Step::Kill { node: 1 },
        Step::Pass { ms: 5_750 },
        SECOND,
        SECOND,
        SECOND,
        Step::LinkAll { link: Link::Dead },
        Step::Pass { ms: 7_000 },
        Step::Resume { node: 0 },
        Step::LinkAll { link: Link::Up },
        Step::Pass { ms: 2_000 },
    ]);
}

// Inv. CAP
#[test]
#[ignore = "minutes"]
fn acceptance_many_random_steps() {
    storm(&Memory::new(), 10_000);
    storm(&Redis::start(), 500);
}
