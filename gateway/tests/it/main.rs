//! The integration tests: real gateway processes, a real Redis, real sockets.
//!
//! One binary, so that it links once and all tests share one pool of threads. Each test owns what it starts (its own
//! Redis, its own gateways, ports of its own) and ends it on drop, also when it fails; so all of them may run at the
//! same time. Most of them wait for something most of the time: run them with more threads than cores
//! (`--test-threads 8`).
//!
//! No test sleeps and hopes. What should happen is waited for with a deadline; that something does *not* happen is
//! shown by a later event which would have come after it.

mod cap;
mod cap_model;
mod cap_storm;
mod cluster;
mod contract;
mod cursor;
mod election_cases;
mod embedded;
mod failures;
mod garbage;
mod handshake;
mod hostile;
mod ingest;
mod lifecycle;
mod presence;
mod privacy;
mod redis_backplane;
mod redis_forms;
mod resume;
mod slow_readers;
#[expect(dead_code, reason = "some of it is for the failure lab in tests/chaos")]
mod support;
mod upgrade;
