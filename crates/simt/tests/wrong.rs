//! Every kind of fault, on the line that makes it, under every seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use common::{Run, library, params, source, words};
use consonance_simt::FaultKind::{self, *};
use consonance_simt::{CompileError, Device, Fault, Launch, Library};

const SEEDS: u64 = 12;

/// A kernel, the blocks and bytes of shared memory that it gets, and the kinds that its fault may have: which of two
/// threads is first decides between a race and what its second half looks like alone.
type Case = (&'static str, u32, u32, &'static [FaultKind]);

const CASES: &[Case] = &[
    ("global_end", 1, 0, &[GlobalBounds]),
    ("global_start", 1, 0, &[GlobalBounds]),
    ("freed", 1, 0, &[GlobalBounds]),
    ("null_pointer", 1, 0, &[Address]),
    ("shared_end", 1, 128, &[SharedBounds]),
    ("misaligned", 1, 0, &[Misaligned]),
    ("misaligned_vector", 1, 0, &[Misaligned]),
    ("misaligned_row", 1, 1024, &[Misaligned]),
    ("unwritten_shared", 1, 128, &[Uninitialised]),
    ("race_without_barrier", 1, 256, &[Race, Uninitialised]),
    ("race_in_a_warp", 1, 128, &[Race, Uninitialised]),
    ("race_write_after_read", 1, 256, &[Race]),
    ("race_of_halves", 1, 128, &[Race, Uninitialised]),
    ("race_of_blocks", 2, 0, &[Race]),
    ("race_of_blocks_read", 4, 0, &[Race]),
    ("race_with_an_atomic", 1, 4, &[Race]),
    ("pending_copy", 1, 128, &[PendingCopy]),
    ("uncommitted_copy", 1, 128, &[PendingCopy]),
    ("copy_without_barrier", 1, 256, &[Race, PendingCopy, Uninitialised]),
    ("copy_too_many", 1, 256, &[CopySize]),
    ("copy_outside", 1, 16, &[GlobalBounds]),
    ("diverged_barrier", 1, 0, &[DivergedBarrier]),
    ("exited_before_barrier", 1, 0, &[DivergedBarrier]),
    ("diverged_warp", 1, 0, &[DivergedWarp]),
    ("exited_lane", 1, 0, &[DivergedWarp]),
    ("lane_outside_mask", 1, 0, &[DivergedWarp]),
    ("warp_waits_for_barrier", 1, 0, &[DivergedBarrier]),
    ("writes_params", 1, 0, &[ReadOnly]),
    ("last_block_without_fence", 4, 4, &[Race]),
    ("last_block_without_barrier", 4, 4, &[Race]),
    ("last_block_without_waiting", 4, 4, &[Race]),
    ("endless", 1, 0, &[Endless]),
];

fn check(fault: &Fault, kernel: &str, kinds: &[FaultKind], lines: &[&str]) {
    assert!(kinds.contains(&fault.kind), "{fault}");
    assert_eq!(fault.kernel, kernel);
    assert!(fault.thread.is_some(), "{fault}");
    let location = fault.location.as_ref().unwrap_or_else(|| panic!("no place: {fault}"));
    assert!(location.file.ends_with("wrong.cu"), "{fault}");
    let line = lines[location.line as usize - 1];
    assert!(line.contains("// here"), "{fault}: {line}");
}

