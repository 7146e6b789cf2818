//! What benchmarks need of admission and nobody else may have: the counts by themselves, without a backplane.
//!
//! Compiled with the feature `bench` only.

use super::counts::{Counts, Told};
use crate::backplane::AddressHash;

/// The sockets of a node's addresses, under a cap of ten.
#[derive(Debug, Default)]
pub struct Book(Counts);

impl Book {
    /// The counting of an admission that the backplane grants. False: the address is full.
    pub fn come(&mut self, address: AddressHash) -> bool {
        if self.0.reserve(address, 10).is_err() {
            return false;
        }
        if self.0.begin(address).is_some() {
            self.0.hold(address, Told::Yes);
            self.0.end(address, Told::Yes);
        }
        true
    }

    /// The counting of a socket's end, and of telling the backplane about it.
    pub fn go(&mut self, address: AddressHash) {
        self.0.release(address);
        for (told, _) in self.0.begin_batch(1) {
            self.0.end(told, Told::Yes);
        }
    }
}
