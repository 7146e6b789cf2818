//! The relay's place in a stream that is not the same any more.

use super::*;

// Inv. GAP: Redis lost its data twice before anything of the new ones was read, and the second time its clock was behind:
// a relay that stayed where it was would wait until that clock has caught up.
#[tokio::test]
async fn two_losses_in_a_row_are_told_from_where_reading_ended_and_reading_goes_on() {
    let mut world = World::new();
    let last = world.event("/a").await;
    let mut relay = world.relay.take().expect("not run yet");
    relay.start().await.expect("answers");

    world.pass(5_000);
    world.backplane.replace(memory(&world.now));
    world.event("/never-read").await;
    relay.check_place().await.expect("answers");
    assert_eq!(world.next().await.text, encode_gap(Some(last), None));

    world.now.store(START - 60_000, Ordering::Relaxed);
    world.backplane.replace(memory(&world.now));
    world.event("/perhaps-shown-long-ago").await;
    relay.check_place().await.expect("answers");
    assert_eq!(world.next().await.text, encode_gap(Some(last), None));
    world.pass(1);
    let next = world.event("/new").await;
    within(relay.read()).await.expect("answers");
    assert_eq!(world.next().await.id, Some(next));
}
