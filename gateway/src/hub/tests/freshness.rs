//! Whether the number is still the truth is judged where it is told. No relay runs here: nobody but the clock can have
//! noticed, as after a stop of the process.

use super::*;

const FRESH_FOR: Duration = Duration::from_secs(11);

/// Time passes in which nobody does anything.
async fn stop_for(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

fn is_flagged(text: &str) -> bool {
    text.contains(r#","stale":true}"#)
}

impl Rig {
    /// The state of pass `n`, which is fresh for [`FRESH_FOR`] from now on.
    fn fresh(&self, n: u64) -> State {
        State { fresh_until: self.hub.clock.now() + FRESH_FOR, ..state(n) }
    }
}

#[tokio::test]
async fn who_joins_gets_the_number_flagged_as_soon_as_its_time_is_over() {
    let rig = Rig::new(HubSettings::default()).await;
    rig.hub.prime(rig.fresh(1));
    for ids in [Ids::Without, Ids::With] {
        let mut client = rig.open(ids, b"", None).await;
        assert!(!is_flagged(&client.text().await));
    }
    stop_for(FRESH_FOR).await;
    for ids in [Ids::Without, Ids::With] {
        let mut client = rig.open(ids, b"", None).await;
        let init = client.text().await;
        assert!(init.starts_with(r#"{"type":"init""#) && is_flagged(&init), "{init}");
    }
    assert_eq!(rig.hub.state().map(|shown| shown.freshness), Some(Freshness::Stale));
    rig.emptied().await;
}

// The process was stopped when the relay had put the number into words, and the broadcaster had not yet said it.
#[tokio::test]
async fn an_update_that_waited_until_it_was_stale_is_flagged() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut plain = rig.join(Ids::Without).await;
    let mut with_ids = rig.join(Ids::With).await;
    let waiting = Broadcast { state: Some(rig.fresh(7)), ..update(7) };
    stop_for(FRESH_FOR).await;
    rig.pass(&[waiting]);
    assert_eq!(plain.text().await, encode_update(state(7).snapshot, Freshness::Stale));
    let shown = with_ids.text().await;
    assert!(is_flagged(&shown), "{shown}");
    assert_eq!(id_of(&shown), Some(7), "it has its place in the stream");
    drop((plain, with_ids));
    rig.emptied().await;
}
