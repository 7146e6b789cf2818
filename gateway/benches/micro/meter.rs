//! Where counting begins and ends.

use std::hint::black_box;

/// A piece of work to count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Group, slash, what it does.
    pub(crate) name: &'static str,
    /// Does it, inside of [`measured`]; returns how often.
    pub(crate) run: fn() -> u32,
}

/// Does `work` once for its lasting effects (a buffer that grows, a lazily made table), then `rounds` times counted.
/// What makes the inputs, and drops the outputs, is not counted.
pub(crate) fn each<I, O>(rounds: u32, mut input: impl FnMut() -> I, mut work: impl FnMut(I) -> O) -> u32 {
    drop(black_box(work(input())));
    for _ in 0..rounds {
        drop(measured(&mut work, input()));
    }
    rounds
}

/// Callgrind collects while this function is on the stack: it must stay a function, and keep its name.
#[inline(never)]
fn measured<I, O>(work: &mut impl FnMut(I) -> O, input: I) -> O {
    black_box(work(black_box(input)))
}
