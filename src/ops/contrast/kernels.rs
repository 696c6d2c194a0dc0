//! The loss by kernels, and its gradients.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};
use consonance_cpu::Error as Bad;
use consonance_cpu::contrast::Admission;

use super::lists::Lists;
use super::pairs::{Closeness, Pace, Pairs, Rule};
use super::{AffinityMap, ContrastOptions, OP};
use crate::cuda::contrast::{self as kernels, Affinity, Losses, Problem};
use crate::cuda::neighbors::pack_bits;
use crate::cuda::{Executor, Memory, Order, Words, segments};
use crate::ops::place::{Place, PlacedMatrix, PlacedVector};
use crate::{Error, Result};

/// Two sides of the same kind.
type Sides = Option<(PlacedVector, PlacedVector)>;

/// A mask with one bit a row, and its rows.
type Bits = Option<(Memory, usize)>;

/// The rule's arrays, where kernels read them.
enum PlacedRule {
    Labels(PlacedVector, PlacedVector, Order),
    Diagonal,
    Lists { offsets: PlacedVector, indices: PlacedVector, weights: Option<PlacedVector>, padded: bool },
    Bits { queries: PlacedVector, keys: PlacedVector, words: usize, min_overlap: u32 },
    All,
}

/// A problem whose arrays are where kernels read them.
pub(super) struct Placed {
    queries: PlacedMatrix,
    keys: PlacedMatrix,
    temperatures: PlacedVector,
    rule: PlacedRule,
    affinity: Option<(PlacedMatrix, PlacedMatrix, AffinityMap)>,
    anchors: Bits,
    valid: Bits,
    credible: Bits,
    denominator_weights: Option<PlacedVector>,
    same_id: Sides,
    left_out_labels: Sides,
    pace: Option<PlacedPace>,
    options: ContrastOptions,
}

/// What makes two rows of a group close.
enum PlacedCloseness {
    Times(PlacedVector, PlacedVector, f32),
    Features(PlacedMatrix, PlacedMatrix),
}

/// Groups with the order of their rows, and what weighs negatives inside them.
struct PlacedPace {
    groups: (PlacedVector, PlacedVector),
    orders: (Order, Order),
    closeness: PlacedCloseness,
    pace: f32,
    admission: Admission,
}

/// A loss that kernels computed, with what its gradients need.
pub(super) struct ByKernels {
    place: Place,
    /// Memory of a device is not shared between threads, but the ops of a graph are.
    state: Mutex<(Placed, Losses)>,
    /// ∂L_i/∂x_i `[B, D]` and ∂L_i/∂τ_i `[B]`, when they were asked for.
    gradients: Option<(Tensor, Tensor)>,
    /// `[B]`: L_i and ln of the denominators.
    pub(super) per_row: Tensor,
    pub(super) log_sum_exp: Tensor,
    /// The number of rows that count.
    pub(super) anchors: usize,
}

impl ByKernels {
    /// Computes the losses; waits for the device once, for errors and the number of anchors.
    pub(super) fn new(
        place: Place,
        [queries, keys, temperature]: [&Tensor; 3],
        pairs: &Pairs,
        options: &ContrastOptions,
        gradients: bool,
    ) -> Result<Self> {
        let placed = Placed::new(&place, [queries, keys, temperature], pairs, options)?;
        let (b, d) = (placed.queries.matrix().rows(), placed.queries.matrix().cols());
        let executor = place.executor();
        let mut losses = kernels::losses(executor, &placed.problem()?, gradients)?;
        losses.check(executor)?;
        let read = |memory: &Memory| -> Result<Vec<f32>> {
            let mut values = vec![0f32; b];
            executor.download(OP, memory, bytemuck::cast_slice_mut(&mut values))?;
            Ok(values)
        };
        let anchors = counted(executor, &losses, b)?;
        let device = queries.device();
        let per_row = Tensor::from_vec(read(&losses.per_row)?, b, device)?;
        let log_sum_exp = Tensor::from_vec(read(&losses.log_sum_exp)?, b, device)?;
        let gradients = losses.gradients.take().map(|found| {
            let of_queries = place.tensor(OP, found.queries, DType::F32, (b, d))?;
            let of_temperatures = place.tensor(OP, found.temperatures, DType::F32, (b, 1))?.flatten_all()?;
            Ok::<_, Error>((of_queries, of_temperatures))
        });
        let gradients = gradients.transpose()?;
        Ok(Self { place, state: Mutex::new((placed, losses)), gradients, per_row, log_sum_exp, anchors })
    }

