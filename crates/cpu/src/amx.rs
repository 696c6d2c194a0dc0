//! Intel's tile matrix unit: whether it may be used, and the state of a thread that uses it.
//!
//! Eight registers of 16 rows of 64 bytes. `tdpbf16ps` adds to a 16 × 16 tile of `f32` sums the product of 16 × 32
//! bfloat16 and 32 × 16 bfloat16, the latter as pairs of the shared dimension.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::LazyLock;

/// Whether this machine has the unit with bfloat16 and the system lets this process use it.
pub(crate) fn available() -> bool {
    static GRANTED: LazyLock<bool> = LazyLock::new(|| has_tiles() && request());
    *GRANTED
}

/// Whether the processor has tiles and their bfloat16 product: CPUID leaf 7, EDX bits 24 and 22.
#[allow(unused_unsafe, reason = "CPUID became a safe function after the oldest supported compiler")]
fn has_tiles() -> bool {
    // SAFETY: every x86-64 processor has CPUID; a leaf above its last reads as another leaf, so ask for the last.
    let (last, leaf) = unsafe { (__cpuid_count(0, 0).eax, __cpuid_count(7, 0).edx) };
    last >= 7 && leaf >> 24 & 1 == 1 && leaf >> 22 & 1 == 1
}

/// Asks Linux for the tile registers' state, for this process and all its threads: `arch_prctl` with
/// `ARCH_REQ_XCOMP_PERM` for component 18 (Linux, Documentation/arch/x86/xstate.rst).
fn request() -> bool {
    let result: i64;
    // SAFETY: the call takes two numbers and writes no memory of ours; `syscall` clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") 158i64 => result,
            in("rdi") 0x1023i64,
            in("rsi") 18i64,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// The tile configuration: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Config(bytes)
};

/// # Safety
/// [`available`].
pub(crate) unsafe fn arm() {
    // SAFETY: the caller's contract; the configuration is valid and the instruction only reads it.
    unsafe { asm!("ldtilecfg [{}]", in(reg) CONFIG.0.as_ptr(), options(nostack, readonly, preserves_flags)) }
}

/// # Safety
/// [`available`].
pub(crate) unsafe fn disarm() {
    // SAFETY: the caller's contract; nothing of this thread uses the tiles any more.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

/// A thread whose tiles are configured, until this is dropped.
pub(crate) struct Armed {
    /// The state belongs to the thread.
    stays: PhantomData<*const ()>,
}

impl Armed {
    /// Configures this thread's tiles, when the machine has them.
    pub(crate) fn new() -> Option<Self> {
        available().then(|| {
            // SAFETY: just asked.
            unsafe { arm() };
            Self { stays: PhantomData }
        })
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        // SAFETY: [`Armed::new`] has found the unit.
        unsafe { disarm() }
    }
}
