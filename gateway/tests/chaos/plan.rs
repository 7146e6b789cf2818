//! What a run will do, decided by its seed alone.
//!
//! The topology, the interval, who reads how, which faults strike when and how hard: all of it is drawn here, before
//! anything is started, so that a seed that found something finds it again. (What the machine's scheduler does in
//! between is not in our hands; where that decides, run the seed a few times.)

use std::time::Duration;

use crate::prng::Prng;

/// How Redis is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Topology {
    /// One server that keeps its data as Redis advises.
    Single,
    /// A primary, two replicas, three Sentinels.
    Sentinel,
    /// Three primaries with a replica each.
    Cluster,
    /// One server; the way from each gateway to it leads through a proxy that can be broken.
    Proxied,
}

impl Topology {
    pub(crate) const ALL: [Self; 4] = [Self::Single, Self::Sentinel, Self::Cluster, Self::Proxied];

    /// Its name in reports, and in `TOPOLOGY=`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
            Self::Proxied => "proxied",
        }
    }
}

/// Which gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one that ticks.
    Ticker,
    /// One that does not.
    Other,
}

/// How the way to Redis is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breakage {
    /// Everything comes this much later.
    Delay(Duration),
    /// Connections are reset, and new ones too.
    Cut,
    /// Nothing passes, nothing is closed; afterwards all of it arrives, late.
    BlackHole,
    /// Requests pass and answers do not, for ever: the other end is gone, and nobody was told. New connections work.
    HalfOpen,
    /// Each answer breaks off in the middle, and its connection with it.
    ResetMidReply,
}

/// What is done to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9 of a gateway, then another is started.
    GatewayKilled { which: Which, away: Duration },
    /// SIGSTOP of a gateway.
    GatewayFrozen { which: Which, away: Duration },
    /// kill -9 of Redis; its data survive.
    RedisKilled { away: Duration },
    /// SIGSTOP of Redis.
    RedisFrozen { away: Duration },
    /// FLUSHALL. Before it, the stream's clock may be put ahead, so that later entries lie below the old ones.
    RedisFlushed { ahead: Option<Duration> },
    /// Redis is replaced by an empty one at the same address.
    RedisEmptied { away: Duration, ahead: Option<Duration> },
    /// The machine loses power: what was written in the last moments is gone, although it was acknowledged.
    PowerCut { lost: Duration, away: Duration, ahead: Option<Duration> },
    /// The machine that loses power had the ticker too, and that right after a snapshot: its slot has not ended when
    /// another gateway ticks, and Redis knows nothing of it.
    PowerCutAfterTick,
    /// The primary dies; its replicas have not got what was written in the last moments.
    PrimaryKilled { lag: Option<Duration>, ahead: Option<Duration> },
    /// The primary stops, is deposed, and wakes up believing that it still is the primary.
    PrimaryFrozen { away: Duration },
    /// The slot of all keys moves to another primary.
    SlotMigrated,
    /// The way to Redis breaks, for all gateways or for one.
    PathBroken { breakage: Breakage, whose: Option<Which>, lasts: Duration },
}

impl Fault {
    /// Whether Redis may lose what it has acknowledged.
    pub(crate) fn loses(&self) -> bool {
        match self {
            Self::GatewayKilled { .. } | Self::GatewayFrozen { .. } | Self::PathBroken { .. } => false,
            // Who is stopped goes on with all that it had.
            Self::RedisFrozen { .. } | Self::SlotMigrated => false,
            // With `appendfsync everysec` a write waits while the disk is busy.
            Self::RedisKilled { .. } => true,
            Self::RedisFlushed { .. } | Self::RedisEmptied { .. } => true,
            Self::PowerCut { .. } | Self::PowerCutAfterTick => true,
            Self::PrimaryKilled { .. } | Self::PrimaryFrozen { .. } => true,
        }
    }

