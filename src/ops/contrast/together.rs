//! Both directions of a loss on the CPU, where they share their products.

use candle_core::Tensor;
use consonance_cpu::contrast::{Plan, Symmetric, SymmetricForward, may_be_short};

use super::data::Data;
use super::{ContrastOptions, OP, Pairs};
use crate::Result;
use crate::ops::view::{Matrix, check_cpu};

/// The losses of x against y and of y against x, and what their gradients need.
pub(super) struct Together {
    data: [Data; 2],
    options: ContrastOptions,
    temperature: [f32; 1],
    plans: [Plan; 2],
    found: SymmetricForward,
}

impl Together {
    /// `None` where two losses are the way. `temperature` is one for all.
    pub(super) fn new(
        [x, y, temperature]: [&Tensor; 3],
        pairs: [&Pairs; 2],
        options: &ContrastOptions,
    ) -> Result<Option<Self>> {
        let (b, n) = (x.dims()[0], y.dims()[0]);
        if !may_be_short(b, n, x.dims()[1], options.products) {
            return Ok(None);
        }
        let data = [Data::read(pairs[0], b, n)?, Data::read(pairs[1], n, b)?];
        check_cpu(OP, "temperature", temperature)?;
        let temperature = [temperature.detach().flatten_all()?.to_vec1::<f32>()?[0]];
        let views = (Matrix::new(OP, "x", x)?, Matrix::new(OP, "y", y)?);
        let guards = (views.0.lock(), views.1.lock());
        let (x, y) = (guards.0.rows()?, guards.1.rows()?);
        data[0]
            .with_problem(x, y, &temperature, options, |rows| {
                data[1].with_problem(y, x, &temperature, options, |columns| {
                    let plans = [Plan::new(rows)?, Plan::new(columns)?];
                    let symmetric = Symmetric { rows: (rows, &plans[0]), columns: (columns, &plans[1]) };
                    Ok(symmetric.is_short().then(|| symmetric.forward()).map(|found| (plans, found)))
                })
            })
            .map(|found| {
                found.map(|(plans, found)| Self { data, options: *options, temperature, plans, found })
            })
    }

    /// L_i of x, then of y.
    pub(super) fn per_row(&self) -> Vec<f32> {
        [&self.found.rows.per_row[..], &self.found.columns.per_row[..]].concat()
    }

    /// ln of the rows' denominators, of x, then of y.
    pub(super) fn log_sum_exp(&self) -> Vec<f32> {
        [&self.found.rows.log_sum_exp[..], &self.found.columns.log_sum_exp[..]].concat()
    }

    /// The number of counted rows of x and of y.
    pub(super) fn anchors(&self) -> [usize; 2] {
        [self.found.rows.anchors(), self.found.columns.anchors()]
    }

    /// The gradients of x, y and the temperature that are tracked, `g` for each row of x, then of y.
    pub(super) fn gradients(
        &self,
        g: &Tensor,
        [x, y, temperature]: [&Tensor; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        let g = g.to_vec1::<f32>()?;
        let (of_rows, of_columns) = g.split_at(x.dims()[0]);
        let views = (Matrix::new(OP, "x", x)?, Matrix::new(OP, "y", y)?);
        let guards = (views.0.lock(), views.1.lock());
        let sides = (guards.0.rows()?, guards.1.rows()?);
        let [of_x, of_y] =
            self.data[0].with_problem(sides.0, sides.1, &self.temperature, &self.options, |rows| {
                self.data[1].with_problem(sides.1, sides.0, &self.temperature, &self.options, |columns| {
                    let (rows, columns) = ((rows, &self.plans[0]), (columns, &self.plans[1]));
                    Ok(Symmetric { rows, columns }.gradients(&self.found, of_rows, of_columns))
                })
            })?;
        // Scores are proportional to 1/τ, and of both directions the same: ∂L/∂τ = −Σ_i ⟨x_i, ∂L/∂x_i⟩/τ.
        let along = || -> Result<f64> {
            let (mut row, mut sum) = (vec![0.0f32; sides.0.cols()], 0.0);
            for (i, gradient) in of_x.chunks_exact(sides.0.cols()).enumerate() {
                sides.0.load_row(i, &mut row);
                sum += row.iter().zip(gradient).map(|(x, g)| f64::from(*x) * f64::from(*g)).sum::<f64>();
            }
            Ok(-sum / f64::from(self.temperature[0]))
        };
        let of_temperature = match temperature.track_op() {
            true => Some(Tensor::from_vec(vec![along()? as f32], temperature.shape(), temperature.device())?),
            false => None,
        };
        let tensor = |gradient: Vec<f32>, of: &Tensor| -> Result<Option<Tensor>> {
            if !of.track_op() {
                return Ok(None);
            }
            Ok(Some(Tensor::from_vec(gradient, of.shape(), of.device())?.to_dtype(of.dtype())?))
        };
        Ok([tensor(of_x, x)?, tensor(of_y, y)?, of_temperature])
    }
}