    /// The gradient of Σ g_i L_i for the queries, of their type.
    pub(super) fn query_gradient(&self, g: &Tensor, queries: &Tensor) -> Result<Tensor> {
        let (gradient, _) = self.gradients()?;
        Ok(gradient.broadcast_mul(&g.unsqueeze(1)?)?.to_dtype(queries.dtype())?)
    }

    /// The same for the temperature, of its shape.
    pub(super) fn temperature_gradient(&self, g: &Tensor, temperature: &Tensor) -> Result<Tensor> {
        let (_, gradient) = self.gradients()?;
        let product = (gradient * g)?;
        let of_one = temperature.elem_count() == 1;
        Ok(if of_one { product.sum_all()? } else { product }.reshape(temperature.shape())?)
    }

    /// The same for the keys, of their type.
    pub(super) fn key_gradient(&self, g: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let upstream = self.place.vector(OP, g.detach().to_dtype(DType::F32)?)?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (placed, losses) = &*state;
        let problem = placed.problem()?;
        let found = kernels::key_gradients(self.place.executor(), &problem, losses, upstream.words())?;
        let shape = (problem.keys.rows(), problem.keys.cols());
        Ok(self.place.tensor(OP, found, DType::F32, shape)?.to_dtype(keys.dtype())?)
    }

    fn gradients(&self) -> Result<&(Tensor, Tensor)> {
        let missing = || candle_core::Error::Msg("contrast: no gradient was asked for".to_owned());
        Ok(self.gradients.as_ref().ok_or_else(missing)?)
    }
}

/// The number of rows that count, of `rows`.
pub(super) fn counted(executor: &dyn Executor, losses: &Losses, rows: usize) -> Result<usize> {
    let mut inverses = vec![0f32; rows];
    executor.download(OP, &losses.inverse_normalizer, bytemuck::cast_slice_mut(&mut inverses))?;
    Ok(inverses.iter().filter(|inverse| **inverse > 0.0).count())
}

impl Placed {
    pub(super) fn new(
        place: &Place,
        [queries, keys, temperature]: [&Tensor; 3],
        pairs: &Pairs,
        options: &ContrastOptions,
    ) -> Result<Self> {
        let (b, n) = (queries.dims()[0], keys.dims()[0]);
        let executor = place.executor();
        let sides = |names: [&'static str; 2], of: &Option<(Tensor, Tensor)>| match of {
            Some((q, k)) => {
                let placed = (place.labels(OP, names[0], q, b)?, place.labels(OP, names[1], k, n)?);
                Ok::<_, Error>(Some(placed))
            }
            None => Ok(None),
        };
        let bits = |name, mask: &Option<Tensor>, rows: usize| match mask {
            Some(mask) => {
                let mask = place.mask(OP, name, mask, rows)?;
                Ok::<_, Error>(Some((pack_bits(executor, mask.bytes())?, rows)))
            }
            None => Ok(None),
        };
        let affinity = pairs.affinity.as_ref().map(|(q, k, map)| {
            let sides = (place.matrix(OP, "old_queries", q)?, place.matrix(OP, "old_keys", k)?);
            Ok::<_, Error>((sides.0, sides.1, *map))
        });
        let weights = pairs.denominator_weights.as_ref();
        Ok(Self {
            queries: place.matrix(OP, "queries", queries)?,
            keys: place.matrix(OP, "keys", keys)?,
            temperatures: place.vector(OP, temperature.detach().flatten_all()?)?,
            rule: PlacedRule::new(place, &pairs.rule, b, n)?,
            affinity: affinity.transpose()?,
            anchors: bits("anchors", &pairs.anchors, b)?,
            valid: bits("valid", &pairs.valid, n)?,
            credible: bits("credible_positives", &pairs.credible, n)?,
            denominator_weights: weights
                .map(|weights| place.floats(OP, "denominator_weights", weights, n))
                .transpose()?,
            same_id: sides(["query_ids", "key_ids"], &pairs.same_id)?,
            left_out_labels: sides(["query_labels", "key_labels"], &pairs.left_out_labels)?,
            pace: pairs.pace.as_ref().map(|pace| PlacedPace::new(place, pace, b, n)).transpose()?,
            options: *options,
        })
    }

