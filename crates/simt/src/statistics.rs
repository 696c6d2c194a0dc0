//! What a launch did, counted.

/// Counts over all threads of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Statistics {
    /// Bytes that threads asked for in global memory, asynchronous copies included.
    pub global_bytes_read: u64,
    /// Bytes that threads wrote to global memory.
    pub global_bytes_written: u64,
    /// Bytes read from shared memory, matrix loads included.
    pub shared_bytes_read: u64,
    /// Bytes written to shared memory, asynchronous copies included.
    pub shared_bytes_written: u64,
    /// Checked accesses, stack and parameters included.
    pub accesses: u64,
    /// Tensor-core products, one for a whole warp.
    pub products: u64,
    /// Floating-point operations of these, a multiplication and an addition each.
    pub product_flops: u64,
    /// Matrix loads, one for a whole warp.
    pub matrix_loads: u64,
    /// Barriers, one for a whole block.
    pub barriers: u64,
    /// Shuffles, votes and reductions, one for all lanes of a mask; `__syncwarp` is none.
    pub shuffles: u64,
    /// Atomic operations of threads.
    pub atomics: u64,
    /// Asynchronous copies of threads.
    pub async_copies: u64,
    /// Switches from one thread to another.
    pub switches: u64,
}
