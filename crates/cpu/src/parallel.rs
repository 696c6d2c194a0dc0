//! Work on all threads of the pool, where there is enough of it: handing one share to another thread and waiting for it only
//! costs.

use rayon::prelude::*;

fn alone(shares: usize) -> bool {
    shares <= 1 || rayon::current_num_threads() == 1
}

/// `f(0)`, `f(1)`, … `f(shares - 1)`, in their order.
pub(crate) fn each<R: Send>(shares: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    match alone(shares) {
        true => (0..shares).map(&f).collect(),
        false => (0..shares).into_par_iter().map(&f).collect(),
    }
}

/// `f(scratch, 0, …)`, `f(scratch, 1, …)`, … for the chunks of `size` elements of `out`; each thread makes its scratch once.
pub(crate) fn each_chunk<T: Send, S>(
    out: &mut [T],
    size: usize,
    scratch: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize, &mut [T]) + Sync,
) {
    if alone(out.len().div_ceil(size)) {
        let mut scratch = scratch();
        out.chunks_mut(size).enumerate().for_each(|(at, out)| f(&mut scratch, at, out));
    } else {
        let chunks = out.par_chunks_mut(size).enumerate();
        chunks.for_each_init(&scratch, |scratch, (at, out)| f(scratch, at, out));
    }
}
