//! Deliberate faults in the kernels, each of which the suite must find: what it does not find, it does not check.

#[path = "bank_faults.rs"]
mod bank;
#[path = "clusters_faults.rs"]
mod clusters;
#[path = "contrast_symmetric_faults.rs"]
mod contrast_symmetric;
#[path = "credibility_faults.rs"]
mod credibility;
#[path = "divergence_faults.rs"]
mod divergence;
#[path = "gathered_faults.rs"]
mod gathered;
#[path = "soft_assignment_faults.rs"]
mod soft_assignment;

use std::path::Path;
use std::sync::Arc;

use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{OnDevice, Simt, kernel_folder};
use consonance_testkit::suite::{self, Check};
use rayon::prelude::*;

/// A piece of a kernel file, which occurs in it once, and what stands there instead.
struct Fault {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The check that finds it; none: any check of the family, one after the other, which takes longer.
    found_by: Option<&'static str>,
}

const fn fault(what: &'static str, file: &'static str, right: &'static str, wrong: &'static str) -> Fault {
    Fault { what, file, right, wrong, found_by: None }
}

impl Fault {
    /// The check that finds it, so that no other need run.
    const fn by(mut self, check: &'static str) -> Self {
        self.found_by = Some(check);
        self
    }
}

/// A family: the kernel files that its checks need, the checks, and the faults.
type Family = (&'static [&'static str], &'static [Check], &'static [Fault]);

const NEIGHBORS: Family = (
    &["neighbors.cu", "neighbors_gradient.cu", "segments.cu"],
    suite::neighbors::CHECKS,
    &[
        fault(
            "the mask is dropped",
            "include/pairs.cuh",
            "return bit_at(p.allow, key);",
            "return bit_at(p.allow, key) || true;",
        ),
        fault("ids are dropped", "include/pairs.cuh", "return p.query_ids == 0 ||", "return true ||"),
        fault(
            "the last label of a tile is left out",
            "include/pairs.cuh",
            "p.key_order, most + 1, first",
            "p.key_order, most, first",
        ),
        fault(
            "splits leave out their last tile",
            "include/pairs.cuh",
            "const uint64_t end = first + each;",
            "const uint64_t end = first + each - TILE_KEYS;",
        ),
        fault(
            "one row too many is copied",
            "include/slab.cuh",
            "position < source.end",
            "position <= source.end",
        ),
        fault("the rest of a row is not cut", "include/slab.cuh", "rest < EACH ?", "rest > EACH ?"),
        fault(
            "values of a tile are read before they are written",
            "include/stream.cuh",
            "reducer.publish(first_key + tile * TILE_KEYS, tile == 0);\n            __syncthreads();",
            "reducer.publish(first_key + tile * TILE_KEYS, tile == 0);",
        ),
        fault(
            "slabs are read before all threads have copied theirs",
            "include/stream.cuh",
            "        __syncthreads();\n        start_copy();",
            "        start_copy();",
        ),
        fault(
            "a copy is not waited for",
            "include/stream.cuh",
            "ptx::copy_async_wait<STAGES - 2>()",
            "ptx::copy_async_wait<STAGES - 1>()",
        ),
        fault(
            "lanes move entries that others still read",
            "include/list.cuh",
            "better_than(sorted, RING, moved);\n        __syncwarp();",
            "better_than(sorted, RING, moved);",
        ),
        fault("a ring runs over", "include/list.cuh", "state.waiting > RING - GROUP", "state.waiting > RING"),
        fault("a merge loses its last entry", "include/list.cuh", "place < capacity", "place + 1 < capacity"),
        fault(
            "the larger of two equal indices wins",
            "include/entry.cuh",
            "<< 32 | (NONE - index)",
            "<< 32 | (NONE - (index ^ 1))",
        ),
        fault(
            "the second half of the rows has the first one's queries",
            "include/rank.cuh",
            "half * 8) + lane_index() / 4;",
            "half * 0) + lane_index() / 4;",
        ),
        fault(
            "the bound is forgotten",
            "include/bound.cuh",
            "return bound * (1.0f + 0x1p-20f) + 0x1p-120f",
            "return 0.0f * bound",
        ),
        fault(
            "every row counts as proven",
            "neighbors.cu",
            "hides && !(value > hidden) ? 1 : 0",
            "hides && !(value > hidden) && value == INFINITY ? 1 : 0",
        ),
        fault(
            "a pass finds the last neighbor again",
            "neighbors.cu",
            "p.pairs.dim, chunked), key);\n            entry = entry < cut ?",
            "p.pairs.dim, chunked), key);\n            entry = entry <= cut ?",
        ),
        fault(
            "empty places are left as they are",
            "neighbors.cu",
            "for (uint32_t place = valid + threadIdx.x; place < p.wanted",
            "for (uint32_t place = valid + threadIdx.x; place + 1 < p.wanted",
        ),
        fault(
            "the first matrix has its halves exchanged",
            "include/products.cuh",
            "row + lane % 16, step * 2 + lane / 16",
            "row + lane % 16, step * 2 + 1 - lane / 16",
        ),
        fault(
            "f32 rows are paired wrongly",
            "include/products.cuh",
            "row + lane / 4 + i % 2 * 8, step, i / 2 != 0",
            "row + lane / 4 + i / 2 * 8, step, i % 2 != 0",
        ),
        fault(
            "numbers of a digit change their order",
            "segments.cu",
            "place = places[digit] + below;",
            "place = places[digit] + __popc(lanes) - 1 - below;",
        ),
        fault(
            "counts of a block are not cleared",
            "segments.cu",
            "        counts[digit] = 0;",
            "        counts[digit] += 0;",
        ),
        fault(
            "a place without a neighbor gets a gradient",
            "neighbors_gradient.cu",
            "            if (key != NONE) {\n                const float y",
            "            {\n                const float y",
        ),
        fault(
            "the last warp's pairs of a key are lost",
            "neighbors_gradient.cu",
            "            count += shared.counts[other];",
            "            count += other < 3 ? shared.counts[other] : 0;",
        ),
    ],
);