    /// Its kind, for the summary.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::GatewayKilled { which: Which::Ticker, .. } => "ticker kill -9",
            Self::GatewayKilled { which: Which::Other, .. } => "gateway kill -9",
            Self::GatewayFrozen { which: Which::Ticker, .. } => "ticker SIGSTOP",
            Self::GatewayFrozen { which: Which::Other, .. } => "gateway SIGSTOP",
            Self::RedisKilled { .. } => "redis kill -9",
            Self::RedisFrozen { .. } => "redis SIGSTOP",
            Self::RedisFlushed { .. } => "FLUSHALL",
            Self::RedisEmptied { .. } => "redis emptied",
            Self::PowerCut { .. } => "power cut",
            Self::PowerCutAfterTick => "power cut with ticker",
            Self::PrimaryKilled { .. } => "primary kill -9",
            Self::PrimaryFrozen { .. } => "primary SIGSTOP",
            Self::SlotMigrated => "slot migrated",
            Self::PathBroken { breakage, .. } => match breakage {
                Breakage::Delay(_) => "path delayed",
                Breakage::Cut => "path cut",
                Breakage::BlackHole => "path black hole",
                Breakage::HalfOpen => "path half-open",
                Breakage::ResetMidReply => "path reset mid-reply",
            },
        }
    }
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What it is drawn from.
    pub(crate) seed: u64,
    /// How Redis is run.
    pub(crate) topology: Topology,
    /// Length of a slot.
    pub(crate) interval: Duration,
    /// Gateways.
    pub(crate) gateways: usize,
    /// What is done, one after the other; each with a pause before it, so that it strikes anywhere in a slot.
    pub(crate) faults: Vec<(Duration, Fault)>,
}

/// A ticker that dies is replaced within its lease of 3 s and a poll; a slot must be longer for two to tick it.
const TICKER_REPLACED_WITHIN: Duration = Duration::from_secs(5);

/// Viewers of a run.
pub(crate) const VIEWERS: usize = 66;
/// So many of them come from one address, and fill its cap.
pub(crate) const CROWD: usize = 10;

impl Plan {
    /// The run of `seed`; its topology too is decided by that, unless one is asked for.
    pub(crate) fn of(seed: u64, topology: Option<Topology>) -> Self {
        let drawn = usize::try_from(seed % 4).expect("below four");
        let topology = topology.unwrap_or(Topology::ALL[drawn]);
        let mut prng = Prng::of(seed);
        let mut interval = Duration::from_secs(prng.pick(&[1, 1, 2]));
        // Of both parts, and in any order.
        let mut parts = vec![true, false, prng.between(0, 1) == 0];
        if prng.between(0, 2) == 0 {
            parts.push(true);
        }
        let place = prng.index(parts.len());
        parts.swap(0, place);
        let mut faults = Vec::new();
        for at_redis in parts {
            let pause = Duration::from_millis(prng.between(300, 2_300));
            let fault = if at_redis { redis_fault(topology, &mut prng) } else { gateway_fault(&mut prng) };
            faults.push((pause, fault));
        }
        if faults.iter().any(|(_, fault)| *fault == Fault::PowerCutAfterTick) {
            interval = TICKER_REPLACED_WITHIN;
        }
        Self { seed, topology, interval, gateways: 3, faults }
    }

    /// Whether the viewer asks for ids, and whether it is slow: a third, and a tenth.
    pub(crate) fn viewer(index: usize) -> (bool, bool) {
        (index.is_multiple_of(3), index % 10 == 9)
    }

    /// Whether the viewer is one of those that share an address. They read promptly: whether they are there must not
    /// depend on how they read.
    pub(crate) fn crowded(index: usize) -> bool {
        let (_, slow) = Self::viewer(index);
        !slow && index < CROWD + 1
    }
}

fn away(prng: &mut Prng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(prng.between(from_ms, to_ms))
}

/// Every second time, the stream's clock is ahead.
fn ahead(prng: &mut Prng) -> Option<Duration> {
    (prng.between(0, 1) == 0).then(|| Duration::from_secs(prng.between(20, 90)))
}

fn gateway_fault(prng: &mut Prng) -> Fault {
    let which = prng.pick(&[Which::Ticker, Which::Other]);
    if prng.between(0, 1) == 0 {
        Fault::GatewayKilled { which, away: away(prng, 0, 3_000) }
    } else {
        // Shorter and longer than the ticker's lease (3 s) and the membership's (6 s).
        Fault::GatewayFrozen { which, away: away(prng, 1_000, 9_000) }
    }
}

