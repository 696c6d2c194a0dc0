//! What a run is asked to do, and the configuration that its folder keeps.

use std::path::{Path, PathBuf};

use clap::Parser;
use consonance_datasets::Dataset;
use consonance_methods::{CosineClassifierConfig, Margin, MethodConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::augment::Augmentation;
use crate::network::Architecture;
use crate::optimizer::Schedule;
use crate::trainer::Recipe;
use crate::{Failure, failure};

/// Upgrade an embedding model without re-indexing: trains an old model on 30 % of the identities and wider new models
/// on all of them, and measures whether new queries find their matches among the old model's stored embeddings.
#[derive(Debug, Parser)]
#[command(name = "upgrade", about, long_about = None)]
pub(crate) struct Arguments {
    /// A data set laid out like Market-1501 (bounding_box_train, query, bounding_box_test); the Emoji-ID set that ships
    /// with the repository otherwise.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Height and width of the images that --data reads, in pixels.
    #[arg(long, value_name = "HxW", default_value = "64x32", value_parser = size, requires = "data")]
    pub(crate) size: (usize, usize),
    /// Rows of the table beside the old model: `default`, `all`, or names separated by commas (independent, procrustes,
    /// bct, neighborhood-consensus, ...). A bare name has the settings that did best in docs/tuning.md; a method may have
    /// settings of its own, on top of the published ones: bct+weight=2+scale=30.
    #[arg(long, value_name = "NAMES", default_value = "default")]
    pub(crate) methods: String,
    /// Epochs of every new model; the old one has fewer images and gets twice as many.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) epochs: usize,
    /// A number of seeds (1, 2, ...), or a list of them separated by commas; `7,` is the one seed 7.
    #[arg(long, value_name = "SEEDS", default_value = "1")]
    pub(crate) seeds: String,
    /// The folder for the table, the plots, the embeddings and the checkpoints.
    #[arg(long, value_name = "DIR", default_value = "target/upgrade")]
    pub(crate) out: PathBuf,
    /// Continue the run in --out where it was killed.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Gives this share of the old embeddings wrong labels, and adds what the credibility filter makes of them.
    #[arg(long, value_name = "FRACTION", value_parser = share)]
    pub(crate) label_noise: Option<f64>,
    /// Threads; all cores otherwise. The results do not depend on it.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
    match sides {
        Some((h, w)) if h >= 16 && w >= 16 && h <= 1024 && w <= 1024 && h % 8 == 0 && w % 8 == 0 => {
            Ok((h, w))
        }
        _ => {
            Err(format!("got {text:?}, expected HEIGHTxWIDTH, both multiples of 8 from 16 to 1024, as 64x32"))
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if x > 0.0 && x < 1.0 => Ok(x),
        _ => Err(format!("got {text:?}, expected a number between 0 and 1")),
    }
}

/// A row of the table beside the old model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// The new model trained alone.
    Independent,
    /// The same, mapped onto the old space afterwards.
    Procrustes,
    /// The new model trained with a method.
    Method {
        /// The name in the table and of the files: the method's, with the settings that the command line gave.
        name: String,
        /// All settings.
        config: MethodConfig,
    },
}

/// Rows without a method of their own.
const PLAIN: [&str; 2] = ["independent", "procrustes"];
/// The best of each method's tries on this task, where it is not its published form; every method had equally many
/// (docs/tuning.md).
const TUNED: [(&str, &str); 5] = [
    ("bct", "weight=4"),
    ("hot-refresh", "temperature=0.05+weight=3"),
    ("uni-bct", "start=class-means+weight=2"),
    ("lce", "alignment=1000"),
    ("adv-bct", "boundary=16"),
];
/// Rows that `--methods default` asks for.
const DEFAULT: [&str; 4] = ["independent", "procrustes", "bct", "neighborhood-consensus"];

impl Row {
    /// Rows of a `--methods` value, in the order of the list.
    fn parse(text: &str) -> Result<Vec<Self>, Failure> {
        let names: Vec<&str> = match text {
            "default" => DEFAULT.to_vec(),
            "all" => {
                // The method that this is about comes last, below what it is compared with.
                let (ours, others): (Vec<&str>, Vec<&str>) =
                    MethodConfig::NAMES.iter().partition(|name| **name == DEFAULT[3]);
                PLAIN.into_iter().chain(others).chain(ours).collect()
            }
            list => list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect(),
        };
        let mut rows: Vec<Self> = Vec::new();
        for name in names {
            let row = match name {
                "old" => continue,
                "independent" => Self::Independent,
                "procrustes" => Self::Procrustes,
                _ => Self::Method { name: name.to_owned(), config: method(name)? },
            };
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        match rows.is_empty() {
            true => Err(failure(format!("--methods: got {text:?}, expected at least one name"))),
            false => Ok(rows),
        }
    }
}

/// A method of the form `name+setting=value+setting=value`; a setting inside another is named `outer.inner`. A bare name
/// stands for its entry of [`TUNED`].
fn method(text: &str) -> Result<MethodConfig, Failure> {
    let tuned =
        TUNED.iter().find(|(name, _)| *name == text).map(|(name, settings)| format!("{name}+{settings}"));
    let text = tuned.as_deref().unwrap_or(text);
    let mut parts = text.split('+');
    let name = parts.next().unwrap_or_default();
    let config = MethodConfig::by_name(name).map_err(|_| {
        let known = PLAIN.iter().chain(MethodConfig::NAMES).copied().collect::<Vec<_>>().join(", ");
        failure(format!("--methods: got `{name}`, expected default, all, or names among {known}"))
    })?;
    let mut value = serde_json::to_value(&config)?;
    for setting in parts {
        let Some((path, new)) = setting.split_once('=') else {
            return Err(failure(format!(
                "--methods: got `{setting}` in `{text}`, expected a setting as weight=2"
            )));
        };
        // What is no JSON is a word: `discrimination=none`.
        let new = serde_json::from_str(new).unwrap_or_else(|_| Value::String(new.to_owned()));
        let path: Vec<&str> = path.split('.').collect();
        set(&mut value, &path, new, true);
    }
    serde_json::from_value(value).map_err(|e| failure(format!("--methods: `{text}`: {e}")))
}

/// Puts `new` at a path. Below the top, a key that is not there yet means another choice than the present one, which goes:
/// `weights.exp.temperature=0.2` where the weights were `half`. What does not fit is found when the settings are read.
fn set(place: &mut Value, path: &[&str], new: Value, top: bool) {
    let Some((key, rest)) = path.split_first() else {
        *place = new;
        return;
    };
    if !top && place.get(key).is_none() {
        *place = Value::Object(serde_json::Map::new());
    }
    if let Some(map) = place.as_object_mut() {
        set(map.entry(*key).or_insert(Value::Null), rest, new, false);
    }
}

fn seeds(text: &str) -> Result<Vec<u64>, Failure> {
    let wrong = || {
        failure(format!(
            "--seeds: got {text:?}, expected a number up to 1000 or a list as 1,2,3 (one seed: 7,)"
        ))
    };
    let parsed =
        |text: &str| -> Option<Vec<u64>> { text.split(',').map(|part| part.trim().parse().ok()).collect() };
    let list = match text.strip_suffix(',') {
        Some(list) => parsed(list).ok_or_else(wrong)?,
        None => match parsed(text).ok_or_else(wrong)?.as_slice() {
            &[count @ 1..=1000] => (1..=count).collect(),
            [_] => return Err(wrong()),
            list => list.to_vec(),
        },
    };
    let mut seen = list.clone();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() != list.len() { Err(wrong()) } else { Ok(list) }
}

/// Everything that decides the numbers of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The version of the program that wrote it.
    pub(crate) version: String,
    pub(crate) data: String,
    /// SHA-256 of the images and labels.
    pub(crate) data_digest: String,
    pub(crate) methods: Vec<Row>,
    pub(crate) seeds: Vec<u64>,
    /// The share of the training identities that the old model is trained on.
    pub(crate) old_share: f64,
    pub(crate) label_noise: Option<f64>,
    pub(crate) old: Recipe,
    pub(crate) new: Recipe,
}

impl Config {
    /// The configuration that the arguments ask for.
    pub(crate) fn new(arguments: &Arguments, data: &Dataset) -> Result<Self, Failure> {
        if arguments.epochs == 0 {
            return Err(failure("--epochs: got 0, expected at least 1"));
        }
        let architecture =
            |width| Architecture { width, stages: 3, dim: 64, fold: true, grid: 4, residual: 0b010 };
        let recipe = |width, epochs| Recipe {
            architecture: architecture(width),
            epochs,
            batch: 64,
            schedule: Schedule::default(),
            augmentation: Augmentation::default(),
            classifier: CosineClassifierConfig { scale: 24.0, margin: Margin::Cosine(0.3) },
        };
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data: data.name.clone(),
            data_digest: data.digest.clone(),
            methods: Row::parse(&arguments.methods)?,
            seeds: seeds(&arguments.seeds)?,
            old_share: 0.3,
            label_noise: arguments.label_noise,
            old: recipe(16, 2 * arguments.epochs),
            new: recipe(24, arguments.epochs),
        })
    }

    /// Compares with the configuration in a run's folder.
    ///
    /// # Errors
    /// Names the first field that differs, what the folder has and what this run asks for.
    pub(crate) fn check_same(&self, path: &Path) -> Result<(), Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| failure(format!("{shown}: {e}")))?;
        let theirs: Value = serde_json::from_str(&text)
            .map_err(|e| failure(format!("{shown}: not the configuration of a run: {e}")))?;
        // Through text, so that both sides have the same numbers.
        let ours: Value = serde_json::from_str(&self.to_json()?)?;
        match difference("", &theirs, &ours) {
            None => Ok(()),
            Some((field, theirs, ours)) => Err(failure(format!(
                "--resume: `{shown}` is a run of another configuration: `{field}` is {theirs} there and {ours} here; \
                 repeat its arguments, choose another --out, or leave --resume away to start over"
            ))),
        }
    }

    /// As it stands in the folder.
    pub(crate) fn to_json(&self) -> Result<String, Failure> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// The first field, in the order of its name, in which two values differ.
