//! A table of methods, for the terminal, for Markdown and for a spreadsheet.

use comfy_table::{Attribute, CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Summary};

/// Which values of a column are the good ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    /// Large values.
    Higher,
    /// Small values.
    Lower,
    /// No value is better than another: nothing is set in bold.
    #[default]
    Neither,
}

/// A column of a [`Report`]: its name, and how its values are printed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    name: String,
    decimals: usize,
    percent: bool,
    better: Better,
}

impl Column {
    /// A column whose values are printed as they are, with three decimals.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), decimals: 3, percent: false, better: Better::Neither }
    }

    /// The number of decimals in the printed table. CSV always holds the full value.
    #[must_use]
    pub fn decimals(mut self, decimals: usize) -> Self {
        // Beyond 17 digits there is nothing left of an f64.
        self.decimals = decimals.min(17);
        self
    }

    /// The values are fractions, and print as percents. CSV keeps the fractions.
    #[must_use]
    pub fn percent(mut self) -> Self {
        self.percent = true;
        self
    }

    /// Which values are the good ones; the best of the column is set in bold.
    #[must_use]
    pub fn better(mut self, better: Better) -> Self {
        self.better = better;
        self
    }

    /// The heading.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn number(&self, value: f64) -> String {
        let scaled = if self.percent { 100.0 * value } else { value };
        format!("{scaled:.*}", self.decimals)
    }

    fn text(&self, cell: &Cell) -> String {
        match cell.0 {
            None => "–".into(),
            Some(Summary { mean, spread: None, .. }) => self.number(mean),
            Some(Summary { mean, spread: Some(spread), .. }) => {
                format!("{} ± {}", self.number(mean), self.number(spread))
            }
        }
    }
}

/// A value of a [`Report`], with its spread over seeds if there were several; or nothing, where a method has no such value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell(Option<Summary>);

impl Cell {
    /// No value: "–" in the table, empty in CSV.
    pub const EMPTY: Self = Self(None);

    /// One value per seed.
    ///
    /// # Errors
    /// As [`Summary::of`].
    pub fn over_seeds(values: &[f64]) -> Result<Self> {
        Summary::of(values).map(|summary| Self(Some(summary)))
    }

