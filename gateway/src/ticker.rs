//! wip
pub mod election;
