//! The pack: joins, renders, drops what is no picture of its own, and orders the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use consonance_datasets::pack::{Header, Pack, PackedIdentity, PackedImage, Style};
use indicatif::ProgressBar;
use rayon::prelude::*;

use crate::{
    Error,
    join::join,
    render::{SIDE, render},
    sets::{SETS, Set, emoji},
};

/// An identity needs so many styles, of so many families, so that every query has matches by other cameras and
/// training sees more than one pair.
const FEWEST_STYLES: usize = 4;
const FEWEST_FAMILIES: usize = 3;

/// What became of the drawings.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Pairs of an emoji and a style.
    pub(crate) joined: usize,
    /// Nothing visible.
    pub(crate) blank: usize,
    /// Drawn by the same set for several emoji.
    pub(crate) ambiguous: usize,
    /// The same picture as another style's of the same emoji.
    pub(crate) copies: usize,
    /// Left over by identities with too few styles.
    pub(crate) lonely: usize,
}

/// One drawing of one emoji.
struct Picture {
    emoji: usize,
    style: usize,
    pixels: Vec<u8>,
}

/// Builds the pack from the packages below `packages`, the `node_modules` folder.
pub(crate) fn build(packages: &Path) -> Result<(Pack, Counts), Error> {
    let emoji = emoji(packages)?;
    let sets = SETS.iter().map(|spec| Set::read(packages, spec)).collect::<Result<Vec<_>, _>>()?;
    let jobs: Vec<(usize, usize, String)> = sets
        .iter()
        .enumerate()
        .flat_map(|(style, set)| join(set, &emoji).into_iter().map(move |(at, name)| (style, at, name)))
        .collect();
    let mut counts = Counts { joined: jobs.len(), ..Counts::default() };

    // Every picture depends on its own drawing alone, and `collect` keeps the order: threads change nothing.
    let bar = ProgressBar::new(jobs.len() as u64);
    let rendered = jobs.par_iter().map(|(style, at, name)| {
        bar.inc(1);
        let set = &sets[*style];
        let named = || format!("{}:{name}", set.spec.name);
        let drawing = set.drawing(name).ok_or_else(|| Error::Missing { icon: named() })?;
        let pixels = render(&drawing).map_err(|source| Error::Svg { icon: named(), source })?;
        Ok(pixels.map(|pixels| Picture { emoji: *at, style: *style, pixels }))
    });
    let pictures: Vec<Picture> = rendered.collect::<Result<Vec<_>, Error>>()?.into_iter().flatten().collect();
    bar.finish_and_clear();
    counts.blank = jobs.len() - pictures.len();

    let pictures = without_ambiguous(pictures, &mut counts);
    let pictures = without_copies(pictures, &mut counts);
    let pictures = without_lonely(pictures, &mut counts);
    Ok((pack(&emoji, &sets, &pictures), counts))
}

/// Drops a set's picture where the set draws several emoji alike: it does not say whom it shows.
fn without_ambiguous(pictures: Vec<Picture>, counts: &mut Counts) -> Vec<Picture> {
    let mut uses: HashMap<(usize, &[u8]), usize> = HashMap::new();
    for picture in &pictures {
        *uses.entry((picture.style, &picture.pixels)).or_default() += 1;
    }
    let keep: Vec<bool> = pictures.iter().map(|p| uses[&(p.style, p.pixels.as_slice())] == 1).collect();
    counts.ambiguous = keep.iter().filter(|keep| !**keep).count();
    pictures.into_iter().zip(keep).filter_map(|(picture, keep)| keep.then_some(picture)).collect()
}

/// Drops a picture that an earlier style already has for the same emoji.
fn without_copies(pictures: Vec<Picture>, counts: &mut Counts) -> Vec<Picture> {
    let mut seen: BTreeSet<(usize, &[u8])> = BTreeSet::new();
    let keep: Vec<bool> = pictures.iter().map(|p| seen.insert((p.emoji, &p.pixels))).collect();
    counts.copies = keep.iter().filter(|keep| !**keep).count();
    pictures.into_iter().zip(keep).filter_map(|(picture, keep)| keep.then_some(picture)).collect()
}

/// Drops identities with too few styles or families.
fn without_lonely(pictures: Vec<Picture>, counts: &mut Counts) -> Vec<Picture> {
    let mut styles: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for picture in &pictures {
        styles.entry(picture.emoji).or_default().insert(picture.style);
    }
    let enough = |emoji: &usize| {
        let families: BTreeSet<&str> = styles[emoji].iter().map(|&style| SETS[style].family).collect();
        styles[emoji].len() >= FEWEST_STYLES && families.len() >= FEWEST_FAMILIES
    };
    let before = pictures.len();
    let pictures: Vec<Picture> = pictures.into_iter().filter(|picture| enough(&picture.emoji)).collect();
    counts.lonely = before - pictures.len();
    pictures
}

/// Images by style, then by emoji: neighbors in the list look alike, which compresses best.
fn pack(emoji: &[crate::sets::Emoji], sets: &[Set], pictures: &[Picture]) -> Pack {
    let mut families: Vec<String> = Vec::new();
    for spec in &SETS {
        if !families.iter().any(|family| family == spec.family) {
            families.push(spec.family.to_owned());
        }
    }
    let family = |name: &str| families.iter().position(|family| family == name).unwrap_or_default() as u32;
    let styles = sets.iter().map(|set| Style {
        name: set.spec.name.to_owned(),
        family: family(set.spec.family),
        source: format!("@iconify-json/{}@{}", set.spec.name, set.spec.version),
        author: set.author.clone(),
        license: set.spec.license.to_owned(),
    });
    let styles = styles.collect();
    let used: BTreeSet<usize> = pictures.iter().map(|picture| picture.emoji).collect();
    let number: BTreeMap<usize, u32> = used.iter().zip(0u32..).map(|(&at, number)| (at, number)).collect();
    let identities = used
        .iter()
        .map(|&at| PackedIdentity { code: emoji[at].code.clone(), label: emoji[at].label.clone() });
    let images =
        pictures.iter().map(|p| PackedImage { identity: number[&p.emoji], style: p.style as u32 }).collect();
    let header = Header {
        name: "Emoji-ID".to_owned(),
        height: SIDE,
        width: SIDE,
        families,
        styles,
        identities: identities.collect(),
        images,
    };
    let pixels = pictures.iter().flat_map(|picture| &picture.pixels).copied().collect();
    Pack { header, pixels }
}