    /// The values over the seeds at which a metric is defined, or the empty cell if it is defined at none of them; other errors
    /// than [`Error::Undefined`] are passed on. Takes the results of a metric as they come.
    ///
    /// # Errors
    /// Any error of `values` that is not [`Error::Undefined`], and those of [`Summary::of`].
    pub fn where_defined(values: impl IntoIterator<Item = Result<f64>>) -> Result<Self> {
        let mut defined = Vec::new();
        for value in values {
            match value {
                Ok(value) => defined.push(value),
                Err(Error::Undefined { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if defined.is_empty() { Ok(Self::EMPTY) } else { Self::over_seeds(&defined) }
    }

    /// The mean and the spread, unless the cell is empty.
    pub fn summary(&self) -> Option<Summary> {
        self.0
    }
}

impl From<Summary> for Cell {
    fn from(summary: Summary) -> Self {
        Self(Some(summary))
    }
}

/// A table with one row per method.
///
/// ```
/// use consonance_metrics::{Better, Cell, Column, Report};
///
/// let mut report = Report::new("mAP on held-out identities", "method", [
///     Column::new("self").percent().decimals(1).better(Better::Higher),
///     Column::new("cross").percent().decimals(1).better(Better::Higher),
/// ]);
/// report.push("independent", [Cell::over_seeds(&[0.25, 0.375])?, Cell::EMPTY])?;
/// report.push("BCT", [Cell::over_seeds(&[0.5])?, Cell::over_seeds(&[0.25])?])?;
/// assert_eq!(report.to_markdown(), "\
/// **mAP on held-out identities**
///
/// | method | self (%) | cross (%) |
/// |---|---:|---:|
/// | independent | 31.2 ± 8.8 | – |
/// | BCT | **50.0** | **25.0** |
/// ");
/// # Ok::<(), consonance_metrics::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    title: String,
    row_heading: String,
    columns: Vec<Column>,
    rows: Vec<(String, Vec<Cell>)>,
    notes: Vec<String>,
}

impl Report {
    /// An empty table. `row_heading` stands above the names of the rows.
    pub fn new(
        title: impl Into<String>,
        row_heading: impl Into<String>,
        columns: impl IntoIterator<Item = Column>,
    ) -> Self {
        Self {
            title: title.into(),
            row_heading: row_heading.into(),
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Length`] if there is not exactly one cell per column.
    pub fn push(&mut self, name: impl Into<String>, cells: impl IntoIterator<Item = Cell>) -> Result<()> {
        let cells: Vec<_> = cells.into_iter().collect();
        if cells.len() != self.columns.len() {
            return Err(Error::Length {
                op: "report",
                argument: "cells".into(),
                got: cells.len(),
                expected: format!("{}, one per column", self.columns.len()),
            });
        }
        self.rows.push((name.into(), cells));
        Ok(())
    }

    /// Adds a line below the table.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The names of the rows with their cells, in the order in which they came.
    pub fn rows(&self) -> &[(String, Vec<Cell>)] {
        &self.rows
    }

    /// The columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The table for a terminal, with the best values in bold where standard output is one.
    pub fn to_terminal(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(self.headings());
        for (name, cells) in &self.rows {
            let mut line = vec![comfy_table::Cell::new(one_line(name))];
            for (column, cell) in cells.iter().enumerate() {
                let mut shown = comfy_table::Cell::new(self.columns[column].text(cell));
                if self.is_best(column, cell) {
                    shown = shown.add_attribute(Attribute::Bold);
                }
                line.push(shown);
            }
            table.add_row(line);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = String::new();
        if !self.title.is_empty() {
            text += &format!("{}\n", one_line(&self.title));
        }
        text += &format!("{table}\n");
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        text
    }

    /// The table as Markdown, with the best values in bold.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        if !self.title.is_empty() {
            text += &format!("**{}**\n\n", one_line(&self.title));
        }
        let headings: Vec<_> = self.headings().iter().map(|heading| markdown(heading)).collect();
        text += &format!("| {} |\n|---{}|\n", headings.join(" | "), "|---:".repeat(self.columns.len()));
        for (name, cells) in &self.rows {
            let mut line = vec![markdown(name)];
            for (column, cell) in cells.iter().enumerate() {
                let shown = self.columns[column].text(cell);
                line.push(if self.is_best(column, cell) { format!("**{shown}**") } else { shown });
            }
            text += &format!("| {} |\n", line.join(" | "));
        }
        for note in &self.notes {
            text += &format!("\n{note}\n");
        }
        text
    }

    /// The table as CSV (RFC 4180), with full precision and no rounding: for every column its mean, the spread over seeds and
    /// the number of seeds, the latter two under the column's name and "spread" or "seeds". Fractions stay fractions.
    ///
    /// # Errors
    /// [`Error::Csv`], which would be a defect of the CSV writer: it writes to memory.
    pub fn to_csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let failed = |error: csv::Error| Error::Csv(error.to_string());
        let mut line = vec![self.row_heading.clone()];
        for column in &self.columns {
            line.extend([
                column.name.clone(),
                format!("{} spread", column.name),
                format!("{} seeds", column.name),
            ]);
        }
        writer.write_record(&line).map_err(failed)?;
        for (name, cells) in &self.rows {
            let mut line = vec![name.clone()];
            for cell in cells {
                line.extend(match cell.0 {
                    None => [String::new(), String::new(), String::new()],
                    Some(Summary { mean, spread, runs }) => {
                        [mean.to_string(), spread.map_or(String::new(), |s| s.to_string()), runs.to_string()]
                    }
                });
            }
            writer.write_record(&line).map_err(failed)?;
        }
        let bytes = writer.into_inner().map_err(|error| Error::Csv(error.to_string()))?;
        String::from_utf8(bytes).map_err(|error| Error::Csv(error.to_string()))
    }

    fn headings(&self) -> Vec<String> {
        let columns = self.columns.iter().map(|column| {
            let unit = if column.percent { " (%)" } else { "" };
            one_line(&format!("{}{unit}", column.name))
        });
        std::iter::once(one_line(&self.row_heading)).chain(columns).collect()
    }

    /// Whether no other row has a better mean in the column, as the table prints it: values that print the same are equal.
    fn is_best(&self, column: usize, cell: &Cell) -> bool {
        let shape = &self.columns[column];
        let Some(own) = cell.0 else { return false };
        let others = self.rows.iter().filter_map(|(_, cells)| cells[column].0);
        let same = |a: f64, b: f64| shape.number(a) == shape.number(b);
        match shape.better {
            Better::Neither => false,
            Better::Higher => others.map(|o| o.mean).all(|other| own.mean >= other || same(own.mean, other)),
            Better::Lower => others.map(|o| o.mean).all(|other| own.mean <= other || same(own.mean, other)),
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn markdown(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let columns = [
            Column::new("cross mAP").percent().decimals(1).better(Better::Higher),
            Column::new("NFR").decimals(2).better(Better::Lower),
            Column::new("epochs").decimals(0),
        ];
        let mut report = Report::new("Upgrade, 3 seeds", "method", columns);
        let cell = |values: &[f64]| Cell::over_seeds(values).unwrap();
        report.push("old", [cell(&[0.25]), Cell::EMPTY, cell(&[10.0])]).unwrap();
        report.push("a | b", [cell(&[0.25, 0.5, 0.75]), cell(&[0.125]), cell(&[10.0])]).unwrap();
        report.push("close", [cell(&[0.5001]), cell(&[0.5]), cell(&[10.0])]).unwrap();
        report.note("Mean ± standard deviation over seeds.");
        report
    }

    #[test]
    fn markdown_by_hand() {
        // 0.5 and 0.5001 print the same, so both are best.
        let expected = "\
**Upgrade, 3 seeds**

| method | cross mAP (%) | NFR | epochs |
|---|---:|---:|---:|
| old | 25.0 | – | 10 |
| a \\| b | **50.0 ± 25.0** | **0.12** | 10 |
| close | **50.0** | 0.50 | 10 |

Mean ± standard deviation over seeds.
";
        assert_eq!(example().to_markdown(), expected);
    }

    #[test]
    fn csv_by_hand() {
        let expected = "\
method,cross mAP,cross mAP spread,cross mAP seeds,NFR,NFR spread,NFR seeds,epochs,epochs spread,epochs seeds
old,0.25,,1,,,,10,,1
a | b,0.5,0.25,3,0.125,,1,10,,1
close,0.5001,,1,0.5,,1,10,,1
";
        assert_eq!(example().to_csv().unwrap(), expected);
    }

    #[test]
    fn terminal_by_hand() {
        let expected = "\
Upgrade, 3 seeds
┌────────┬───────────────┬──────┬────────┐
│ method ┆ cross mAP (%) ┆  NFR ┆ epochs │
╞════════╪═══════════════╪══════╪════════╡
│ old    ┆          25.0 ┆    – ┆     10 │
│ a | b  ┆   50.0 ± 25.0 ┆ 0.12 ┆     10 │
│ close  ┆          50.0 ┆ 0.50 ┆     10 │
└────────┴───────────────┴──────┴────────┘
Mean ± standard deviation over seeds.
";
        // A terminal adds bold letters; the text is the same.
        let mut plain = String::new();
        let mut escape = false;
        for c in example().to_terminal().chars() {
            match c {
                '\x1b' => escape = true,
                'm' if escape => escape = false,
                c if !escape => plain.push(c),
                _ => {}
            }
        }
        assert_eq!(plain, expected);
    }

    #[test]
    fn undefined_seeds_are_left_out_and_errors_are_not() {
        let undefined = || Err(Error::undefined("update gain", "no room"));
        let cell = Cell::where_defined([Ok(0.5), undefined(), Ok(1.5)]).unwrap();
        assert_eq!(cell.summary().map(|s| (s.mean, s.runs)), Some((1.0, 2)));
        assert_eq!(Cell::where_defined([undefined()]).unwrap(), Cell::EMPTY);
        assert!(Cell::where_defined([Err(Error::range("x", "y", 1, "z"))]).is_err());
        assert!(Cell::over_seeds(&[]).is_err());
    }

    #[test]
    fn a_row_of_the_wrong_length_is_refused() {
        let message = example().push("short", [Cell::EMPTY]).unwrap_err().to_string();
        assert!(message.contains("`cells` has length 1, expected 3"), "{message}");
    }

    #[test]
    fn a_name_with_commas_and_quotes_survives_csv() {
        let mut report = Report::new("", "method", [Column::new("x")]);
        report.push("BCT, \"λ = 1\"", [Cell::EMPTY]).unwrap();
        assert_eq!(report.to_csv().unwrap().lines().nth(1), Some("\"BCT, \"\"λ = 1\"\"\",,,"));
        assert!(report.to_markdown().starts_with("| method | x |"));
    }
}
