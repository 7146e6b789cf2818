//! One table: what the keys of the election hold, what is asked, what is answered, and what the keys hold then.
//!
//! `gateway/tests/it/election_cases.rs` runs it over the model's Redis half, over the scripts on a real Redis, and over
//! the embedded backplane. A rule that is changed in one of them and not in the others is noticed.
//!
//! All times are relative to the moment of the call, and half a minute or more away from any edge, because a real
//! Redis's clock goes on between planting and asking.

use gateway::backplane::{Lease, Millis};
use shared::ids::{Epoch, NodeId, Slot};

use super::redis::{Published, RULES, Redis, Ticker, Verdict};

/// How long a claim holds here, ms.
pub(crate) const LEASE_MS: Millis = 60_000;
const HALF: i64 = 30_000;

/// Two nodes.
pub(crate) const A: u64 = 1;
pub(crate) const B: u64 = 2;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Who holds the lease, and how many ms of it are left.
    pub(crate) held: Option<(u64, i64)>,
    /// The slot of the last snapshot, counted from the present one.
    pub(crate) last: Option<i64>,
    pub(crate) call: Call,
    pub(crate) says: Says,
    /// Who holds the lease then, and until when.
    pub(crate) then: Option<(u64, Until)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Claim(u64),
    /// Under which reign, and for which slot, counted from the present one.
    Tick(u64, Reign, i64),
    Release(u64, Reign),
}

/// The reign that a node names, beside the one that is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reign {
    Older,
    Stored,
    Newer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    /// The lease is the asker's, in the reign that is stored…
    Prolonged,
    /// …or in a new one: later than all that were given or published under, and no earlier than now.
    Taken,
    /// Another has it.
    Refused,
    Published,
    /// Published under a new reign.
    PublishedAnew,
    AlreadyDone,
    WrongSlot,
    Fenced,
    /// A release answers nothing that a node would need.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    AsBefore,
    /// A whole lease from now.
    Whole,
    Over,
}

use Call::{Claim, Release, Tick};
use Reign::{Newer, Older, Stored};
use Until::{AsBefore, Over, Whole};

const fn case(
    name: &'static str,
    (held, last): (Option<(u64, i64)>, Option<i64>),
    call: Call,
    says: Says,
    then: Option<(u64, Until)>,
) -> Case {
    Case { name, held, last, call, says, then }
}

const HELD: Option<(u64, i64)> = Some((A, HALF));
const RAN_OUT: Option<(u64, i64)> = Some((A, -HALF));
/// Longer than any lease is given: the clock jumped back.
const FAR_AHEAD: Option<(u64, i64)> = Some((A, 10 * HALF));

pub(crate) const CASES: &[Case] = &[
    case("the first claim", (None, None), Claim(A), Says::Taken, Some((A, Whole))),
    case("a claim of what others hold", (HELD, None), Claim(B), Says::Refused, Some((A, AsBefore))),
    case("a renewal", (HELD, Some(0)), Claim(A), Says::Prolonged, Some((A, Whole))),
    case("a claim of what ran out", (RAN_OUT, Some(-1)), Claim(B), Says::Taken, Some((B, Whole))),
    case("a claim at the lease's end", (Some((A, 0)), None), Claim(B), Says::Taken, Some((B, Whole))),
    case("a renewal that comes too late", (RAN_OUT, Some(0)), Claim(A), Says::Taken, Some((A, Whole))),
    case("a claim after a clock jumped back", (FAR_AHEAD, None), Claim(B), Says::Taken, Some((B, Whole))),
    case("a renewal after a clock jumped back", (FAR_AHEAD, None), Claim(A), Says::Prolonged, Some((A, Whole))),
    case("a claim below a published epoch", (None, Some(3)), Claim(A), Says::Taken, Some((A, Whole))),
    case("a release", (HELD, None), Release(A, Stored), Says::Nothing, Some((A, Over))),
    case("a release of an older reign", (HELD, None), Release(A, Older), Says::Nothing, Some((A, AsBefore))),
    case("a release by another", (HELD, None), Release(B, Stored), Says::Nothing, Some((A, AsBefore))),
    case("a release where nothing is known", (None, None), Release(A, Stored), Says::Nothing, None),
    case("a tick", (HELD, Some(-1)), Tick(A, Stored, 0), Says::Published, Some((A, AsBefore))),
    case("the first tick", (HELD, None), Tick(A, Stored, 0), Says::Published, Some((A, AsBefore))),
    case("a second tick", (HELD, Some(0)), Tick(A, Stored, 0), Says::AlreadyDone, Some((A, AsBefore))),
    case("a tick for the past", (HELD, None), Tick(A, Stored, -1), Says::WrongSlot, Some((A, AsBefore))),
    case("a tick for the future", (HELD, None), Tick(A, Stored, 1), Says::WrongSlot, Some((A, AsBefore))),
    case("a tick without a lease", (None, None), Tick(A, Stored, 0), Says::Fenced, None),
    case("a tick by another", (HELD, None), Tick(B, Stored, 0), Says::Fenced, Some((A, AsBefore))),
    case("a tick of an older reign", (HELD, None), Tick(A, Older, 0), Says::Fenced, Some((A, AsBefore))),
    case("a tick of a reign to come", (HELD, None), Tick(A, Newer, 0), Says::Fenced, Some((A, AsBefore))),
    case("a tick after the lease", (RAN_OUT, None), Tick(A, Stored, 0), Says::Fenced, Some((A, AsBefore))),
    case("a tick at the lease's end", (Some((A, 0)), None), Tick(A, Stored, 0), Says::Fenced, Some((A, AsBefore))),
    case("fenced, whatever the slot", (RAN_OUT, Some(0)), Tick(A, Stored, 1), Says::Fenced, Some((A, AsBefore))),
    case("a clock set back a little", (HELD, Some(2)), Tick(A, Stored, 0), Says::AlreadyDone, Some((A, AsBefore))),
    case("a clock set back far", (HELD, Some(3)), Tick(A, Stored, 0), Says::PublishedAnew, Some((A, AsBefore))),
];