#[test]
fn every_fault_has_its_kind_and_line_under_every_seed() {
    let Some(library) = library("wrong.cu") else { return };
    let text = std::fs::read_to_string(source("wrong.cu")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let device = Device::new().unwrap().with_step_limit(10_000);
    let run = Run { device: &device, library: &library };
    for (kernel, blocks, shared_bytes, kinds) in CASES {
        for seed in 0..SEEDS {
            let values = device.upload(&words(&[7; 128])).unwrap();
            // Of 32 values for the kernels that leave it.
            let short = device.upload(&words(&[7; 32])).unwrap();
            let freed = device.upload(&words(&[7; 32])).unwrap();
            if kernel.starts_with("last_block") {
                device.write(&values, &words(&[0])).unwrap();
            }
            let values = if ["global_end", "copy_outside"].contains(kernel) { &short } else { &values };
            let params = params(&[values, &freed], &[32, 0]);
            drop(freed);
            let fault = run.launch(kernel, *blocks, *shared_bytes, &params, seed).unwrap_err();
            check(&fault, kernel, kinds, &lines);
            if seed == 0 {
                println!("{fault}");
            }
            // The same seed gives the same fault, and the device goes on.
            if kernel.starts_with("last_block") {
                device.write(values, &words(&[0])).unwrap();
            }
            let again = run.launch(kernel, *blocks, *shared_bytes, &params, seed).unwrap_err();
            assert_eq!(again.kind, fault.kind);
            assert_eq!(again.thread, fault.thread);
            run.launch("nothing", 3, 0, &params, seed).unwrap();
        }
    }
}

#[test]
fn memory_that_nobody_wrote_is_not_read() {
    let Some(library) = library("wrong.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    let values = device.allocate(512).unwrap();
    let params = params(&[&values, &values], &[32, 0]);
    let fault = run.launch("unwritten_global", 1, 128, &params, 1).unwrap_err();
    assert_eq!(fault.kind, Uninitialised);
    let fault = device.download(&values, &mut [0; 8]).unwrap_err();
    assert_eq!(fault.kind, Uninitialised);
    device.write(&values, &[1; 8]).unwrap();
    device.download(&values, &mut [0; 8]).unwrap();
    assert_eq!(device.download(&values, &mut [0; 9]).unwrap_err().kind, Uninitialised);
    assert_eq!(device.download(&values, &mut [0; 513]).unwrap_err().kind, GlobalBounds);
    assert_eq!(Device::new().unwrap().write(&values, &[1]).unwrap_err().kind, GlobalBounds);
    assert_eq!(Device::with_capacity(1 << 16).unwrap().allocate(1 << 16).unwrap_err().kind, OutOfMemory);
}

#[test]
fn a_launch_is_what_the_kernel_declares() {
    let Some(library) = library("wrong.cu") else { return };
    let device = Device::new().unwrap();
    let launch = Launch {
        kernel: "nothing",
        grid: [1, 1, 1],
        threads: 32,
        shared_bytes: 0,
        params: &[0; 24],
        seed: 0,
    };
    device.launch(&library, &launch).unwrap();
    let wrong = [
        (UnknownKernel, Launch { kernel: "nothings", ..launch }),
        (Params, Launch { params: &[0; 16], ..launch }),
        (FaultKind::Launch, Launch { threads: 64, ..launch }),
        (FaultKind::Launch, Launch { grid: [1, 0, 1], ..launch }),
        (FaultKind::Launch, Launch { shared_bytes: 228 * 1024, ..launch }),
    ];
    for (kind, launch) in wrong {
        let fault = device.launch(&library, &launch).unwrap_err();
        assert_eq!(fault.kind, kind, "{fault}");
    }
}

#[test]
fn libraries_follow_their_sources_headers_and_macros() {
    if consonance_simt::skipped_without_compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, header) = (folder.path().join("threads.cu"), folder.path().join("width.cuh"));
    std::fs::write(&file, "#include <width.cuh>\nstruct P { int x; };\nCONSONANCE_KERNEL(k, P, WIDTH, 2) {}")
        .unwrap();
    let include = folder.path().to_path_buf();
    let threads = |defines: &[&str]| {
        let library = Library::compile(std::slice::from_ref(&file), std::slice::from_ref(&include), defines);
        library.unwrap().kernel("k").unwrap().threads
    };
    // A folder of its own, so nobody has compiled this before: several at once must not disturb each other.
    std::fs::write(&header, "#ifndef WIDTH\n#define WIDTH 32\n#endif").unwrap();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(|| threads(&[]))).collect();
        running.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 32));
    });
    assert_eq!(threads(&["WIDTH=96"]), 96);
    std::fs::write(&header, "#define WIDTH 64").unwrap();
    assert_eq!(threads(&[]), 64);
}

#[test]
fn sources_that_do_not_compile_say_why() {
    if consonance_simt::skipped_without_compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.cu");
    for (text, reason) in [
        ("#include <simt/device.h>\n__device__ int f() { return undeclared; }", "undeclared"),
        ("#include <simt/device.h>\nvoid f(float* x) { atomicAdd(x, 1.0f); }", "would depend on the order"),
        ("#include <simt/device.h>\n__device__ int f() { __shared__ int x[2]; return x[0]; }", "__shared__"),
    ] {
        std::fs::write(&file, text).unwrap();
        match Library::compile(std::slice::from_ref(&file), &[], &[]) {
            Err(CompileError::Refused { command, output }) => {
                assert!(command.contains("broken.cu"), "{command}");
                assert!(output.contains(reason), "{output}");
            }
            other => panic!("{other:?}"),
        }
    }
    let missing = folder.path().join("missing.cu");
    assert!(matches!(Library::compile(&[missing], &[], &[]), Err(CompileError::Io { .. })));
}
