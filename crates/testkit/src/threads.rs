//! The same work on pools of different sizes.

/// Runs `f` on pools of 1, 2 and 8 threads and returns the three results.
///
/// # Panics
/// When a pool cannot be started.
pub fn on_1_2_8_threads<R: Send>(f: impl Fn() -> R + Sync) -> [R; 3] {
    [1, 2, 8].map(|threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a thread pool starts")
            .install(&f)
    })
}
