//! Builds the Emoji-ID data set from emoji sets on npm, bit for bit the same on every run.
//!
//! `tools/emoji-id.sh` installs the packages and runs this program; `data/emoji-id/README.md` describes the result.

mod build;
mod join;
mod render;
mod sets;
mod sheet;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use consonance_datasets::pack::Pack;
use sha2::{Digest, Sha256};

/// Why the set could not be built.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: version {got}, expected {expected}; install the pinned packages with tools/emoji-id.sh", .path.display())]
    Version { path: PathBuf, got: String, expected: &'static str },
    #[error("{}: license {got}, expected {expected}", .path.display())]
    License { path: PathBuf, got: String, expected: &'static str },
    #[error("icon `{icon}` is named by its set but not drawn")]
    Missing { icon: String },
    #[error("icon `{icon}`: {source}")]
    Svg { icon: String, source: resvg::usvg::Error },
    #[error("{}: {source}", .path.display())]
    Sheet { path: PathBuf, source: image::ImageError },
    #[error(transparent)]
    Pack(#[from] consonance_datasets::Error),
    #[error("{}: SHA-256 {got}, but a rebuild gives {expected}", .path.display())]
    Differs { path: PathBuf, got: String, expected: String },
}

/// Builds the Emoji-ID pack, or checks that the committed one is what a build gives.
#[derive(Parser)]
struct Arguments {
    /// The `node_modules` folder with the pinned packages.
    #[arg(long)]
    packages: PathBuf,
    /// The pack.
    #[arg(long, default_value = "data/emoji-id/emoji-id.bin")]
    pack: PathBuf,
    /// Compare the pack with a rebuild instead of writing it.
    #[arg(long)]
    check: bool,
    /// Also draw contact sheets `sheet-00.png`, `sheet-01.png`, ... into this folder: a row per identity, a column
    /// per style.
    #[arg(long)]
    sheets: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let (pack, counts) = build::build(&arguments.packages)?;
    let bytes = pack.to_bytes()?;
    report(&pack, &counts, &bytes);
    if let Some(folder) = &arguments.sheets {
        sheet::write(&pack, folder)?;
    }
    if arguments.check { check(&arguments.pack, &bytes) } else { replace(&arguments.pack, &bytes) }
}

fn report(pack: &Pack, counts: &build::Counts, bytes: &[u8]) {
    let header = &pack.header;
    let mut lines = vec![
        format!(
            "{} identities, {} images, {} bytes",
            header.identities.len(),
            header.images.len(),
            bytes.len()
        ),
        format!(
            "{} pairs of emoji and style; left out: {} blank, {} ambiguous, {} copies, {} of identities with too few \
             styles",
            counts.joined, counts.blank, counts.ambiguous, counts.copies, counts.lonely
        ),
    ];
    for (at, style) in header.styles.iter().enumerate() {
        let images = header.images.iter().filter(|image| image.style as usize == at).count();
        lines.push(format!("{images:6}  {} ({})", style.name, header.families[style.family as usize]));
    }
    lines.push(format!("SHA-256 {}", sha256(bytes)));
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
}

fn check(path: &Path, expected: &[u8]) -> Result<(), Error> {
    let found = fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    if found == expected {
        return Ok(());
    }
    Err(Error::Differs { path: path.to_path_buf(), got: sha256(&found), expected: sha256(expected) })
}

/// Writes beside the file, then renames: a killed run leaves the old file whole.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let part = path.with_extension("part");
    fs::write(&part, bytes).map_err(|source| Error::Io { path: part.clone(), source })?;
    fs::rename(&part, path).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
