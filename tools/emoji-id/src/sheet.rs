//! Contact sheets, to look at what was built.

use std::{fs, path::Path};

use consonance_datasets::pack::Pack;
use image::RgbImage;

use crate::Error;

/// Rows and blocks of columns on a sheet.
const ROWS: usize = 25;
const BLOCKS: usize = 4;

/// Draws every image of the pack into PNG files in `folder`: identities from top to bottom in blocks, a column per
/// style, gray where a style does not draw the identity.
pub(crate) fn write(pack: &Pack, folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_path_buf(), source })?;
    let header = &pack.header;
    let (height, width) = (header.height, header.width);
    let block = header.styles.len() * width + width / 2;
    let per_sheet = ROWS * BLOCKS;
    for sheet in 0..header.identities.len().div_ceil(per_sheet) {
        let (sheet_width, sheet_height) = ((BLOCKS * block) as u32, (ROWS * height) as u32);
        let mut picture = RgbImage::from_pixel(sheet_width, sheet_height, image::Rgb([160, 160, 160]));
        for (image, pixels) in header.images.iter().zip(pack.pixels.chunks_exact(height * width * 3)) {
            let Some(cell) =
                (image.identity as usize).checked_sub(sheet * per_sheet).filter(|c| *c < per_sheet)
            else {
                continue;
            };
            let (left, top) = (cell / ROWS * block + image.style as usize * width, cell % ROWS * height);
            for (at, pixel) in pixels.chunks_exact(3).enumerate() {
                let (x, y) = ((left + at % width) as u32, (top + at / width) as u32);
                picture.put_pixel(x, y, image::Rgb([pixel[0], pixel[1], pixel[2]]));
            }
        }
        let path = folder.join(format!("sheet-{sheet:02}.png"));
        picture.save(&path).map_err(|source| Error::Sheet { path, source })?;
    }
    Ok(())
}
