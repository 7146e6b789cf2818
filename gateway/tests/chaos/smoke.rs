//! One short run for each topology, the same each time. One that proves nothing is no green test: it is made again, as in
//! the lab.

use std::time::Duration;

use crate::lab::{alone, proven};
use crate::plan::{Breakage, Fault, Plan, Topology, Which};
use crate::report;
use crate::run::{Conditions, Outcome, run};

fn check(topology: Topology, faults: [Fault; 3]) {
    let faults = faults.map(|fault| (Duration::from_millis(500), fault)).to_vec();
    let plan = Plan { seed: 1, topology, interval: Duration::from_secs(1), gateways: 3, faults };
    let make = || {
        let plan = plan.clone();
        alone(async move || run(plan, Conditions::default()).await)
    };
    proven(make, |outcome: &Outcome| &outcome.verdict, report::table).unwrap_or_else(|what| panic!("{what}"));
}

const SHORT: Duration = Duration::from_millis(1_500);

// Inv. GAP, Inv. ORDER: what a machine's loss of power takes with it is announced, and nothing comes twice.
#[test]
fn a_single_redis() {
    let ahead = Some(Duration::from_secs(60));
    check(
        Topology::Single,
        [
            Fault::PowerCut { lost: Duration::from_millis(300), away: Duration::from_millis(200), ahead },
            Fault::GatewayKilled { which: Which::Ticker, away: Duration::ZERO },
            Fault::RedisFrozen { away: SHORT },
        ],
    );
}

// Inv. GAP: a replica that lagged is promoted.
#[test]
fn a_primary_and_its_sentinels() {
    let lag = Some(Duration::from_millis(200));
    check(
        Topology::Sentinel,
        [
            Fault::PrimaryKilled { lag, ahead: Some(Duration::from_secs(60)) },
            Fault::GatewayFrozen { which: Which::Ticker, away: SHORT },
            Fault::GatewayKilled { which: Which::Other, away: Duration::ZERO },
        ],
    );
}

// Inv. SLOT, Inv. FENCE: through an election and a migration.
#[test]
fn a_cluster() {
    check(
        Topology::Cluster,
        [
            Fault::SlotMigrated,
            Fault::PrimaryKilled { lag: None, ahead: None },
            Fault::GatewayFrozen { which: Which::Other, away: SHORT },
        ],
    );
}

// Inv. ORDER: a publish whose answer was lost is done once.
#[test]
fn a_redis_behind_a_bad_path() {
    let broken = |breakage, whose| Fault::PathBroken { breakage, whose, lasts: SHORT };
    check(
        Topology::Proxied,
        [
            broken(Breakage::ResetMidReply, None),
            broken(Breakage::BlackHole, Some(Which::Ticker)),
            Fault::GatewayKilled { which: Which::Other, away: Duration::ZERO },
        ],
    );
}
