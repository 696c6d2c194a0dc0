//! Wrong labels among the old embeddings, and what the credibility filter makes of them.

use std::path::Path;

use consonance::{CredibilityOptions, credibility};
use consonance_methods::{CredibilityConfig, MethodConfig, NeighborhoodConsensusConfig};
use consonance_metrics::{Better, Cell, Column, Report, Roc, plot::roc_curves, write_atomically};

use crate::random::Draws;
use crate::run::{OldSide, Outcome, Run};
use crate::{Failure, failure};

/// False alarms at which the filter's hits are reported.
const FALSE_ALARMS: f64 = 0.1;

/// What planting wrong labels at one seed comes to.
pub(crate) struct Noise {
    pub(crate) roc: Roc,
    /// Of the filter as the method runs it: the share of the planted ones it drops, and of the sound ones.
    pub(crate) hits: f64,
    pub(crate) alarms: f64,
    pub(crate) without: Outcome,
    pub(crate) with: Outcome,
}

/// Gives `share` of the labels another class, drawn evenly; says which.
fn plant(labels: &[u32], classes: usize, share: f64, seed: u64) -> (Vec<u32>, Vec<bool>) {
    let mut draws = Draws::new(&[seed, 0x6e6f_6973]);
    let count = (share * labels.len() as f64).round() as usize;
    let (mut out, mut wrong) = (labels.to_vec(), vec![false; labels.len()]);
    for row in draws.permutation(labels.len()).into_iter().take(count) {
        let other = draws.below(classes - 1) as u32;
        out[row] = if other < labels[row] { other } else { other + 1 };
        wrong[row] = true;
    }
    (out, wrong)
}

/// Trains neighborhood consensus over a bank with wrong labels, without the filter and with it.
pub(crate) fn noise(run: &Run<'_>, old: &OldSide, share: f64) -> Result<Noise, Failure> {
    let classes = run.data.train_identities;
    if classes < 2 {
        return Err(failure("--label-noise: there is only one identity, and a wrong label needs another"));
    }
    let (labels, wrong) = plant(&old.labels.to_vec1::<u32>()?, classes, share, run.seed);
    let labels = Run::label_tensor(labels)?;
    let found = credibility(&old.train, &labels, &CredibilityOptions::new())?;
    let scores: Vec<f64> = found.suspicion.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let roc = Roc::new(&scores, &wrong)?;
    let dropped: Vec<bool> = found.credible.to_vec1::<u8>()?.into_iter().map(|c| c == 0).collect();
    let rate = |planted: bool| {
        let of: Vec<bool> =
            dropped.iter().zip(&wrong).filter(|(_, w)| **w == planted).map(|(d, _)| *d).collect();
        of.iter().filter(|d| **d).count() as f64 / of.len().max(1) as f64
    };
    let (hits, alarms) = (rate(true), rate(false));
    run.progress.say(&format!(
        "credibility: {:.1} % of the planted labels found at {:.1} % false alarms, area under the ROC {:.3}",
        100.0 * hits,
        100.0 * alarms,
        roc.area()
    ));
    let with_filter = |credibility| {
        MethodConfig::NeighborhoodConsensus(NeighborhoodConsensusConfig { credibility, ..Default::default() })
    };
    let without = run.method("noisy-without-filter", &with_filter(None), old, &labels)?;
    let filter = with_filter(Some(CredibilityConfig::default()));
    let with = run.method("noisy-with-filter", &filter, old, &labels)?;
    Ok(Noise { roc, hits, alarms, without, with })
}

/// Prints and writes the table and the ROC.
pub(crate) fn report(seeds: &[Noise], share: f64, out: &Path) -> Result<Report, Failure> {
    let percent = |name: &str| Column::new(name).percent().decimals(1).better(Better::Higher);
    let columns = [
        percent("self mAP"),
        percent("cross mAP"),
        percent("planted found"),
        Column::new("false alarms").percent().decimals(1).better(Better::Lower),
        percent("found at 10 % false alarms"),
        Column::new("area under the ROC").better(Better::Higher),
    ];
    let title =
        format!("Neighborhood consensus with {:.0} % wrong labels among the old embeddings", 100.0 * share);
    let mut report = Report::new(title, "filter", columns);
    let over = |f: &dyn Fn(&Noise) -> f64| Cell::over_seeds(&seeds.iter().map(f).collect::<Vec<_>>());
    let cross = |outcome: &Outcome| outcome.cross.map_or(f64::NAN, |score| score.map);
    let none = Cell::EMPTY;
    let without = [over(&|n| n.without.own.map)?, over(&|n| cross(&n.without))?, none, none, none, none];
    report.push("none", without)?;
    let budgets: Result<Vec<f64>, _> =
        seeds.iter().map(|n| n.roc.at_false_alarms(FALSE_ALARMS).map(|point| point.hits)).collect();
    report.push(
        "credibility",
        [
            over(&|n| n.with.own.map)?,
            over(&|n| cross(&n.with))?,
            over(&|n| n.hits)?,
            over(&|n| n.alarms)?,
            Cell::over_seeds(&budgets?)?,
            over(&|n| n.roc.area())?,
        ],
    )?;
    write_atomically(out.join("label-noise.csv"), report.to_csv()?)?;
    write_atomically(out.join("label-noise.md"), report.to_markdown())?;
    let names: Vec<String> = (1..=seeds.len()).map(|i| format!("run {i}")).collect();
    let curves: Vec<(&str, &Roc)> =
        names.iter().map(String::as_str).zip(seeds.iter().map(|n| &n.roc)).collect();
    let plot = roc_curves("Wrong labels found by credibility", &curves, Some(FALSE_ALARMS))?;
    write_atomically(out.join("label-noise-roc.svg"), plot)?;
    let mut csv = String::from("run,false alarms,hits\n");
    for (name, roc) in &curves {
        roc.points().iter().for_each(|p| csv += &format!("{name},{},{}\n", p.false_alarms, p.hits));
    }
    write_atomically(out.join("label-noise-roc.csv"), csv)?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_labels_are_wrong_and_as_many_as_asked() {
        let labels: Vec<u32> = (0..1000).map(|i| i % 7).collect();
        let (out, wrong) = plant(&labels, 7, 0.1, 3);
        assert_eq!(wrong.iter().filter(|w| **w).count(), 100);
        for i in 0..1000 {
            assert_eq!(out[i] != labels[i], wrong[i]);
            assert!(out[i] < 7);
        }
        assert_eq!(plant(&labels, 7, 0.1, 3).0, out);
    }
}
