//! Random numbers that a seed replays, on every machine and for ever: SplitMix64.
//!
//! The crate that the product uses promises no stable sequence over its versions, and a seed that somebody wrote into
//! a bug report must still give the same run after an upgrade.

/// A sequence that is decided by its seed.
#[derive(Debug, Clone)]
pub(crate) struct Prng(u64);

impl Prng {
    /// The sequence of `seed`.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Another sequence, for a part of the run that must not disturb this one.
    pub(crate) fn fork(&self, part: u64) -> Self {
        let mut fork = Self(self.0 ^ part.wrapping_add(1).wrapping_mul(0xd6e8_feb8_6659_fd93));
        fork.next();
        fork
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `from..=to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    /// A place in something of that length.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        let place = self.next() % u64::try_from(length).expect("lengths fit");
        usize::try_from(place).expect("below a length")
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The published first outputs of SplitMix64 for seed 1234567: old seeds must keep their meaning.
    #[test]
    fn a_seed_means_the_same_for_ever() {
        let mut prng = Prng::of(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| prng.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn forks_differ_and_repeat() {
        let prng = Prng::of(7);
        assert_eq!(prng.fork(1).next(), prng.fork(1).next());
        assert_ne!(prng.fork(1).next(), prng.fork(2).next());
        let mut prng = Prng::of(7);
        assert!((0..1_000).all(|_| (3..=5).contains(&prng.between(3, 5))));
    }
}
