//! The emoji sets: which packages, which versions, and how to read them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::Error;

/// One drawing style, as published.
pub(crate) struct Spec {
    /// The name in the pack and below `@iconify-json/`.
    pub(crate) name: &'static str,
    /// The package's version. Other versions draw other pictures.
    pub(crate) version: &'static str,
    /// The family of styles. Near twins share one: the same shapes in color and in black.
    pub(crate) family: &'static str,
    /// SPDX identifier; the package must say the same.
    pub(crate) license: &'static str,
}

const fn spec(
    name: &'static str,
    version: &'static str,
    family: &'static str,
    license: &'static str,
) -> Spec {
    Spec { name, version, family, license }
}

/// The sets, in the order of the pack.
pub(crate) const SETS: [Spec; 8] = [
    spec("noto", "1.2.9", "noto", "Apache-2.0"),
    spec("noto-v1", "1.2.5", "noto-v1", "Apache-2.0"),
    spec("twemoji", "1.2.5", "twemoji", "CC-BY-4.0"),
    spec("fluent-emoji-flat", "1.2.6", "fluent-emoji", "MIT"),
    spec("fluent-emoji-high-contrast", "1.2.6", "fluent-emoji", "MIT"),
    spec("emojione", "1.2.3", "emojione", "CC-BY-4.0"),
    spec("emojione-monotone", "1.2.1", "emojione", "CC-BY-4.0"),
    spec("fxemoji", "1.2.2", "fxemoji", "Apache-2.0"),
];

const EMOJIBASE_VERSION: &str = "17.0.0";
/// Where older and other names of an emoji come from, in addition to the label.
const SHORTCODES: [&str; 5] = ["cldr", "emojibase", "github", "iamcal", "joypixels"];

/// A set that has been read.
pub(crate) struct Set {
    pub(crate) spec: &'static Spec,
    pub(crate) author: String,
    width: f32,
    height: f32,
    icons: BTreeMap<String, Icon>,
    aliases: BTreeMap<String, Alias>,
    /// Code points without `fe0f` to icon names; empty if the package has none.
    pub(crate) chars: BTreeMap<String, String>,
}

/// A drawing, ready to be rendered.
pub(crate) struct Drawing<'a> {
    pub(crate) body: &'a str,
    /// left, top, width, height
    pub(crate) view_box: [f32; 4],
    /// Mirror left and right.
    pub(crate) mirrored: bool,
}

#[derive(Deserialize)]
struct Package {
    version: String,
}

#[derive(Deserialize)]
struct Info {
    author: Author,
    license: License,
}

#[derive(Deserialize)]
struct Author {
    name: String,
}

#[derive(Deserialize)]
struct License {
    spdx: String,
}

#[derive(Deserialize)]
struct Icons {
    width: f32,
    height: f32,
    icons: BTreeMap<String, Icon>,
    #[serde(default)]
    aliases: BTreeMap<String, Alias>,
}

// Unknown fields are an error in both: a transformation that is not applied would draw a wrong picture.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Icon {
    body: String,
    width: Option<f32>,
    height: Option<f32>,
    #[serde(default, rename = "hidden")]
    _hidden: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alias {
    parent: String,
    #[serde(default, rename = "hFlip")]
    mirrored: bool,
}