    /// The problem as the wrappers of the kernels take it.
    pub(super) fn problem(&self) -> Result<Problem<'_>> {
        fn both(sides: &Sides) -> Option<(Words<'_>, Words<'_>)> {
            sides.as_ref().map(|(q, k)| (q.words(), k.words()))
        }
        fn bits(bits: &Bits) -> Result<Option<Words<'_>>> {
            match bits {
                Some((memory, rows)) => Ok(Some(Words::new(OP, "mask", memory, rows.div_ceil(32))?)),
                None => Ok(None),
            }
        }
        Ok(Problem {
            queries: self.queries.matrix(),
            keys: self.keys.matrix(),
            temperatures: self.temperatures.words(),
            pairs: kernels::Pairs {
                rule: self.rule.rule(),
                affinity: self.affinity.as_ref().map(|(q, k, map)| Affinity {
                    queries: q.matrix(),
                    keys: k.matrix(),
                    map: *map,
                }),
                anchors: bits(&self.anchors)?,
                valid: bits(&self.valid)?,
                credible: bits(&self.credible)?,
                denominator_weights: self.denominator_weights.as_ref().map(PlacedVector::words),
                same_id: both(&self.same_id),
                left_out_labels: both(&self.left_out_labels),
                pace: self.pace.as_ref().map(PlacedPace::pace),
            },
            options: self.options,
        })
    }
}

impl PlacedPace {
    fn new(place: &Place, pace: &Pace, b: usize, n: usize) -> Result<Self> {
        let groups = (
            place.labels(OP, "query_groups", &pace.groups.0, b)?,
            place.labels(OP, "key_groups", &pace.groups.1, n)?,
        );
        let order = |groups: &PlacedVector| segments::sort(place.executor(), groups.words());
        let orders = (order(&groups.0)?, order(&groups.1)?);
        let closeness = match &pace.closeness {
            Closeness::Times { queries, keys, scale } => PlacedCloseness::Times(
                place.floats(OP, "query_times", queries, b)?,
                place.floats(OP, "key_times", keys, n)?,
                *scale as f32,
            ),
            Closeness::Features { queries, keys } => PlacedCloseness::Features(
                place.matrix(OP, "query_features", queries)?,
                place.matrix(OP, "key_features", keys)?,
            ),
        };
        Ok(Self { groups, orders, closeness, pace: pace.pace as f32, admission: pace.admission })
    }

    fn pace(&self) -> kernels::Pace<'_> {
        kernels::Pace {
            groups: (self.groups.0.words(), self.groups.1.words()),
            orders: (&self.orders.0, &self.orders.1),
            closeness: match &self.closeness {
                PlacedCloseness::Times(queries, keys, scale) => {
                    kernels::Closeness::Times { queries: queries.words(), keys: keys.words(), scale: *scale }
                }
                PlacedCloseness::Features(queries, keys) => {
                    kernels::Closeness::Features { queries: queries.matrix(), keys: keys.matrix() }
                }
            },
            pace: self.pace,
            admission: self.admission,
        }
    }
}

