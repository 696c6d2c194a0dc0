//! Captions and tags of the emoji.

// A test that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use consonance_datasets::{emoji_captions, emoji_captions_from, emoji_id};

#[test]
fn nearly_all_emoji_of_the_set_have_captions_and_tags() {
    let (captions, data) = (emoji_captions().unwrap(), emoji_id().unwrap());
    assert_eq!((captions.languages.len(), &captions.languages[0][..]), (28, "en"));
    assert_eq!(captions.emoji.len(), 1914);
    let known = |name: &str| captions.emoji.contains_key(name);
    let without: Vec<_> = data.identities.iter().filter(|i| !known(&i.name)).map(|i| &i.label).collect();
    assert!(without.len() * 50 < data.identities.len(), "{without:?}");
    for identity in data.identities.iter().filter(|i| known(&i.name)) {
        let caption = &captions.emoji[&identity.name];
        assert_eq!(caption.labels[0], identity.label, "{}", identity.name);
        assert!(!caption.tags.is_empty() && caption.labels.len() == 28);
    }
}

#[test]
fn labels_are_of_their_locale() {
    let captions = emoji_captions().unwrap();
    let distinct: std::collections::BTreeSet<_> = captions.languages.iter().collect();
    assert_eq!(distinct.len(), captions.languages.len());
    let grinning = &captions.emoji["1f600"];
    for (locale, label) in [
        ("en-gb", "grinning face"),
        ("de", "grinsendes Gesicht"),
        ("es-mx", "cara sonriendo"),
        ("ja", "にっこり笑う"),
        ("zh", "嘿嘿"),
        ("zh-hant", "笑臉"),
    ] {
        let at = captions.languages.iter().position(|language| language == locale).unwrap();
        assert_eq!(grinning.labels[at], label, "{locale}");
    }
}

#[test]
fn a_damaged_file_is_an_error_that_names_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("captions.tsv");
    for (text, part) in [
        ("", "`code`"),
        ("code\ttags\n", "no language"),
        ("code\ttags\ten\n1f600\tface\n", "line 2 has not 3 fields"),
        ("code\ttags\ten\n1f600\t\tgrinning face\n", "line 2 has not 3 fields"),
        ("code\ttags\ten\n1\ta\tb\n1\ta\tb\n", "line 3 repeats"),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = emoji_captions_from(&path).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("captions.tsv"), "{message}");
    }
    assert!(emoji_captions_from(&folder.path().join("none")).is_err());
}
