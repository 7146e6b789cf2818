//! Pulsegate: live web analytics over WebSockets, on any number of nodes that share one Redis.
//!
//! docs/ARCHITECTURE.md has the map of this crate and the invariants that its comments name (`Inv. ORDER`).

pub mod backplane;
pub mod clock;
pub mod config;
pub mod hub;
pub mod identity;
pub mod lifecycle;
pub mod metrics;
pub mod session;
pub mod supervise;
pub mod telemetry;
pub mod vitals;
