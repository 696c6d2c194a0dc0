//! Emoji-ID, the data set that ships with the repository.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{
    Dataset, Error, Identity, Item, Result, Role, Split, order_key,
    pack::{Header, Pack},
};

/// The environment variable that names the pack when it is not in the repository's `data/`.
pub const EMOJI_ID_VARIABLE: &str = "CONSONANCE_EMOJI_ID";

const PLACE: &str = "data/emoji-id/emoji-id.bin";

/// Loads **Emoji-ID**: the identity is the emoji, the camera is the family of drawing styles.
///
/// 32 × 32 px, RGB. The pack is looked for at the path in the environment variable [`EMOJI_ID_VARIABLE`] if it is
/// set, else at `data/emoji-id/emoji-id.bin` in the repository that this crate was built in, else below the
/// current folder. See [`emoji_id_from`] for the splits.
///
/// # Errors
/// [`Error::PackNotFound`] with all the places that were tried, else as [`emoji_id_from`].
pub fn emoji_id() -> Result<Dataset> {
    let named = std::env::var_os(EMOJI_ID_VARIABLE).map(PathBuf::from);
    emoji_id_from(&find(named, PLACE, EMOJI_ID_VARIABLE)?)
}

/// Loads Emoji-ID, or another pack of the same format, from a file.
///
/// **Splits.** Identities are ordered by [`order_key`] of their code points. The first half (rounded up) is for
/// training, the second for testing. All test images are both queries and gallery: whoever evaluates leaves out
/// the gallery items of the query's own identity and camera, which removes the query itself and its near twins.
/// Inside a split, images are ordered by identity, then by style.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Pack`] if it is foreign, truncated, damaged, of another
/// version, or has fewer than two identities.
pub fn emoji_id_from(path: &Path) -> Result<Dataset> {
    let Pack { header, pixels } = Pack::read(path)?;
    if header.identities.len() < 2 {
        let reason = format!("it has {} identities, expected at least two", header.identities.len());
        return Err(Error::pack(path, reason));
    }
    Ok(split(header, &pixels))
}

/// Where a file of the repository is: at the named path, else at its place.
pub(crate) fn find(named: Option<PathBuf>, place: &str, variable: &'static str) -> Result<PathBuf> {
    let tried = match named {
        Some(path) => vec![path],
        None => {
            let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
            repository.map(|root| root.join(place)).into_iter().chain([PathBuf::from(place)]).collect()
        }
    };
    match tried.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(Error::PackNotFound { tried, variable }),
    }
}

fn split(header: Header, pixels: &[u8]) -> Dataset {
    let mut order: Vec<u32> = (0..header.identities.len() as u32).collect();
    order.sort_by_cached_key(|&i| order_key(&header.identities[i as usize].code));
    let number: HashMap<u32, u32> = order.iter().zip(0u32..).map(|(&old, new)| (old, new)).collect();
    let train_identities = order.len().div_ceil(2);

    let mut images: Vec<(Item, usize)> = header
        .images
        .iter()
        .enumerate()
        .map(|(at, image)| {
            let camera = header.styles[image.style as usize].family;
            (Item { identity: number[&image.identity], camera, style: image.style, role: Role::Known }, at)
        })
        .collect();
    images.sort_by_key(|(item, at)| (item.identity, item.style, *at));

    let image_bytes = 3 * header.height * header.width;
    let gather = |part: &[(Item, usize)]| {
        let items = part.iter().map(|(item, _)| *item).collect();
        let bytes = part.iter().flat_map(|(_, at)| &pixels[at * image_bytes..(at + 1) * image_bytes]);
        Split::new(items, bytes.copied().collect(), header.height, header.width)
    };
    let (train, test) =
        images.split_at(images.partition_point(|(item, _)| (item.identity as usize) < train_identities));
    let (train, test) = (gather(train), gather(test));
    let identities = order.iter().map(|&i| {
        let identity = &header.identities[i as usize];
        Identity { name: identity.code.clone(), label: identity.label.clone() }
    });
    Dataset {
        identities: identities.collect(),
        name: header.name,
        height: header.height,
        width: header.width,
        train,
        query: test.clone(),
        gallery: test,
        train_identities,
        cameras: header.families,
        styles: header.styles.into_iter().map(|style| style.name).collect(),
        digest: String::new(),
    }
    .with_digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_pack_that_is_missing_is_not_replaced_by_another() {
        let error = find(Some("/nonexistent/pack.bin".into()), PLACE, EMOJI_ID_VARIABLE).unwrap_err();
        let message = error.to_string();
        assert!(matches!(&error, Error::PackNotFound { tried, .. } if tried.len() == 1));
        for part in ["/nonexistent/pack.bin", "CONSONANCE_EMOJI_ID", "tools/emoji-id.sh"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