fn difference(at: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    let inner = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            let get = |map: &serde_json::Map<String, Value>, key: &str| {
                map.get(key).cloned().unwrap_or(Value::Null)
            };
            keys.into_iter().find_map(|key| difference(&inner(key), &get(x, key), &get(y, key)))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().find_map(|(i, (x, y))| difference(&inner(&i.to_string()), x, y))
        }
        _ if a == b => None,
        _ => Some((at.to_owned(), a.to_string(), b.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_by_its_path() {
        let a = serde_json::json!({"new": {"epochs": 10, "layers": [1, 2]}, "seeds": [1]});
        let b = serde_json::json!({"new": {"epochs": 10, "layers": [1, 3]}, "seeds": [1]});
        let found = difference("", &a, &b);
        assert_eq!(found, Some(("new.layers.1".into(), "2".into(), "3".into())));
        assert_eq!(difference("", &a, &a), None);
    }

    #[test]
    fn seeds_are_a_number_or_a_list() -> Result<(), Failure> {
        assert_eq!(seeds("3")?, [1, 2, 3]);
        assert_eq!(seeds("7, 9")?, [7, 9]);
        assert_eq!(seeds("7,")?, [7]);
        for wrong in ["0", "", "a", "1,1", "-1", ",", "1,,", "1001"] {
            let message = seeds(wrong).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains("--seeds"), "{wrong}: {message}");
        }
        Ok(())
    }

    #[test]
    fn rows_are_found_by_name_and_unknown_ones_are_named() -> Result<(), Failure> {
        assert_eq!(Row::parse("default")?.len(), 4);
        assert_eq!(Row::parse("all")?.len(), 2 + MethodConfig::NAMES.len());
        assert_eq!(Row::parse("independent, procrustes,independent")?, [Row::Independent, Row::Procrustes]);
        let tuned =
            Row::parse("bct+weight=2.5,neighborhood-consensus+weights.exp.temperature=0.2+credibility=null")?;
        let text = serde_json::to_string(&tuned)?;
        assert!(text.contains(r#""weight":2.5"#), "{text}");
        for (name, settings) in TUNED {
            assert_eq!(method(name)?, method(&format!("{name}+{settings}"))?);
            assert_ne!(method(name)?, MethodConfig::by_name(name)?, "{name}: tuned to its published form");
        }
        assert!(text.contains(r#""weights":{"exp":{"temperature":0.2}}"#), "{text}");
        assert!(text.contains(r#""credibility":null"#), "{text}");
        for (wrong, part) in
            [("bct+weigth=2", "weigth"), ("bct+weight", "weight=2"), ("bct+weight=a", "weight=a")]
        {
            let message = Row::parse(wrong).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains("--methods") && message.contains(part), "{message}");
        }
        let message = Row::parse("bct,nonsense").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("`nonsense`") && message.contains("procrustes"), "{message}");
        Ok(())
    }
}
