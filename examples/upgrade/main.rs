//! Upgrade an embedding model without re-indexing: the whole path on one machine.
//!
//! ```sh
//! cargo run --release --example upgrade
//! ```
//!
//! An old model is trained on 30 % of the training identities, then wider new models on all of them: alone, and with
//! methods that keep their embeddings comparable with the old ones. On identities that no model has seen, every model is
//! tested by itself (self), and with its queries in the old model's gallery (cross). `--help` says what else there is.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal

mod augment;
mod checkpoint;
mod evaluate;
mod layers;
mod network;
mod noise;
mod optimizer;
mod options;
mod progress;
mod random;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod trainer;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use consonance_datasets::{Dataset, emoji_id, market_layout};
use consonance_metrics::write_atomically;

use options::{Arguments, Config};
use progress::Progress;
use report::Table;
use run::Run;

/// Any error, in words for the user.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A [`Failure`] with a message.
pub(crate) fn failure(message: impl Into<String>) -> Failure {
    message.into().into()
}

fn load(arguments: &Arguments) -> Result<Dataset, Failure> {
    Ok(match &arguments.data {
        Some(folder) => market_layout(folder, arguments.size.0, arguments.size.1)?,
        None => emoji_id()?,
    })
}

/// Starts a run's folder, or checks that it is the same run's.
fn prepare(arguments: &Arguments, config: &Config, progress: &Progress) -> Result<(), Failure> {
    let out = &arguments.out;
    let path = out.join("config.json");
    if arguments.resume && path.exists() {
        return config.check_same(&path);
    }
    if arguments.resume {
        progress.say(&format!("--resume: `{}` holds no run yet, starting one", out.display()));
    }
    // What an earlier run has left must not be taken for this one's.
    for seed in &config.seeds {
        let checkpoints = out.join(format!("seed-{seed}")).join("checkpoints");
        if checkpoints.exists() {
            std::fs::remove_dir_all(&checkpoints)
                .map_err(|e| failure(format!("{}: {e}", checkpoints.display())))?;
        }
    }
    Ok(write_atomically(path, config.to_json()?)?)
}

fn work(arguments: &Arguments) -> Result<(), Failure> {
    let progress = Progress::new();
    let data = load(arguments)?;
    let config = Config::new(arguments, &data)?;
    prepare(arguments, &config, &progress)?;
    progress.say(&format!(
        "{}: {} training images of {} identities, {} queries in a gallery of {}",
        data.name,
        data.train.len(),
        data.train_identities,
        data.query.len(),
        data.gallery.len()
    ));
    let out: &Path = &arguments.out;
    let (mut tables, mut noises) = (Vec::new(), Vec::new());
    for &seed in &config.seeds {
        let run = Run { config: &config, data: &data, out, seed, progress: &progress };
        let (old, outcome) = run.old()?;
        let mut rows = vec![outcome];
        rows.extend(run.rows(&old)?);
        tables.push(rows);
        if let Some(share) = config.label_noise {
            noises.push(noise::noise(&run, &old, share)?);
        }
    }
    let title = format!("{}: test identities, {} seed(s)", data.name, config.seeds.len());
    let table = Table::new(title, tables)?;
    let command: Vec<String> = std::env::args().skip(1).collect();
    table.write(
        out,
        format!("cargo run --release --example upgrade -- {}", command.join(" ")).trim_end_matches(" -- "),
    )?;
    println!("{}", table.report()?.to_terminal());
    if let Some(share) = config.label_noise {
        println!("{}", noise::report(&noises, share, out)?.to_terminal());
    }
    println!("written to {}: table.md, table.csv, hot-refresh.svg and more", out.display());
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = arguments.threads.unwrap_or(0);
    let done = match rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        Ok(()) => work(&arguments),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
