//! Negatives of the query's own group, which have weights of their own.

use consonance::cuda::contrast as cuda;
use consonance::cuda::{Executor, Memory, Order, Result, Words, segments};
use consonance_cpu::contrast::Admission;
use consonance_reference::contrast as reference;

use super::OnDevice;
use crate::data;
use crate::stored::Stored;

/// What makes two rows of a group close.
#[derive(Debug, Clone)]
pub enum Close {
    /// Of queries and keys, and what their differences are divided by.
    Times(Vec<f32>, Vec<f32>, f32),
    /// Of queries and keys.
    Features(Stored, Stored),
}

/// Groups of both sides, and what weighs the negatives inside them.
#[derive(Debug, Clone)]
pub struct PaceCase {
    /// Groups of the queries.
    pub queries: Vec<u32>,
    /// Groups of the keys.
    pub keys: Vec<u32>,
    /// The affinity inside a group.
    pub close: Close,
    /// ρ.
    pub pace: f32,
    /// From affinity to weight.
    pub admission: Admission,
}

impl PaceCase {
    /// u_ij of a negative, as it is defined; 1 outside the query's group.
    pub fn weight(&self, i: usize, j: usize) -> f64 {
        if self.queries[i] != self.keys[j] {
            return 1.0;
        }
        let affinity = match &self.close {
            Close::Times(left, right, scale) => {
                (-(f64::from(left[i]) - f64::from(right[j])).abs() / f64::from(*scale)).exp()
            }
            Close::Features(left, right) => reference::affinity_half(reference::cosine(
                &data::widen(left.row(i)),
                &data::widen(right.row(j)),
            )),
        };
        self.admission.weight(affinity, f64::from(self.pace))
    }

    /// The same of some of the queries, in this order.
    pub(super) fn select(&self, queries: &[usize]) -> Self {
        fn pick<T: Copy>(values: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|row| values[*row]).collect()
        }
        let close = match &self.close {
            Close::Times(left, right, scale) => Close::Times(pick(left, queries), right.clone(), *scale),
            Close::Features(left, right) => Close::Features(left.select(queries), right.clone()),
        };
        Self { queries: pick(&self.queries, queries), close, ..self.clone() }
    }
}

/// What of it lies in the memory of a device.
pub(super) struct PlacedPace {
    groups: (Memory, Memory),
    orders: (Order, Order),
    close: (Memory, Memory),
}

fn words(memory: &Memory, len: usize) -> Words<'_> {
    // SAFETY: callers give the length that was uploaded.
    unsafe { Words::from_address(memory.address(), len) }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn place_pace(&self, pace: &PaceCase) -> Result<PlacedPace> {
        let groups = (self.upload(&pace.queries)?, self.upload(&pace.keys)?);
        let sort = |memory: &Memory, len| segments::sort(self.executor(), words(memory, len));
        let orders = (sort(&groups.0, pace.queries.len())?, sort(&groups.1, pace.keys.len())?);
        let close = match &pace.close {
            Close::Times(left, right, _) => (self.floats(left)?, self.floats(right)?),
            Close::Features(left, right) => {
                let upload = |rows: &Stored| self.executor().upload("test", &rows.bytes());
                (upload(left)?, upload(right)?)
            }
        };
        Ok(PlacedPace { groups, orders, close })
    }

    pub(super) fn pace_of<'a>(&self, pace: &'a PaceCase, placed: &'a PlacedPace) -> Result<cuda::Pace<'a>> {
        let PlacedPace { groups, orders, close } = placed;
        Ok(cuda::Pace {
            groups: (words(&groups.0, pace.queries.len()), words(&groups.1, pace.keys.len())),
            orders: (&orders.0, &orders.1),
            closeness: match &pace.close {
                Close::Times(left, right, scale) => cuda::Closeness::Times {
                    queries: words(&close.0, left.len()),
                    keys: words(&close.1, right.len()),
                    scale: *scale,
                },
                Close::Features(left, right) => cuda::Closeness::Features {
                    queries: self.matrix(left, &close.0)?,
                    keys: self.matrix(right, &close.1)?,
                },
            },
            pace: pace.pace,
            admission: pace.admission,
        })
    }
}
