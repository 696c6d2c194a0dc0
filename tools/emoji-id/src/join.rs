//! Which icon of a set draws which emoji.

use std::collections::{BTreeMap, BTreeSet};

use crate::sets::{Emoji, Set};

/// Icons whose name belongs to another emoji, found by looking at the pictures: a ribbon and not a person bowing, a
/// couple with a heart, a pointing hand, a piano, a kissing face, a face with sunglasses, a wave of water, a window on a screen, and two
/// whose meanings are exchanged.
const MISLEADING: [(&str, &str); 10] = [
    ("fxemoji", "bow"),
    ("fxemoji", "couple"),
    ("fxemoji", "down"),
    ("fxemoji", "keyboard"),
    ("fxemoji", "kiss"),
    ("fxemoji", "pout"),
    ("fxemoji", "pouting"),
    ("fxemoji", "sunglasses"),
    ("fxemoji", "wave"),
    ("fxemoji", "window"),
];

/// The icon's name for every emoji that the set draws, by position in `emoji`.
///
/// By code point where the package maps code points. Else by name: the slug of the label (with the `flag-for-`
/// that some sets write), then, for icons that no label claims, the slug of a shortcode, if only one emoji has it.
/// Two names agree if they agree without their hyphens; one set has none. The [`MISLEADING`] are left out.
pub(crate) fn join(set: &Set, emoji: &[Emoji]) -> BTreeMap<usize, String> {
    if !set.chars.is_empty() {
        let found = emoji
            .iter()
            .enumerate()
            .filter_map(|(at, emoji)| Some((at, set.chars.get(&emoji.code)?.clone())));
        return found.collect();
    }
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for name in set.names().filter(|name| !MISLEADING.contains(&(set.spec.name, name))) {
        names.entry(squeeze(name)).or_insert(name);
    }
    let mut found: BTreeMap<usize, &str> = BTreeMap::new();
    for (at, emoji) in emoji.iter().enumerate() {
        if let Some(name) = labels(&emoji.label).iter().find_map(|label| names.get(&squeeze(label))) {
            found.insert(at, name);
        }
    }
    let claimed: BTreeSet<&str> = found.values().filter_map(|name| icon(set, name)).collect();
    let mut claims: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (at, emoji) in emoji.iter().enumerate().filter(|(at, _)| !found.contains_key(at)) {
        let named = emoji.shortcodes.iter().filter_map(|code| names.get(&squeeze(&slug(code))));
        for name in named.filter(|name| icon(set, name).is_some_and(|icon| !claimed.contains(icon))) {
            claims.entry(name).or_default().insert(at);
        }
    }
    for (name, claimants) in claims {
        if let (Some(&at), 1) = (claimants.first(), claimants.len()) {
            found.entry(at).or_insert(name);
        }
    }
    found.into_iter().map(|(at, name)| (at, name.to_owned())).collect()
}

fn icon<'a>(set: &'a Set, name: &'a str) -> Option<&'a str> {
    set.resolve(name).map(|(icon, _)| icon)
}

/// The slugs that a label may have as an icon's name.
fn labels(label: &str) -> Vec<String> {
    let own = slug(label);
    let long = format!("flag-for-{own}");
    match own.strip_prefix("flag-").map(|country| format!("flag-for-{country}")) {
        Some(short) => vec![own, short, long],
        None => vec![own, long],
    }
}

/// Lower case, accents and quotation marks dropped, every other run of non-alphanumerics a hyphen: how the icon
/// sets make names of labels.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for letter in text.chars().flat_map(char::to_lowercase).filter(|c| !"’'“”".contains(*c)) {
        let letter = unaccented(letter);
        if letter.is_ascii_alphanumeric() {
            slug.push(letter);
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches('-').to_owned()
}

/// The accented letters that occur in labels.
fn unaccented(letter: char) -> char {
    match letter {
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' => 'a',
        'ç' => 'c',
        'è' | 'é' | 'ê' | 'ë' => 'e',
        'ì' | 'í' | 'î' | 'ï' => 'i',
        'ñ' => 'n',
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' => 'o',
        'ù' | 'ú' | 'û' | 'ü' => 'u',
        other => other,
    }
}

fn squeeze(name: &str) -> String {
    name.replace('-', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_those_of_the_icon_sets() {
        assert_eq!(slug("Woman’s hat"), "womans-hat");
        assert_eq!(slug("flag: Côte d’Ivoire"), "flag-cote-divoire");
        assert_eq!(slug("Japanese “free of charge” button"), "japanese-free-of-charge-button");
        assert_eq!(slug("keycap: #"), "keycap");
        assert_eq!(slug("  A…B  "), "a-b");
        assert_eq!(labels("flag: Chad"), ["flag-chad", "flag-for-chad", "flag-for-flag-chad"]);
        assert_eq!(labels("white flag"), ["white-flag", "flag-for-white-flag"]);
        assert_eq!(squeeze("alarm-clock"), "alarmclock");
    }
}
