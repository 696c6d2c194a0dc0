//! The table of a run and its plots, on the terminal and as files.

use std::path::Path;

use consonance_metrics::plot::{SelfCross, refresh_curves, self_cross_bars};
use consonance_metrics::{
    Better, Cell, Column, RefreshCurve, Report, Summary, Upgrade, p_comp, p_up, write_atomically,
};

use crate::run::Outcome;
use crate::{Failure, failure};

/// The rows of all seeds: `outcomes[seed][row]`, the old model first, all seeds with the same rows.
pub(crate) struct Table {
    title: String,
    outcomes: Vec<Vec<Outcome>>,
}

impl Table {
    pub(crate) fn new(title: String, outcomes: Vec<Vec<Outcome>>) -> Result<Self, Failure> {
        match outcomes.first().is_some_and(|rows| !rows.is_empty()) {
            true => Ok(Self { title, outcomes }),
            false => Err(failure("a table without rows")),
        }
    }

    fn rows(&self) -> usize {
        self.outcomes[0].len()
    }

    fn name(&self, row: usize) -> &str {
        &self.outcomes[0][row].name
    }

    fn over_seeds(&self, row: usize, value: impl Fn(&Outcome) -> Option<f64>) -> Result<Cell, Failure> {
        let values: Option<Vec<f64>> = self.outcomes.iter().map(|rows| value(&rows[row])).collect();
        Ok(match values {
            Some(values) => Cell::over_seeds(&values)?,
            None => Cell::EMPTY,
        })
    }

    /// P_up or P_comp over the seeds, where the independent model is among the rows.
    fn against_paragon(
        &self,
        row: usize,
        score: fn(&[Upgrade]) -> consonance_metrics::Result<f64>,
    ) -> Result<Cell, Failure> {
        let Some(paragon) = (0..self.rows()).find(|r| self.name(*r) == "independent") else {
            return Ok(Cell::EMPTY);
        };
        let of_seed = |rows: &Vec<Outcome>| {
            let cross = rows[row].cross?.map;
            Some(
                Upgrade::new(rows[0].own.map, rows[paragon].own.map, rows[row].own.map, cross)
                    .and_then(|upgrade| score(&[upgrade])),
            )
        };
        let values: Option<Vec<_>> = self.outcomes.iter().map(of_seed).collect();
        Ok(match values {
            Some(values) => Cell::where_defined(values)?,
            None => Cell::EMPTY,
        })
    }

    /// The table of the metrics.
    pub(crate) fn report(&self) -> Result<Report, Failure> {
        let percent = |name: &str| Column::new(name).percent().decimals(1).better(Better::Higher);
        let columns = ["self mAP", "self CMC@1", "cross mAP", "cross CMC@1", "P_up", "P_comp"];
        let mut report = Report::new(self.title.clone(), "model", columns.map(percent));
        for row in 0..self.rows() {
            report.push(
                self.name(row),
                [
                    self.over_seeds(row, |o| Some(o.own.map))?,
                    self.over_seeds(row, |o| Some(o.own.first))?,
                    self.over_seeds(row, |o| Some(o.cross?.map))?,
                    self.over_seeds(row, |o| Some(o.cross?.first))?,
                    self.against_paragon(row, p_up)?,
                    self.against_paragon(row, p_comp)?,
                ],
            )?;
        }
        report.note(
            "self: queries and gallery by the row's own model; cross: its queries in the old model's gallery. \
             P_up and P_comp (AdvBCT): 50 is as good as the independent model by itself, and as the old system.",
        );
        Ok(report)
    }

    /// Mean refresh curves by name.
    fn curves(&self) -> Result<Vec<(&str, RefreshCurve)>, Failure> {
        let mut curves = Vec::new();
        for row in 0..self.rows() {
            let seeds: Option<Vec<RefreshCurve>> =
                self.outcomes.iter().map(|rows| rows[row].curve.clone()).collect();
            if let Some(seeds) = seeds {
                curves.push((self.name(row), RefreshCurve::mean(&seeds)?));
            }
        }
        Ok(curves)
    }

    /// Writes the table (CSV, Markdown) and the plots (SVG, with the CSV of the curve).
    pub(crate) fn write(&self, out: &Path, command: &str) -> Result<(), Failure> {
        let mut report = self.report()?;
        write_atomically(out.join("table.csv"), report.to_csv()?)?;
        report.note(format!("Command: `{command}`"));
        write_atomically(out.join("table.md"), report.to_markdown())?;

        let old = self.over_seeds(0, |o| Some(o.own.map))?.summary().map(|s| s.mean);
        let curves = self.curves()?;
        if curves.is_empty() {
            return Ok(());
        }
        let mut csv = String::from("refreshed");
        curves.iter().for_each(|(name, _)| csv += &format!(",{name}"));
        csv.push('\n');
        for (i, (fraction, _)) in curves[0].1.points().iter().enumerate() {
            csv += &fraction.to_string();
            curves.iter().for_each(|(_, curve)| csv += &format!(",{}", curve.points()[i].1));
            csv.push('\n');
        }
        write_atomically(out.join("hot-refresh.csv"), csv)?;
        let borrowed: Vec<(&str, &RefreshCurve)> =
            curves.iter().map(|(name, curve)| (*name, curve)).collect();
        let plot = refresh_curves("New queries while the gallery is refreshed", "mAP", &borrowed, old)?;
        write_atomically(out.join("hot-refresh.svg"), plot)?;

        let mut bars = Vec::new();
        for row in 1..self.rows() {
            let values = |f: fn(&Outcome) -> Option<f64>| -> Result<Option<Summary>, Failure> {
                Ok(self.over_seeds(row, f)?.summary())
            };
            if let Some(self_test) = values(|o| Some(o.own.map))? {
                let cross_test = values(|o| Some(o.cross?.map))?;
                bars.push(SelfCross { name: self.name(row).to_owned(), self_test, cross_test });
            }
        }
        write_atomically(out.join("self-cross.svg"), self_cross_bars(&self.title, "mAP", &bars, old)?)?;
        Ok(())
    }
}