/// What `emojibase-data` says of an emoji.
#[derive(Deserialize)]
struct RawEmoji {
    hexcode: String,
    label: String,
    group: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// An emoji that may become an identity: no skin-tone variants, no components.
pub(crate) struct Emoji {
    /// Code points in lower-case hexadecimal without `fe0f`.
    pub(crate) code: String,
    /// The English label of the CLDR.
    pub(crate) label: String,
    /// Its shortcodes in several systems.
    pub(crate) shortcodes: Vec<String>,
}

impl Set {
    /// Reads a set below `packages`, the `node_modules` folder.
    pub(crate) fn read(packages: &Path, spec: &'static Spec) -> Result<Self, Error> {
        let folder = packages.join("@iconify-json").join(spec.name);
        check_version(&folder, spec.version)?;
        let info: Info = json(&folder.join("info.json"))?;
        if info.license.spdx != spec.license {
            return Err(Error::License { path: folder, got: info.license.spdx, expected: spec.license });
        }
        let Icons { width, height, icons, aliases } = json(&folder.join("icons.json"))?;
        let chars: BTreeMap<String, String> = json(&folder.join("chars.json"))?;
        let chars = chars.into_iter().map(|(code, name)| (plain_code(&code), name)).collect();
        Ok(Self { spec, author: info.author.name, width, height, icons, aliases, chars })
    }

    /// All names that the set draws, aliases included, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.icons.keys().chain(self.aliases.keys()).map(String::as_str)
    }

    /// The icon that a name stands for: the end of its chain of aliases, and whether it is mirrored.
    pub(crate) fn resolve<'a>(&'a self, name: &'a str) -> Option<(&'a str, bool)> {
        let (mut name, mut mirrored) = (name, false);
        // No chain is longer than the number of aliases, unless it runs in a circle.
        for _ in 0..=self.aliases.len() {
            if self.icons.contains_key(name) {
                return Some((name, mirrored));
            }
            let alias = self.aliases.get(name)?;
            name = &alias.parent;
            mirrored ^= alias.mirrored;
        }
        None
    }

    /// The drawing of a name.
    pub(crate) fn drawing(&self, name: &str) -> Option<Drawing<'_>> {
        let (icon, mirrored) = self.resolve(name)?;
        let icon = self.icons.get(icon)?;
        let (width, height) = (icon.width.unwrap_or(self.width), icon.height.unwrap_or(self.height));
        Some(Drawing { body: &icon.body, view_box: [0.0, 0.0, width, height], mirrored })
    }
}

/// Reads the emoji list, in its own order.
pub(crate) fn emoji(packages: &Path) -> Result<Vec<Emoji>, Error> {
    let folder = packages.join("emojibase-data");
    check_version(&folder, EMOJIBASE_VERSION)?;
    let list: Vec<RawEmoji> = json(&folder.join("en/data.json"))?;
    let mut systems: Vec<BTreeMap<String, OneOrMany>> = Vec::new();
    for system in SHORTCODES {
        systems.push(json(&folder.join(format!("en/shortcodes/{system}.json")))?);
    }
    let shortcodes = |hexcode: &str| -> Vec<String> {
        let found = systems.iter().filter_map(|system| system.get(hexcode));
        found
            .flat_map(|codes| match codes {
                OneOrMany::One(code) => std::slice::from_ref(code),
                OneOrMany::Many(codes) => codes,
            })
            .cloned()
            .collect()
    };
    // Group 2 holds the components (skin tones, hair); the letters of flags have no group.
    let whole = list.iter().filter(|emoji| emoji.group.is_some_and(|group| group != 2));
    let emoji = whole.map(|emoji| Emoji {
        code: plain_code(&emoji.hexcode),
        label: emoji.label.clone(),
        shortcodes: shortcodes(&emoji.hexcode),
    });
    Ok(emoji.collect())
}

/// `2764-FE0F` → `2764`: the variation selector asks for the colored drawing, which is the only one here.
fn plain_code(code: &str) -> String {
    let parts: Vec<String> =
        code.split('-').map(str::to_ascii_lowercase).filter(|part| part != "fe0f").collect();
    parts.join("-")
}

fn check_version(folder: &Path, expected: &'static str) -> Result<(), Error> {
    let package: Package = json(&folder.join("package.json"))?;
    if package.version == expected {
        Ok(())
    } else {
        Err(Error::Version { path: folder.to_path_buf(), got: package.version, expected })
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let path: PathBuf = path.to_path_buf();
    let text = fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })
}