impl Case {
    /// The keys before the call, which comes at `now`.
    pub(crate) fn keys(&self, now: Millis, interval: Millis) -> Redis {
        let present = Slot::containing(now, interval);
        Redis {
            ticker: self
                .held
                .map(|(node, left)| Ticker { lease: lease(node, now - LEASE_MS), until: shift(now, left) }),
            last: self.last.map(|slots| {
                let slot = Slot(shift(present.0, slots * i64::try_from(interval).expect("hours")));
                Published { slot, epoch: Epoch(slot.0 - 1) }
            }),
        }
    }

    /// The lease that the call names, where `stored` is that in the keys.
    pub(crate) fn lease(&self, stored: Option<Lease>) -> Lease {
        let (Claim(node) | Tick(node, ..) | Release(node, _)) = self.call;
        let epoch = stored.map_or(7, |lease| lease.epoch.0);
        let reign = match self.call {
            Claim(_) => Stored,
            Tick(_, reign, _) | Release(_, reign) => reign,
        };
        match reign {
            Older => lease(node, epoch - 1),
            Stored => lease(node, epoch),
            Newer => lease(node, epoch + 1),
        }
    }

    /// The slot that a tick names.
    pub(crate) fn slot(&self, now: Millis, interval: Millis) -> Slot {
        let Tick(_, _, slots) = self.call else { return Slot(0) };
        Slot(shift(Slot::containing(now, interval).0, slots * i64::try_from(interval).expect("hours")))
    }

    /// Asks the model's Redis half, and compares answer and keys with the row.
    pub(crate) fn check_model(&self) {
        let interval = 3_600_000;
        let now = 1_700_000_000_000 / interval * interval + interval / 2;
        let before = self.keys(now, interval);
        let (stored, slot, mut redis) = (before.ticker.map(|held| held.lease), self.slot(now, interval), before);
        let lease = self.lease(stored);
        let says = match self.call {
            Claim(_) => match redis.claim(RULES, lease.node, LEASE_MS, now).lease {
                None => Says::Refused,
                got if got == stored => Says::Prolonged,
                Some(_) => Says::Taken,
            },
            Release(..) => {
                redis.release(RULES, lease);
                Says::Nothing
            }
            Tick(..) => match redis.tick(RULES, lease, slot, interval, now) {
                Verdict::Published(reign) if reign == lease => Says::Published,
                Verdict::Published(_) => Says::PublishedAnew,
                Verdict::AlreadyDone => Says::AlreadyDone,
                Verdict::WrongSlot => Says::WrongSlot,
                Verdict::Fenced => Says::Fenced,
            },
        };
        assert_eq!(says, self.says, "{}", self.name);
        self.check_keys(before, redis, slot, now);
    }

    /// Compares the keys after the call, which came at `now`, with the row.
    pub(crate) fn check_keys(&self, before: Redis, after: Redis, slot: Slot, now: Millis) {
        let name = self.name;
        let holder = after.ticker.map(|held| {
            let until = match (held.until, before.ticker) {
                (0, _) => Over,
                (until, _) if until == now + LEASE_MS => Whole,
                (until, Some(was)) if until == was.until => AsBefore,
                (until, _) => panic!("{name}: a lease until {until}, now is {now}"),
            };
            (held.lease.node, until)
        });
        assert_eq!(holder, self.then.map(|(node, until)| (NodeId::from_random(node), until)), "{name}: the lease");
        let (was, is) = (before.ticker.map(|held| held.lease.epoch), after.ticker.map(|held| held.lease.epoch));
        if matches!(self.says, Says::Taken | Says::PublishedAnew) {
            let above = was.max(before.last.map(|last| last.epoch)).max(Some(Epoch(now - 1)));
            assert!(is > above, "{name}: epoch {is:?} is not above {above:?}");
        } else {
            assert_eq!(is, was, "{name}: the epoch");
        }
        let last = match self.says {
            Says::Published | Says::PublishedAnew => is.map(|epoch| Published { slot, epoch }),
            _ => before.last,
        };
        assert_eq!(after.last, last, "{name}: the last snapshot");
    }
}

pub(crate) fn lease(node: u64, epoch: u64) -> Lease {
    Lease { node: NodeId::from_random(node), epoch: Epoch(epoch) }
}

fn shift(time: Millis, by: i64) -> Millis {
    time.checked_add_signed(by).expect("years after 1970")
}
