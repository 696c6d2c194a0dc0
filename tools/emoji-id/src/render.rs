//! From an SVG body to pixels.

use resvg::{tiny_skia, usvg};

use crate::sets::Drawing;

/// Height and width of the result.
pub(crate) const SIDE: usize = 32;
/// The drawing is rendered so many times as large, and every square of so many pixels averaged: finer edges
/// than the rasterizer's own, and thin lines do not vanish.
const OVERSAMPLING: usize = 4;

/// A drawing on white, RGB, or why there is none. Nothing visible gives `Ok(None)`.
///
/// The view box is centered in a square and keeps its proportions. `currentColor` is black.
pub(crate) fn render(drawing: &Drawing<'_>) -> Result<Option<Vec<u8>>, usvg::Error> {
    let [left, top, width, height] = drawing.view_box;
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" color=\"#000\" \
         width=\"{width}\" height=\"{height}\" viewBox=\"{left} {top} {width} {height}\">{}</svg>",
        drawing.body
    );
    let tree = usvg::Tree::from_str(&svg, &usvg::Options::default())?;
    let large = SIDE * OVERSAMPLING;
    let Some(mut pixmap) = tiny_skia::Pixmap::new(large as u32, large as u32) else { return Ok(None) };
    let scale = large as f32 / width.max(height);
    let transform = tiny_skia::Transform::from_scale(scale, scale)
        .post_translate((large as f32 - width * scale) / 2.0, (large as f32 - height * scale) / 2.0);
    resvg::render(&tree, transform, &mut pixmap.as_mut());
    let rgba = pixmap.data();
    if rgba.chunks_exact(4).all(|pixel| pixel[3] == 0) {
        return Ok(None);
    }

    let mut out = Vec::with_capacity(SIDE * SIDE * 3);
    let area = (OVERSAMPLING * OVERSAMPLING) as u32;
    for y in 0..SIDE {
        for x in 0..SIDE {
            let x = if drawing.mirrored { SIDE - 1 - x } else { x };
            for channel in 0..3 {
                let mut sum = 0;
                for row in y * OVERSAMPLING..(y + 1) * OVERSAMPLING {
                    for column in x * OVERSAMPLING..(x + 1) * OVERSAMPLING {
                        let pixel = &rgba[(row * large + column) * 4..][..4];
                        // Premultiplied, over white.
                        sum += u32::from(pixel[channel]) + 255 - u32::from(pixel[3]);
                    }
                }
                out.push(((sum + area / 2) / area).min(255) as u8);
            }
        }
    }
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pixels: &[u8], x: usize, y: usize) -> [u8; 3] {
        pixels[(y * SIDE + x) * 3..][..3].try_into().unwrap()
    }

    #[test]
    fn current_color_is_black_on_white_and_mirrors() {
        let body = "<path fill=\"currentColor\" d=\"M0 0h8v16h-8z\"/>";
        let view_box = [0.0, 0.0, 16.0, 16.0];
        let pixels = render(&Drawing { body, view_box, mirrored: false }).unwrap().unwrap();
        assert_eq!((at(&pixels, 0, 0), at(&pixels, 31, 31)), ([0; 3], [255; 3]));
        let pixels = render(&Drawing { body, view_box, mirrored: true }).unwrap().unwrap();
        assert_eq!((at(&pixels, 0, 0), at(&pixels, 31, 31)), ([255; 3], [0; 3]));
    }

    #[test]
    fn proportions_are_kept_and_colors_are_exact() {
        let body = "<path fill=\"#12ab34\" d=\"M0 0h16v8h-16z\"/>";
        let pixels =
            render(&Drawing { body, view_box: [0.0, 0.0, 16.0, 8.0], mirrored: false }).unwrap().unwrap();
        assert_eq!(at(&pixels, 5, 7), [255; 3]);
        assert_eq!(at(&pixels, 5, 8), [0x12, 0xab, 0x34]);
        assert_eq!(at(&pixels, 31, 23), [0x12, 0xab, 0x34]);
        assert_eq!(at(&pixels, 31, 24), [255; 3]);
    }

    #[test]
    fn nothing_visible_is_no_picture_and_bad_markup_is_an_error() {
        let view_box = [0.0, 0.0, 16.0, 16.0];
        assert!(render(&Drawing { body: "<g/>", view_box, mirrored: false }).unwrap().is_none());
        assert!(render(&Drawing { body: "<g", view_box, mirrored: false }).is_err());
    }
}