const RANKING: Family = (
    &["ranking.cu"],
    suite::ranking::CHECKS,
    &[
        fault(
            "items as good as the last relevant one are lost",
            "ranking.cu",
            "value >= floor[i]",
            "value > floor[i]",
        ),
        fault("junk counts", "ranking.cu", "label != NONE && label !=", "label !="),
        fault("items of the query's id count", "ranking.cu", "p.query_ids == 0 ||", "true ||"),
        fault(
            "ties do not count",
            "ranking.cu",
            "atomicAdd(ties + worse, 1u);",
            "atomicAdd(ties + worse, 0u);",
        ),
        fault("junk is checked", "ranking.cu", "|| array<uint32_t>(p.item_labels)[row] == NONE", "|| false"),
        fault(
            "a stage is filled while it is read",
            "include/exact.cuh",
            "            // All have read this stage before it is filled again.\n            __syncthreads();",
            "",
        ),
    ],
);

const CONTRAST: Family = (
    &["contrast.cu", "contrast_moments.cu", "segments.cu"],
    suite::contrast::CHECKS,
    &[
        fault(
            "pairs of one id count",
            "include/positives.cuh",
            "p.query_ids != 0 && query.id == key.id",
            "p.query_ids == 1 && query.id == key.id",
        ),
        fault(
            "keys that are not valid are positives",
            "include/positives.cuh",
            "bit_at(p.valid, key) && bit_at(p.credible, key)",
            "bit_at(p.credible, key)",
        ),
        fault(
            "positives leave the denominator with their label",
            "include/positives.cuh",
            "query.left_out == key.left_out && !is_positive",
            "query.left_out == key.left_out",
        ),
        fault(
            "sets that overlap just enough are not positive",
            "include/positives.cuh",
            "overlap >= p.least_overlap",
            "overlap > p.least_overlap",
        ),
        fault(
            "a sum is not rescaled when the maximum grows",
            "include/softmax.cuh",
            "part(half) = {largest[half], part(half).sum * factor,",
            "part(half) = {largest[half], part(half).sum,",
        ),
        fault(
            "sums of keys are not rescaled when the maximum grows",
            "include/softmax.cuh",
            "sums.scale(half, factor);",
            "sums.scale(half, 1.0f);",
        ),
        fault(
            "the maxima of other warps are not seen",
            "include/softmax.cuh",
            "i < 2 * Shape::GROUPS; ++i",
            "i < 2; ++i",
        ),
        fault(
            "maxima are read before they are written",
            "include/softmax.cuh",
            "            __syncthreads();\n#pragma unroll\n            for (int i = 0;",
            "#pragma unroll\n            for (int i = 0;",
        ),
        fault(
            "splits are joined without their maximum",
            "include/softmax.cuh",
            "row.sum * mine + other.sum * theirs",
            "row.sum * mine + other.sum",
        ),
        fault(
            "half of a row is lost",
            "include/softmax.cuh",
            "for (int step = 1; step < 4; step *= 2)",
            "for (int step = 1; step < 2; step *= 2)",
        ),
        fault(
            "positives stay in a denominator that they left",
            "include/softmax.cuh",
            "if (p.positives_left_out != 0) {",
            "if (p.positives_left_out == 2) {",
        ),
        fault(
            "positives are summed twice",
            "include/softmax.cuh",
            "is_positive(i + k) ? 0.0f : e;",
            "is_positive(i + k) ? e : e;",
        ),
        fault(
            "a margin has the wrong sign",
            "include/floats.cuh",
            "(m >= 0.0f ? 1.0f : e)",
            "(m < 0.0f ? 1.0f : e)",
        ),
        fault("coefficients are too large for 16 bits", "include/units.cuh", "(267 - ", "(271 - "),
        fault(
            "weights of positives are halved in the gradient",
            "include/gradient.cuh",
            "+ place ? its : mine",
            "+ place ? 0.5f * its : mine",
        ),
        fault(
            "coefficients change their places",
            "include/sweep.cuh",
            "column / 8) + column % 8 * 2",
            "column / 8) + (column % 8 ^ 2) * 2",
        ),
        fault(
            "the low part of a coefficient is lost",
            "include/sweep.cuh",
            "steps[step].low, b[i].high",
            "steps[step].low, b[i].low",
        ),
        fault(
            "values are read before they arrive",
            "include/sweep.cuh",
            "copy_async_wait<Shape::RING_STAGES - 2>",
            "copy_async_wait<Shape::RING_STAGES - 1>",
        ),
        fault(
            "values of other dimensions are multiplied",
            "include/sweep.cuh",
            "part + step);",
            "part - step);",
        ),
        fault("the last dimensions are lost", "include/sweep.cuh", "if (d < dim)", "if (d + 8 < dim)"),
        fault(
            "candidates of a long list are skipped",
            "include/targets.cuh",
            "start += TILE_THREADS",
            "start += 2 * TILE_THREADS",
        ),
        fault(
            "the sums of one warp are lost",
            "include/targets.cuh",
            "for (int warp = 1; warp < TARGET_WARPS; ++warp) {\n            sum +=",
            "for (int warp = 2; warp < TARGET_WARPS; ++warp) {\n            sum +=",
        ),
        fault(
            "positives are weighed by the denominator twice",
            "include/targets.cuh",
            "score + bias_of_key(p, key) - log_sum_exp",
            "score + 2.0f * bias_of_key(p, key) - log_sum_exp",
        ),
        fault(
            "an old query is not divided by its norm",
            "include/affinity.cuh",
            "array<float>(p.old_query_inverses)[query] * array",
            "1.0f * array",
        ),
        fault(
            "the temperature of old embeddings is 1",
            "include/affinity.cuh",
            "__uint_as_float(p.affinity_scale)",
            "1.44269504f",
        ),
        fault(
            "only keys of the first split add to the gradient",
            "contrast.cu",
            "static_cast<uint64_t>(split) * p.query_count * p.dim",
            "static_cast<uint64_t>(0) * p.query_count * p.dim",
        ),
        fault(
            "rows that do not count have a loss",
            "contrast.cu",
            "[query] = counts ? loss * inverse : 0.0f",
            "[query] = loss",
        ),
        fault(
            "the temperature divides once",
            "contrast.cu",
            "-(along / temperature) / temperature",
            "-along / temperature",
        ),
        fault(
            "lists that do not ascend pass",
            "contrast.cu",
            "(at == first || array<uint32_t>(p.indices)[at - 1] < key)",
            "true",
        ),
        fault(
            "old embeddings of norm zero pass",
            "contrast.cu",
            "LARGEST_SQUARED_NORM && squares > 0.0f",
            "LARGEST_SQUARED_NORM && squares >= 0.0f",
        ),
        fault(
            "moments count keys that are no positives",
            "contrast_moments.cu",
            "bit_at(p.valid, row) && bit_at(p.credible, row)",
            "bit_at(p.valid, row)",
        ),
        fault(
            "moments of the first split alone",
            "contrast_moments.cu",
            "[split * elements + at]",
            "[0 * elements + at]",
        ),
        fault(
            "a chunk of moments is overwritten while it is read",
            "contrast_moments.cu",
            "        // All have read the chunk before it is overwritten.\n        __syncthreads();",
            "",
        ),
        fault("moments are added to the gradient", "contrast_moments.cu", "*to - sums[i]", "*to + sums[i]"),
    ],
);

