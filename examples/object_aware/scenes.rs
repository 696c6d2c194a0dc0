//! Generated scenes: drawings of Emoji-ID over textures, and the boxes around them.

use consonance_datasets::{Dataset, Split};
use consonance_methods::RelativeBox;

use crate::random::Draws;

/// Height and width of a drawing.
const DRAWING: usize = 32;
/// Height and width of what the network is trained on.
pub(crate) const SMALL: usize = 48;
/// Height and width of a scene.
pub(crate) const LARGE: usize = 64;

/// Textures, so that many scenes look alike but for their objects.
const TEXTURES: usize = 4;

/// An image, channels first, in the numbers that the network sees.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    pub(crate) size: usize,
    pub(crate) pixels: Vec<f32>,
}

/// A scene, and where its drawings are.
pub(crate) struct Scene {
    pub(crate) picture: Picture,
    pub(crate) boxes: Vec<RelativeBox>,
}

/// A drawing without the white around it: what is white and connected with the edge.
struct Sprite {
    pixels: Vec<[f32; 3]>,
    inside: Vec<bool>,
}

impl Sprite {
    fn new(image: &[u8]) -> Self {
        let pixels: Vec<[u8; 3]> = image.as_chunks().0.to_vec();
        let white = |at: usize| pixels[at].iter().all(|byte| *byte >= 250);
        let mut inside = vec![true; pixels.len()];
        let edge =
            |at: usize| [0, DRAWING - 1].iter().any(|end| at / DRAWING == *end || at % DRAWING == *end);
        let mut waiting: Vec<usize> = (0..pixels.len()).filter(|at| edge(*at) && white(*at)).collect();
        while let Some(at) = waiting.pop() {
            if !std::mem::take(&mut inside[at]) {
                continue;
            }
            let (y, x) = (at / DRAWING, at % DRAWING);
            let beside = [
                (y > 0).then(|| at - DRAWING),
                (y + 1 < DRAWING).then(|| at + DRAWING),
                (x > 0).then(|| at - 1),
                (x + 1 < DRAWING).then(|| at + 1),
            ];
            waiting.extend(beside.into_iter().flatten().filter(|at| inside[*at] && white(*at)));
        }
        let level = |byte: u8| (f32::from(byte) - 127.5) / 64.0;
        Self { pixels: pixels.iter().map(|rgb| rgb.map(level)).collect(), inside }
    }
}

/// One of a few textures: two colors, mixed by waves of one direction and length, which begin anywhere, and noise.
fn texture(size: usize, draws: &mut Draws) -> Vec<f32> {
    let phase = draws.within(0.0, std::f32::consts::TAU);
    let mut kind = Draws::new(&[0x7465_7874, draws.below(TEXTURES) as u64]);
    let mut color = || [0; 3].map(|_| kind.within(-1.8, 1.8));
    let (a, b) = (color(), color());
    let angle = kind.within(0.0, std::f32::consts::TAU);
    let length = kind.within(3.0, 14.0);
    let is_checked = kind.unit() < 0.5;
    let turn = std::f32::consts::TAU / length;
    let mut pixels = vec![0.0; 3 * size * size];
    for at in 0..size * size {
        let (y, x) = ((at / size) as f32, (at % size) as f32);
        let wave = (turn * (x * angle.cos() + y * angle.sin()) + phase).sin();
        let across = (turn * (y * angle.cos() - x * angle.sin()) + phase).sin();
        let mix = if is_checked { 0.5 + 0.5 * wave * across } else { 0.5 + 0.5 * wave };
        for channel in 0..3 {
            let noise = 0.15 * draws.normal();
            pixels[channel * size * size + at] = a[channel] + (b[channel] - a[channel]) * mix + noise;
        }
    }
    pixels
}

