//! Pulsegate: live web analytics over WebSockets, on any number of nodes that share one Redis.
//!
//! docs/ARCHITECTURE.md has the map of this crate and the invariants that its comments name (`Inv. ORDER`).

pub mod backplane;
pub mod clock;
pub mod lifecycle;
pub mod metrics;
pub mod vitals;
