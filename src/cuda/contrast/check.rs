//! What the host checks of a contrastive loss before anything is launched.

use consonance_cpu::Error as Bad;
use consonance_cpu::contrast::{AffinityMap, Products};

use super::{Affinity, Losses, OP, Problem, Rule, pace};
use crate::cuda::rows::{check_length, check_sides};
use crate::cuda::{Matrix, Result};

/// Checks that losses are those of a problem of this size.
pub(super) fn check_losses(problem: &Problem<'_>, losses: &Losses) -> Result<()> {
    let b = problem.queries.rows();
    check_length(OP, "losses", losses.mass.bytes() / size_of::<f32>(), b, "query")?;
    let inverses = losses.old_inverses.as_ref().map_or(0, |(_, keys)| keys.bytes() / size_of::<f32>());
    let expected = problem.pairs.affinity.map_or(0, |affinity| affinity.keys.rows());
    check_length(OP, "losses", inverses, expected, "old key")
}

/// Checks all that the host knows of a problem.
pub(super) fn check(problem: &Problem<'_>) -> Result<()> {
    let Problem { queries, keys, temperatures, pairs, options } = problem;
    check_sides(OP, ["queries", "keys"], queries, keys)?;
    let (b, n) = (queries.rows(), keys.rows());
    if options.products == Products::F32 {
        let expected = "Fastest on a GPU; for sums in f32 move the tensors to the CPU";
        return Err(Bad::range(OP, "products", "F32", expected).into());
    }
    if let Some(affinity) = &pairs.affinity {
        check_affinity(affinity, b, n)?;
    }
    if temperatures.len() != 1 && temperatures.len() != b {
        let expected = format!("[1] or [{b}], one a query");
        return Err(Bad::shape(OP, "temperature", &[temperatures.len()], expected).into());
    }
    check_rule(&pairs.rule, b, n)?;
    if let Some(pace) = &pairs.pace {
        pace::check(pace, b, n)?;
    }
    for (argument, bits, rows, of) in [
        ("anchors", pairs.anchors, b, "32 queries"),
        ("valid", pairs.valid, n, "32 keys"),
        ("credible_positives", pairs.credible, n, "32 keys"),
    ] {
        if let Some(bits) = bits {
            check_length(OP, argument, bits.len(), rows.div_ceil(32), of)?;
        }
    }
    if let Some(weights) = pairs.denominator_weights {
        check_length(OP, "denominator_weights", weights.len(), n, "key")?;
    }
    for (names, sides) in
        [(("query_ids", "key_ids"), pairs.same_id), (("query_labels", "key_labels"), pairs.left_out_labels)]
    {
        if let Some((q, k)) = sides {
            check_length(OP, names.0, q.len(), b, "query")?;
            check_length(OP, names.1, k.len(), n, "key")?;
        }
    }
    Ok(())
}

fn check_affinity(affinity: &Affinity<'_>, b: usize, n: usize) -> Result<()> {
    check_rows_beside([("old_queries", &affinity.queries, b), ("old_keys", &affinity.keys, n)])?;
    match affinity.map {
        AffinityMap::Exp { temperature: t } if !(t.is_finite() && t > 0.0) => {
            Err(Bad::range(OP, "affinity temperature", t, "finite and above 0").into())
        }
        _ => Ok(()),
    }
}

/// Checks rows of one length that stand beside queries and keys, of any dtypes: names, rows, and how many there must be.
pub(super) fn check_rows_beside(sides: [(&'static str, &Matrix<'_>, usize); 2]) -> Result<()> {
    let cols = sides[0].1.cols();
    for (argument, rows, expected) in sides {
        if rows.rows() != expected || rows.cols() != cols || cols == 0 {
            let shape = format!("[{expected}, {}], one row for each", cols.max(1));
            return Err(Bad::shape(OP, argument, &[rows.rows(), rows.cols()], shape).into());
        }
        if cols > i32::MAX as usize || !rows.address().is_multiple_of(rows.dtype().bytes() as u64) {
            let got = format!("{cols} dimensions at {:#x}", rows.address());
            let expected = "fewer than 2^31 dimensions at an address aligned to its elements";
            return Err(Bad::range(OP, argument, got, expected).into());
        }
    }
    Ok(())
}

fn check_rule(rule: &Rule<'_>, b: usize, n: usize) -> Result<()> {
    match rule {
        Rule::Labels { queries, keys, key_order } => {
            check_length(OP, "query_labels", queries.len(), b, "query")?;
            check_length(OP, "key_labels", keys.len(), n, "key")?;
            check_length(OP, "key_order", key_order.words().len(), n, "key")
        }
        Rule::Diagonal if n < b => {
            let expected = format!("at least {b} rows: with diagonal pairs key i is the positive of query i");
            Err(Bad::shape(OP, "keys", &[n], expected).into())
        }
        Rule::Lists { offsets, indices, weights, .. } => {
            check_length(OP, "offsets", offsets.len(), b + 1, "query and one more")?;
            if u32::try_from(indices.len()).is_err() {
                return Err(Bad::range(OP, "indices", indices.len(), "fewer than 2^32").into());
            }
            match weights {
                Some(weights) => check_length(OP, "weights", weights.len(), indices.len(), "index"),
                None => Ok(()),
            }
        }
        Rule::Bits { queries, keys, words, min_overlap } => {
            if *words == 0 || *min_overlap == 0 {
                let argument = if *words == 0 { "bits" } else { "min_overlap" };
                return Err(Bad::range(OP, argument, 0, "at least 1").into());
            }
            let length = |argument, got, rows: usize, of| match rows.checked_mul(*words) {
                Some(expected) if u32::try_from(*words).is_ok() => {
                    check_length(OP, argument, got, expected, of)
                }
                _ => Err(Bad::range(OP, "bits", words, "fewer than 2^32 words a set").into()),
            };
            length("query_bits", queries.len(), b, "word of a query's set")?;
            length("key_bits", keys.len(), n, "word of a key's set")
        }
        Rule::Diagonal | Rule::All => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use consonance_cpu::contrast::Options;

    use super::*;
    use crate::cuda::contrast::Pairs;
    use crate::cuda::{DType, Matrix, Words};

    #[test]
    fn forms_without_kernels_are_refused_by_name() {
        // SAFETY: nothing is read or launched, only checked.
        let (rows, words) =
            unsafe { (Matrix::from_address(256, DType::F32, [4, 8, 8]), Words::from_address(256, 1)) };
        let good = Problem {
            queries: rows,
            keys: rows,
            temperatures: words,
            pairs: Pairs::new(Rule::All),
            options: Options::default(),
        };
        assert!(check(&good).is_ok());
        let plain = Options { products: Products::F32, ..Options::default() };
        let text = check(&Problem { options: plain, ..good }).unwrap_err().to_string();
        assert!(text.contains("`products`") && text.contains("CPU"), "{text}");
    }
}
