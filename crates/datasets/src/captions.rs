//! Captions and tags of the emoji.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The environment variable that names the file when it is not in the repository's `data/`.
pub const EMOJI_CAPTIONS_VARIABLE: &str = "CONSONANCE_EMOJI_CAPTIONS";

const PLACE: &str = "data/emoji-captions/captions.tsv";

/// What emoji are called, and their tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captions {
    /// The locales of the labels, as `en` or `zh-hant`: of the file in the repository 28, English first.
    pub languages: Vec<String>,
    /// By code points as in [`Identity::name`](crate::Identity::name).
    pub emoji: HashMap<String, Caption>,
}

/// What one emoji is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// A label for every locale of [`Captions::languages`].
    pub labels: Vec<String>,
    /// English tags, at least one.
    pub tags: Vec<String>,
}

/// Loads the captions and tags of the emoji of [`emoji_id`](crate::emoji_id).
///
/// The file is looked for at the path in the environment variable [`EMOJI_CAPTIONS_VARIABLE`] if it is set, else at
/// `data/emoji-captions/captions.tsv` in the repository that this crate was built in, else below the current folder.
///
/// # Errors
/// [`Error::PackNotFound`] with all the places that were tried, else as [`emoji_captions_from`].
pub fn emoji_captions() -> Result<Captions> {
    let named = std::env::var_os(EMOJI_CAPTIONS_VARIABLE).map(PathBuf::from);
    emoji_captions_from(&crate::emoji::find(named, PLACE, EMOJI_CAPTIONS_VARIABLE)?)
}

/// Loads captions from a file: tab-separated, a header `code`, `tags` and the locales, then a line an emoji.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Captions`] for another header, and lines of another number of fields, with
/// an empty one, or of an emoji that an earlier line has.
pub fn emoji_captions_from(path: &Path) -> Result<Captions> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let wrong = |reason: &str| Error::Captions { path: path.into(), reason: reason.to_owned() };
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let ["code", "tags", languages @ ..] = &header[..] else {
        return Err(wrong("its first line does not begin with `code` and `tags`"));
    };
    if languages.is_empty() {
        return Err(wrong("it has no language"));
    }
    let mut emoji = HashMap::new();
    for (number, line) in (2..).zip(lines) {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != header.len() || fields.iter().any(|field| field.is_empty()) {
            let expected = header.len();
            return Err(wrong(&format!("line {number} has not {expected} fields with something in them")));
        }
        let labels = fields[2..].iter().map(|label| (*label).to_owned()).collect();
        let tags = fields[1].split(',').map(str::to_owned).collect();
        if emoji.insert(fields[0].to_owned(), Caption { labels, tags }).is_some() {
            return Err(wrong(&format!("line {number} repeats an emoji")));
        }
    }
    Ok(Captions { languages: languages.iter().map(|language| (*language).to_owned()).collect(), emoji })
}
