//! Pulsegate: live web analytics over WebSockets, on any number of nodes that share one Redis.
//!
//! docs/ARCHITECTURE.md has the map of this crate and the invariants that its comments name (`Inv. ORDER`).

pub mod admission;
pub mod app;
pub mod backplane;
pub mod clock;
pub mod cluster;
pub mod cluster_time;
pub mod config;
pub mod drain;
pub mod health;
pub mod healthcheck;
pub mod http;
pub mod hub;
pub mod identity;
pub mod lifecycle;
pub mod metrics;
mod planted;
pub mod presence;
pub mod publisher;
pub mod relay;
pub mod session;
pub mod supervise;
pub mod telemetry;
pub mod ticker;
pub mod vitals;

#[cfg(test)]
mod testing;
