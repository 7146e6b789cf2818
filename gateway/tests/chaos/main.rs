//! The failure lab: real gateways, real clients, real Redis, real faults, and a checker that stands outside.
//!
//! Tests of single failures prove what somebody thought of. The lab draws whole runs from a seed ([`plan`]): three
//! gateways, 66 clients, some 70 events a second, and at least three faults, at the gateways and at Redis, which is run in
//! one of four ways ([`topology`]). What clients saw is gathered ([`evidence`]) and judged by a checker that knows
//! nothing of gateways ([`audit`]). `make chaos` runs fresh seeds, several at a time, since runs mostly wait; `SEED=`
//! replays one. Six short runs are part of every test run: one of each topology, two pauses ([`pauses`]).
//!
//! Invariants of the lab itself: a seed decides what is done; a fault whose effect was not seen from outside is a
//! failure of the run; nothing that was started outlives it.

mod audit;
mod churn;
mod evidence;
mod fleet;
#[cfg(feature = "planted-bugs")]
mod hunt;
mod lab;
mod pauses;
mod plan;
mod prng;
mod producer;
mod proxy;
mod report;
mod run;
mod smoke;
mod stage;
#[path = "../it/support"]
#[expect(dead_code, reason = "shared with the other integration tests")]
mod support {
    pub(crate) mod client;
    pub(crate) mod frame;
    pub(crate) mod gateway;
    pub(crate) mod http;
    pub(crate) mod ports;
    pub(crate) mod process;
    pub(crate) mod redis_cluster;
    pub(crate) mod redis_server;
    pub(crate) mod resp;
    pub(crate) mod sentinel;
    pub(crate) mod wait;
}
mod topology;
mod viewer;
