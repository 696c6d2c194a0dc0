//! The whole program on a small data set of Market-1501's layout.

use std::path::Path;

use clap::Parser;

use crate::options::Arguments;
use crate::{Failure, work};

/// Eight training and six test identities, two cameras, squares of a color of their own.
fn market(folder: &Path) -> Result<(), Failure> {
    for part in ["bounding_box_train", "query", "bounding_box_test"] {
        std::fs::create_dir_all(folder.join(part))?;
    }
    let save = |part: &str, identity: u32, camera: u32, frame: u32| -> Result<(), Failure> {
        let image = image::RgbImage::from_fn(16, 32, |x, y| {
            let shade = |k: u32| ((identity * (37 + k) * 11 + k * 60 + camera * 8) % 256) as u8;
            let inside = (x + frame) / 4 % 2 == (y / 8) % 2;
            image::Rgb(if inside { [shade(1), shade(2), shade(3)] } else { [200, 200, 200] })
        });
        Ok(image.save(folder.join(part).join(format!("{identity:04}_c{camera}s1_{frame:06}_01.png")))?)
    };
    for identity in 1..=14 {
        for camera in 1..=2 {
            for frame in 1..=2 {
                match identity {
                    1..=8 => save("bounding_box_train", identity, camera, frame)?,
                    _ if frame == 1 => save("query", identity, camera, frame)?,
                    _ => save("bounding_box_test", identity, camera, frame)?,
                }
            }
        }
    }
    Ok(())
}

fn run(data: &Path, out: &Path, more: &[&str]) -> Result<(), Failure> {
    let mut line = vec!["upgrade".into(), "--data".into(), data.display().to_string()];
    line.extend(["--out".into(), out.display().to_string()]);
    if !more.contains(&"--size") {
        line.extend(["--size".into(), "32x16".into()]);
    }
    line.extend(more.iter().map(|x| (*x).to_owned()));
    work(&Arguments::try_parse_from(line)?)
}

fn message(result: Result<(), Failure>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn a_run_writes_its_files_and_resumes_only_as_itself() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let (data, out) = (folder.path().join("market"), folder.path().join("out"));
    market(&data)?;
    let same = ["--epochs", "1", "--seeds", "2", "--label-noise", "0.2"];
    run(&data, &out, &same)?;
    let files =
        ["table.csv", "table.md", "hot-refresh.svg", "hot-refresh.csv", "config.json", "label-noise.csv"];
    for file in files {
        assert!(out.join(file).metadata()?.len() > 0, "{file}");
    }
    for file in ["embeddings/bct", "embeddings/old", "banks/old-train", "banks/old-gallery"] {
        assert!(out.join("seed-2").join(format!("{file}.safetensors")).exists(), "{file}");
    }
    let table = std::fs::read_to_string(out.join("table.csv"))?;
    for row in ["old", "independent", "procrustes", "bct", "neighborhood-consensus"] {
        assert!(table.contains(&format!("\n{row},")), "{row}: {table}");
    }

    // Everything is there already: the numbers are the same, and nothing is trained again.
    let checkpoint = out.join("seed-1/checkpoints/bct.safetensors");
    let before = checkpoint.metadata()?.modified()?;
    run(&data, &out, &["--epochs", "1", "--seeds", "2", "--label-noise", "0.2", "--resume"])?;
    assert_eq!(std::fs::read_to_string(out.join("table.csv"))?, table);
    assert_eq!(checkpoint.metadata()?.modified()?, before);

    let other =
        message(run(&data, &out, &["--epochs", "2", "--seeds", "2", "--label-noise", "0.2", "--resume"]));
    assert!(other.contains("`new.epochs` is 1 there and 2 here") || other.contains("epochs"), "{other}");
    let other = message(run(&data, &out, &["--epochs", "1", "--seeds", "2", "--resume"]));
    assert!(other.contains("`label_noise` is 0.2 there and null here"), "{other}");
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let (data, out) = (folder.path().join("market"), folder.path().join("out"));
    let missing = message(run(&data, &out, &[]));
    assert!(missing.contains(&data.display().to_string()), "{missing}");
    market(&data)?;
    for (arguments, part) in [
        (["--epochs", "0"], "--epochs"),
        (["--seeds", "0"], "--seeds"),
        (["--methods", "nonsense"], "`nonsense`"),
        (["--label-noise", "2"], "between 0 and 1"),
        (["--size", "31x16"], "multiples of 8"),
    ] {
        let said = message(run(&data, &out, &arguments));
        assert!(said.contains(part), "{arguments:?}: {said}");
        assert!(!out.exists(), "{arguments:?} left files");
    }
    std::fs::write(data.join("query/0009_c1s1_000001_01.png"), b"not an image")?;
    let unreadable = message(run(&data, &out, &["--epochs", "1"]));
    assert!(unreadable.contains("0009_c1s1_000001_01.png"), "{unreadable}");
    Ok(())
}
