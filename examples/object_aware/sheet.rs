//! A picture of scenes, their maps and their boxes.

use std::path::Path;

use candle_core::Tensor;
use consonance_methods::{BoxesConfig, RelativeBox};
use image::{Rgb, RgbImage};

use crate::Failure;
use crate::maps::tight;
use crate::scenes::{LARGE, Scene};

/// Pixels of the picture for one of a scene, and between two tiles.
const ZOOM: usize = 2;
const GAP: usize = 6;
/// Scenes, a column each.
const SCENES: usize = 12;
const TRUE: Rgb<u8> = Rgb([0, 255, 0]);
const FOUND: Rgb<u8> = Rgb([255, 0, 0]);

/// Draws the first scenes with their true boxes (green), and below them two rows for every map: the map, and its boxes (red).
pub(crate) fn draw(path: &Path, scenes: &[Scene], maps: &[Vec<Tensor>]) -> Result<(), Failure> {
    let scenes = &scenes[..scenes.len().min(SCENES)];
    let pitch = LARGE * ZOOM + GAP;
    let size = |tiles: usize| (tiles * pitch + GAP) as u32;
    let mut sheet = RgbImage::from_pixel(size(scenes.len()), size(1 + 2 * maps.len()), Rgb([255; 3]));
    for (column, scene) in scenes.iter().enumerate() {
        let plane = LARGE * LARGE;
        let byte = |value: f32| (value * 64.0 + 127.5).clamp(0.0, 255.0) as u8;
        let pixel =
            |at: usize| Rgb([0, 1, 2].map(|channel| byte(scene.picture.pixels[channel * plane + at])));
        let mut tile = Tile { sheet: &mut sheet, top: GAP, left: GAP + column * pitch };
        tile.fill(pixel);
        tile.outline(&scene.boxes, TRUE);
        for masks in maps {
            let mask = &masks[column];
            let values = mask.flatten_all()?.to_vec1::<f32>()?;
            tile.top += pitch;
            tile.fill(|at| Rgb([(255.0 * values[at]) as u8; 3]));
            tile.outline(&scene.boxes, TRUE);
            tile.top += pitch;
            tile.fill(pixel);
            tile.outline(&scene.boxes, TRUE);
            let found = tight(std::slice::from_ref(mask), BoxesConfig::default().threshold)?;
            tile.outline(&found.concat(), FOUND);
        }
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(sheet.save(path)?)
}

/// A part of the picture.
struct Tile<'a> {
    sheet: &'a mut RgbImage,
    top: usize,
    left: usize,
}

impl Tile<'_> {
    fn put(&mut self, y: usize, x: usize, color: Rgb<u8>) {
        self.sheet.put_pixel((self.left + x) as u32, (self.top + y) as u32, color);
    }

    fn fill(&mut self, color: impl Fn(usize) -> Rgb<u8>) {
        let side = LARGE * ZOOM;
        for at in 0..side * side {
            let (y, x) = (at / side, at % side);
            self.put(y, x, color(y / ZOOM * LARGE + x / ZOOM));
        }
    }

    fn outline(&mut self, boxes: &[RelativeBox], color: Rgb<u8>) {
        let place = |share: f64| ((share * (LARGE * ZOOM) as f64) as usize).min(LARGE * ZOOM - 1);
        for found in boxes {
            let (top, left) = (place(found.top), place(found.left));
            let (bottom, right) = (place(found.bottom), place(found.right));
            (left..=right).for_each(|x| [top, bottom].into_iter().for_each(|y| self.put(y, x, color)));
            (top..=bottom).for_each(|y| [left, right].into_iter().for_each(|x| self.put(y, x, color)));
        }
    }
}