fn redis_fault(topology: Topology, prng: &mut Prng) -> Fault {
    match topology {
        Topology::Single => match prng.between(0, 6) {
            0 => Fault::RedisKilled { away: away(prng, 0, 5_000) },
            1 => Fault::RedisFrozen { away: Duration::from_secs(prng.pick(&[3, 3, 10, 10, 30])) },
            2 => Fault::RedisFlushed { ahead: ahead(prng) },
            3 => Fault::RedisEmptied { away: away(prng, 0, 3_000), ahead: ahead(prng) },
            4 | 5 => Fault::PowerCutAfterTick,
            _ => Fault::PowerCut { lost: away(prng, 100, 1_000), away: away(prng, 0, 300), ahead: ahead(prng) },
        },
        Topology::Sentinel => match prng.between(0, 2) {
            0 => Fault::PrimaryFrozen { away: away(prng, 6_000, 12_000) },
            1 => Fault::PrimaryKilled { lag: None, ahead: None },
            _ => Fault::PrimaryKilled { lag: Some(away(prng, 100, 400)), ahead: ahead(prng) },
        },
        Topology::Cluster => match prng.between(0, 2) {
            0 => Fault::PrimaryKilled { lag: None, ahead: None },
            1 => Fault::PrimaryKilled { lag: Some(away(prng, 100, 800)), ahead: ahead(prng) },
            _ => Fault::SlotMigrated,
        },
        Topology::Proxied => {
            let breakage = match prng.between(0, 5) {
                0 => Breakage::Delay(away(prng, 50, 900)),
                1 => Breakage::Cut,
                2 => Breakage::BlackHole,
                3 => Breakage::HalfOpen,
                _ => Breakage::ResetMidReply,
            };
            let whose = prng.pick(&[None, None, Some(Which::Ticker), Some(Which::Other)]);
            Fault::PathBroken { breakage, whose, lasts: away(prng, 1_000, 8_000) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        for seed in 0..200 {
            assert_eq!(Plan::of(seed, None), Plan::of(seed, None));
        }
        let distinct: HashSet<String> = (0..200).map(|seed| format!("{:?}", Plan::of(seed, None).faults)).collect();
        assert!(distinct.len() > 190, "{}", distinct.len());
    }

    #[test]
    fn every_run_has_three_faults_on_both_sides_and_twenty_seeds_have_all_topologies() {
        for seed in 0..200 {
            let plan = Plan::of(seed, None);
            let gateways = plan.faults.iter().filter(|(_, fault)| is_of_gateway(*fault)).count();
            assert!(plan.faults.len() >= 3 && gateways >= 1 && gateways < plan.faults.len(), "{plan:?}");
        }
        let topologies: HashSet<Topology> = (1_000..1_020).map(|seed| Plan::of(seed, None).topology).collect();
        assert_eq!(topologies.len(), 4);
    }

    #[test]
    fn two_hundred_seeds_have_every_kind_of_fault() {
        let kinds: HashSet<&str> =
            (0..200).flat_map(|seed| Plan::of(seed, None).faults).map(|(_, fault)| fault.kind()).collect();
        assert_eq!(kinds.len(), 18, "{kinds:?}");
    }

    #[test]
    fn a_third_has_ids_and_a_tenth_is_slow() {
        let viewers: Vec<(bool, bool)> = (0..VIEWERS).map(Plan::viewer).collect();
        assert_eq!(viewers.iter().filter(|(ids, _)| *ids).count(), VIEWERS / 3);
        assert_eq!(viewers.iter().filter(|(_, slow)| *slow).count(), VIEWERS / 10);
        let both = viewers.iter().filter(|(ids, slow)| *ids && *slow).count();
        assert!(both > 0 && both < VIEWERS / 10, "slow ones of both kinds");
    }

    fn is_of_gateway(fault: Fault) -> bool {
        matches!(fault, Fault::GatewayKilled { .. } | Fault::GatewayFrozen { .. })
    }
}