impl PlacedRule {
    fn new(place: &Place, rule: &Rule, b: usize, n: usize) -> Result<Self> {
        Ok(match rule {
            Rule::Labels(q, k) => {
                let (q, k) = (place.labels(OP, "query_labels", q, b)?, place.labels(OP, "key_labels", k, n)?);
                let order = segments::sort(place.executor(), k.words())?;
                Self::Labels(q, k, order)
            }
            Rule::Diagonal => Self::Diagonal,
            Rule::Lists { indices, .. } => {
                let Lists { offsets, indices: keys, weights } = Lists::read(rule, b)?;
                let device = indices.device();
                let vector = |words: Vec<u32>| {
                    let len = words.len();
                    place.vector(OP, Tensor::from_vec(words, len, device)?)
                };
                Self::Lists {
                    offsets: vector(offsets)?,
                    indices: vector(keys)?,
                    weights: weights
                        .map(|weights| vector(bytemuck::cast_vec::<f32, u32>(weights)))
                        .transpose()?,
                    padded: false,
                }
            }
            Rule::Neighbors { indices, weights } => neighbors(place, b, indices, weights.as_ref())?,
            Rule::Bits { queries, keys, min_overlap } => {
                let (queries, words) = place.sets(OP, "query_bits", queries, b)?;
                let (keys, of_keys) = place.sets(OP, "key_bits", keys, n)?;
                if of_keys != words {
                    let expected = format!("[{n}, {words}], as many words as the queries'");
                    return Err(Bad::shape(OP, "key_bits", &[n, of_keys], expected).into());
                }
                Self::Bits { queries, keys, words, min_overlap: *min_overlap }
            }
            Rule::All => Self::All,
        })
    }

    fn rule(&self) -> kernels::Rule<'_> {
        match self {
            Self::Labels(queries, keys, key_order) => {
                kernels::Rule::Labels { queries: queries.words(), keys: keys.words(), key_order }
            }
            Self::Diagonal => kernels::Rule::Diagonal,
            Self::Lists { offsets, indices, weights, padded } => kernels::Rule::Lists {
                offsets: offsets.words(),
                indices: indices.words(),
                weights: weights.as_ref().map(PlacedVector::words),
                padded: *padded,
            },
            Self::Bits { queries, keys, words, min_overlap } => kernels::Rule::Bits {
                queries: queries.words(),
                keys: keys.words(),
                words: *words,
                min_overlap: *min_overlap,
            },
            Self::All => kernels::Rule::All,
        }
    }
}

/// The rows of an index matrix, sorted where they are: padding, the largest number, comes last.
fn neighbors(place: &Place, b: usize, indices: &Tensor, weights: Option<&Tensor>) -> Result<PlacedRule> {
    let &[rows, k] = indices.dims() else {
        return Err(Error::Rank { op: OP, argument: "indices", got: indices.rank(), expected: "[B, k]" });
    };
    if rows != b {
        let expected = format!("[{b}, k], one row a query");
        return Err(Bad::shape(OP, "indices", indices.dims(), expected).into());
    }
    if indices.dtype() != DType::U32 {
        return Err(Error::DType { op: OP, argument: "indices", got: indices.dtype(), expected: "u32" });
    }
    let indices = indices.detach().contiguous()?;
    let order = indices.arg_sort_last_dim(true)?;
    let offsets: Vec<u32> = (0..=b).map(|row| (row * k) as u32).collect();
    let weights = match weights {
        Some(weights) if weights.dims() != indices.dims() => {
            let expected = format!("[{b}, {k}], as the indices");
            return Err(Bad::shape(OP, "weights", weights.dims(), expected).into());
        }
        Some(weights) => {
            let sorted = weights.detach().to_dtype(DType::F32)?.contiguous()?.gather(&order, 1)?;
            Some(place.vector(OP, sorted)?)
        }
        None => None,
    };
    Ok(PlacedRule::Lists {
        offsets: place.vector(OP, Tensor::from_vec(offsets, b + 1, indices.device())?)?,
        indices: place.vector(OP, indices.gather(&order, 1)?)?,
        weights,
        padded: true,
    })
}
