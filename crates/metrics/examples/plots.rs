//! Draws every kind of plot and prints a table, from made-up numbers: a look at what the crate produces.
//!
//! `cargo run -p consonance-metrics --example plots` writes to `target/plots/`.

use std::path::Path;

use consonance_metrics::plot::{SelfCross, refresh_curves, roc_curves, self_cross_bars, self_cross_scatter};
use consonance_metrics::{Better, Cell, Column, RefreshCurve, Report, Result, Roc, Summary, Upgrade};
use consonance_metrics::{p_comp, p_one, p_up, write_atomically};

const OLD: f64 = 0.277;
const PARAGON: f64 = 0.362;
/// Method, self-tests and cross-tests of two seeds.
const ROWS: [(&str, [f64; 2], [f64; 2]); 9] = [
    ("independent", [0.362, 0.358], [0.003, 0.004]),
    ("Procrustes", [0.362, 0.358], [0.243, 0.238]),
    ("BCT", [0.399, 0.392], [0.294, 0.291]),
    ("L2", [0.331, 0.338], [0.271, 0.280]),
    ("Hot-Refresh", [0.388, 0.380], [0.285, 0.279]),
    ("UniBCT", [0.395, 0.401], [0.296, 0.306]),
    ("LCE", [0.379, 0.386], [0.301, 0.295]),
    ("MixBCT", [0.391, 0.383], [0.311, 0.302]),
    ("NeighborhoodConsensus", [0.416, 0.409], [0.326, 0.319]),
];

fn main() -> Result<()> {
    let folder = Path::new("target/plots");
    let higher = |name: &str| Column::new(name).percent().decimals(1).better(Better::Higher);
    let mut report = Report::new(
        "mAP on held-out identities",
        "method",
        ["self", "cross", "P_up", "P_comp", "P_1"].map(higher),
    );
    let mut pairs = Vec::new();
    let mut curves = Vec::new();
    for (name, own, cross) in ROWS {
        let upgrades = own.iter().zip(&cross).map(|(own, cross)| Upgrade::new(OLD, PARAGON, *own, *cross));
        let upgrades = upgrades.collect::<Result<Vec<_>>>()?;
        let scores =
            [p_up, p_comp, p_one].map(|score| Cell::where_defined(upgrades.iter().map(|u| score(&[*u]))));
        let [up, comp, one] = scores;
        report.push(name, [Cell::over_seeds(&own)?, Cell::over_seeds(&cross)?, up?, comp?, one?])?;
        let (self_test, cross_test) = (Summary::of(&own)?, Summary::of(&cross)?);
        let bend = |f: f64| cross_test.mean + (self_test.mean - cross_test.mean) * f.powf(1.2);
        let points = (0..=10).map(|i| f64::from(i) / 10.0).map(|f| (f, bend(f)));
        curves.push((name, RefreshCurve::new(points.collect())?));
        pairs.push(SelfCross { name: name.into(), self_test, cross_test: Some(cross_test) });
    }
    report.note("Mean ± standard deviation over 2 seeds.");
    write_atomically(folder.join("table.md"), report.to_markdown())?;
    write_atomically(folder.join("table.csv"), report.to_csv()?)?;
    write_atomically(folder.join("table.txt"), report.to_terminal())?;

    let borrowed: Vec<_> = curves.iter().map(|(name, curve)| (*name, curve)).collect();
    let plot =
        refresh_curves("Hot refresh: mAP while the gallery is re-embedded", "mAP", &borrowed, Some(OLD))?;
    write_atomically(folder.join("refresh.svg"), plot)?;
    let title = "Self-test and cross-test";
    write_atomically(folder.join("bars.svg"), self_cross_bars(title, "mAP", &pairs, Some(OLD))?)?;
    write_atomically(folder.join("scatter.svg"), self_cross_scatter(title, "mAP", &pairs[1..], Some(OLD))?)?;

    // A detector of planted noise: scores spread evenly, those of the planted items shifted up.
    let detector = |shift: f64| {
        let planted: Vec<bool> = (0..2000u32).map(|i| i % 10 == 0).collect();
        let spread = |i: u32| f64::from(i.wrapping_mul(2_654_435_761) >> 8) / 16_777_216.0;
        let scores: Vec<f64> =
            (0..2000u32).map(|i| spread(i) + if i % 10 == 0 { shift } else { 0.0 }).collect();
        Roc::new(&scores, &planted)
    };
    let (good, weak) = (detector(0.8)?, detector(0.3)?);
    let curves = [("sub-clusters", &good), ("class mean", &weak)];
    write_atomically(folder.join("roc.svg"), roc_curves("Planted label noise found", &curves, Some(0.1))?)
}
