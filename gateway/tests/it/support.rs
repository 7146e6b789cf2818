//! The harness: what starts, drives, watches and ends real processes.

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod frame;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod producer;
pub(crate) mod recorder;
pub(crate) mod redis_cluster;
pub(crate) mod redis_server;
pub(crate) mod resp;
pub(crate) mod sentinel;
pub(crate) mod wait;