/// Puts a drawing of `size` pixels at a place, and says where its pixels are.
fn put(
    picture: &mut Picture,
    sprite: &Sprite,
    size: usize,
    (top, left): (usize, usize),
) -> Option<RelativeBox> {
    let (mut rows, mut columns) = ((usize::MAX, 0), (usize::MAX, 0));
    for y in 0..size {
        for x in 0..size {
            let from = (y * DRAWING / size) * DRAWING + x * DRAWING / size;
            if !sprite.inside[from] {
                continue;
            }
            let (v, u) = (top + y, left + x);
            rows = (rows.0.min(v), rows.1.max(v + 1));
            columns = (columns.0.min(u), columns.1.max(u + 1));
            for channel in 0..3 {
                let plane = channel * picture.size * picture.size;
                picture.pixels[plane + v * picture.size + u] = sprite.pixels[from][channel];
            }
        }
    }
    let share = |edge: usize| edge as f64 / picture.size as f64;
    (rows.0 < rows.1).then(|| RelativeBox {
        top: share(rows.0),
        left: share(columns.0),
        bottom: share(rows.1),
        right: share(columns.1),
    })
}

/// A scene of one or two drawings of 24 to 36 pixels that do not overlap.
pub(crate) fn scene(split: &Split, draws: &mut Draws) -> Scene {
    let mut picture = Picture { size: LARGE, pixels: texture(LARGE, draws) };
    let mut taken: Vec<[usize; 3]> = Vec::new();
    let mut boxes = Vec::new();
    let count = 1 + draws.below(2);
    // A drawing that finds no room is left out; the first one always does.
    for _ in 0..count {
        let size = 24 + draws.below(13);
        let (top, left) = (draws.below(LARGE - size + 1), draws.below(LARGE - size + 1));
        let apart = |a: usize, b: usize, of_a: usize, of_b: usize| a + of_a <= b || b + of_b <= a;
        let fits = |[t, l, s]: &[usize; 3]| apart(*t, top, *s, size) || apart(*l, left, *s, size);
        if taken.iter().all(fits) {
            taken.push([top, left, size]);
            let sprite = Sprite::new(split.image(draws.below(split.len())));
            boxes.extend(put(&mut picture, &sprite, size, (top, left)));
        }
    }
    Scene { picture, boxes }
}

/// Single drawings for a test: of every identity one, each time on `copies` textures, with their identities.
pub(crate) fn singles(
    data: &Dataset,
    identities: usize,
    copies: usize,
    draws: &mut Draws,
) -> (Vec<Picture>, Vec<u32>) {
    let split = &data.query;
    let mut of_identity: Vec<(u32, usize)> = Vec::new();
    for (row, identity) in split.identities().into_iter().enumerate() {
        if of_identity.iter().all(|(known, _)| *known != identity) && of_identity.len() < identities {
            of_identity.push((identity, row));
        }
    }
    let (mut pictures, mut labels) = (Vec::new(), Vec::new());
    for (identity, row) in of_identity {
        let sprite = Sprite::new(split.image(row));
        for _ in 0..copies {
            let mut picture = Picture { size: SMALL, pixels: texture(SMALL, draws) };
            let size = 30 + draws.below(10);
            let place = (draws.below(SMALL - size + 1), draws.below(SMALL - size + 1));
            put(&mut picture, &sprite, size, place);
            pictures.push(picture);
            labels.push(identity);
        }
    }
    (pictures, labels)
}

/// Channels last, as the network takes them; when `draws` is there, turned left to right half the time, with brightness, contrast
/// and color changed.
pub(crate) fn dense(pixels: &[f32], draws: Option<&mut Draws>) -> Vec<f32> {
    let plane = pixels.len() / 3;
    let (mut gain, mut shift, mut is_gray, mut is_flipped) = ([1.0; 3], [0.0; 3], false, false);
    if let Some(draws) = draws {
        let (contrast, brightness) = (draws.within(0.6, 1.4), draws.within(-0.4, 0.4));
        gain = gain.map(|_| contrast * draws.within(0.7, 1.3));
        shift = shift.map(|_| brightness + draws.within(-0.3, 0.3));
        is_gray = draws.unit() < 0.2;
        is_flipped = draws.unit() < 0.5;
    }
    let mut out = Vec::with_capacity(pixels.len());
    let width = plane.isqrt();
    for to in 0..plane {
        let at = if is_flipped { to / width * width + width - 1 - to % width } else { to };
        let mut rgb = [0, 1, 2].map(|c| pixels[c * plane + at] * gain[c] + shift[c]);
        if is_gray {
            rgb = [rgb.iter().sum::<f32>() / 3.0; 3];
        }
        out.extend(rgb);
    }
    out
}
