//! Generated videos: a drawing that moves over a texture.

use std::f32::consts::{PI, TAU};

use consonance_datasets::Split;

use crate::random::Draws;

/// Height and width of a video.
pub(crate) const SIDE: usize = 32;
/// Frames of a video.
pub(crate) const LENGTH: usize = 48;
/// Kinds of motion: sideways, up and down, in circles, growing and shrinking, spinning, at rest.
pub(crate) const KINDS: usize = 6;

/// What a drawing does for a while.
#[derive(Debug, Clone, Copy)]
struct Motion {
    kind: usize,
    /// In pixels.
    reach: f32,
    /// In frames.
    period: f32,
    phase: f32,
}

impl Motion {
    fn draw(kind: usize, draws: &mut Draws) -> Self {
        let (reach, period) = (draws.within(4.0, 7.0), draws.within(9.0, 15.0));
        Self { kind, reach, period, phase: draws.within(0.0, TAU) }
    }

    /// Where it is at a frame: to the right, down, its scale and its angle.
    fn at(&self, frame: usize) -> [f32; 4] {
        let angle = TAU * frame as f32 / self.period + self.phase;
        let (sin, cos) = angle.sin_cos();
        match self.kind {
            0 => [self.reach * sin, 0.0, 1.0, 0.0],
            1 => [0.0, self.reach * sin, 1.0, 0.0],
            2 => [self.reach * cos, self.reach * sin, 1.0, 0.0],
            3 => [0.0, 0.0, 1.0 + 0.07 * self.reach * sin, 0.0],
            4 => [0.0, 0.0, 1.0, angle],
            _ => [0.0, 0.0, 1.0, 0.0],
        }
    }
}

/// A texture of a few colored waves, standing still.
#[derive(Debug, Clone)]
pub(crate) struct Texture(Vec<f32>);

impl Texture {
    pub(crate) fn draw(draws: &mut Draws) -> Self {
        let base = [0; 3].map(|_| draws.within(0.25, 0.75));
        let mut values = base.iter().flat_map(|base| vec![*base; SIDE * SIDE]).collect::<Vec<f32>>();
        for _ in 0..4 {
            let (direction, length) = (draws.within(0.0, PI), draws.within(4.0, 16.0));
            let (phase, colors) = (draws.within(0.0, TAU), [0; 3].map(|_| draws.within(-0.12, 0.12)));
            let (down, right) = (direction.sin() * TAU / length, direction.cos() * TAU / length);
            for y in 0..SIDE {
                for x in 0..SIDE {
                    let wave = (y as f32 * down + x as f32 * right + phase).sin();
                    for (c, color) in colors.iter().enumerate() {
                        values[(c * SIDE + y) * SIDE + x] += color * wave;
                    }
                }
            }
        }
        values.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
        Self(values)
    }
}

/// Where a drawing stands, how large it is, and its angle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    center: [f32; 2],
    size: f32,
    tilt: f32,
}

impl Look {
    pub(crate) fn draw(draws: &mut Draws) -> Self {
        Self {
            center: [0; 2].map(|_| SIDE as f32 / 2.0 + draws.within(-2.0, 2.0)),
            size: draws.within(13.0, 17.0),
            tilt: draws.within(-0.3, 0.3),
        }
    }
}

/// A drawing that moves in one way, and from the middle of the video on in another or the same.
pub(crate) struct Video<'a> {
    drawing: &'a [u8],
    size_of_drawing: (usize, usize),
    texture: &'a Texture,
    look: Look,
    motions: [Motion; 2],
}

impl<'a> Video<'a> {
    /// A video of drawing `row` of a split.
    pub(crate) fn new(
        (split, row): (&'a Split, usize),
        size: (usize, usize),
        (texture, look): (&'a Texture, Look),
        kinds: [usize; 2],
        draws: &mut Draws,
    ) -> Self {
        let first = Motion::draw(kinds[0], draws);
        let second = if kinds[0] == kinds[1] { first } else { Motion::draw(kinds[1], draws) };
        Self { drawing: split.image(row), size_of_drawing: size, texture, look, motions: [first, second] }
    }

    /// Some frames, `[n, 3, SIDE, SIDE]` in [0, 1], behind `out`.
    pub(crate) fn frames(&self, frames: &[u32], out: &mut Vec<f32>) {
        let (height, width) = self.size_of_drawing;
        let Look { center, size, tilt } = self.look;
        for frame in frames {
            let motion = &self.motions[usize::from(*frame as usize >= LENGTH / 2)];
            let [right, down, scale, angle] = motion.at(*frame as usize);
            let (sin, cos) = (angle + tilt).sin_cos();
            let unit = [height as f32, width as f32].map(|side| side / (size * scale));
            let start = out.len();
            out.extend_from_slice(&self.texture.0);
            for y in 0..SIDE {
                for x in 0..SIDE {
                    let (v, u) = (y as f32 - center[1] - down, x as f32 - center[0] - right);
                    let v_of = (cos * v - sin * u) * unit[0] + 0.5 * height as f32;
                    let u_of = (sin * v + cos * u) * unit[1] + 0.5 * width as f32;
                    if v_of < 0.0 || u_of < 0.0 || v_of >= height as f32 || u_of >= width as f32 {
                        continue;
                    }
                    let pixel = &self.drawing[(v_of as usize * width + u_of as usize) * 3..][..3];
                    // Drawings stand on white, which is taken for glass.
                    if pixel.iter().all(|byte| *byte >= 250) {
                        continue;
                    }
                    for (c, byte) in pixel.iter().enumerate() {
                        out[start + (c * SIDE + y) * SIDE + x] = f32::from(*byte) / 255.0;
                    }
                }
            }
        }
    }
}