#[test]
fn every_fault_of_neighbors_is_found() {
    assert_all_found(&NEIGHBORS);
}

#[test]
fn every_fault_of_ranking_is_found() {
    assert_all_found(&RANKING);
}

#[test]
fn every_fault_of_contrast_is_found() {
    assert_all_found(&CONTRAST);
}

fn assert_all_found(family: &Family) {
    if skipped_without_compiler() {
        return;
    }
    // One fault by a part of its name, while it is being written.
    let named = std::env::var("CONSONANCE_FAULT").ok();
    let unfound: Vec<String> = family
        .2
        .par_iter()
        .filter(|fault| named.as_ref().is_none_or(|name| fault.what.contains(name)))
        .filter_map(|fault| {
            let message = found(family, fault);
            if let Ok(message) = &message {
                println!("{}: {}", fault.what, message.lines().next().unwrap_or_default());
            }
            message.err()
        })
        .collect();
    assert!(unfound.is_empty(), "{}", unfound.join("\n"));
}

/// What the suite says of the kernels with this fault.
fn found((files, checks, _): &Family, fault: &Fault) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    copy(&kernel_folder(), folder.path());
    let path = folder.path().join(fault.file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches(fault.right).count(), 1, "`{}` in {}", fault.right, fault.file);
    std::fs::write(&path, text.replace(fault.right, fault.wrong)).unwrap();
    let sources: Vec<_> = files.iter().map(|file| folder.path().join(file)).collect();
    let library = match Library::compile_unoptimized(&sources, &[folder.path().join("include")], &[]) {
        Ok(library) => Arc::new(library),
        Err(error) => return Err(format!("{}: does not compile: {error}", fault.what)),
    };
    let backend = |seed| OnDevice::new(fault.what, Simt::new(library.clone(), 1, seed));
    let asked = |name: &str| fault.found_by.is_none_or(|check| check == name);
    let mut asked = checks.iter().zip(0..).filter(|((name, _), _)| asked(name)).peekable();
    assert!(asked.peek().is_some(), "{}: the family has no check `{:?}`", fault.what, fault.found_by);
    let wrong = asked.find_map(|((name, check), seed)| {
        check(&backend(seed)).err().map(|message| format!("{name}: {message}"))
    });
    match wrong {
        // Of the family's own making: the check would fail without the fault, too.
        Some(message) if message.contains("no such kernel") => Err(format!("{}: {message}", fault.what)),
        Some(message) => Ok(message),
        None => Err(format!("{}: {} passes", fault.what, fault.found_by.unwrap_or("the suite"))),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
