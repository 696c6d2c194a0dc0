//! Steps of colors, a row of pixels at a time.
//!
//! Saturation and hue need no hue to be computed: with V, m and c the largest value, the smallest, and their difference,
//! saturation times f is x ← V − (V − x) min(f, V/c), and the hue moves along V − c · trapezium of the sextant.

use super::parameters::ColorStep;

/// The weights of the luma that the published training uses.
pub(super) const LUMA: [f32; 3] = [0.2989, 0.587, 0.114];

/// The rows of the three channels.
pub(super) type Row<'a> = [&'a mut [f32]; 3];

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
pub(super) fn clipped(x: f32) -> f32 {
    smaller(larger(x, 0.0), 1.0)
}

#[inline(always)]
fn each_value(row: &mut Row<'_>, change: impl Fn(usize, f32) -> f32) {
    for (c, values) in row.iter_mut().enumerate() {
        for x in values.iter_mut() {
            *x = change(c, *x);
        }
    }
}

#[inline(always)]
fn each_pixel(row: &mut Row<'_>, change: impl Fn([f32; 3]) -> [f32; 3]) {
    let [r, g, b] = row;
    let n = r.len();
    let (g, b) = (&mut g[..n], &mut b[..n]);
    for i in 0..n {
        [r[i], g[i], b[i]] = change([r[i], g[i], b[i]]);
    }
}

/// One step, clipped. `pivots` are the means of the channels, for the contrast alone.
#[inline(always)]
pub(super) fn step(row: &mut Row<'_>, step: ColorStep, factor: f32, pivots: [f32; 3]) {
    match step {
        ColorStep::Brightness => each_value(
            row,
            #[inline(always)]
            |_, x| clipped(factor * x),
        ),
        ColorStep::Contrast => {
            each_value(
                row,
                #[inline(always)]
                |c, x| clipped(factor.mul_add(x - pivots[c], pivots[c])),
            );
        }
        ColorStep::Saturation => each_pixel(
            row,
            #[inline(always)]
            |[r, g, b]: [f32; 3]| {
                let value = larger(larger(r, g), b);
                let chroma = value - smaller(smaller(r, g), b);
                // Without chroma the first branch holds, whatever the quotient is.
                let scale = if factor * chroma <= value { factor } else { value / chroma };
                [r, g, b].map(
                    #[inline(always)]
                    |x| clipped(value - (value - x) * scale),
                )
            },
        ),
        ColorStep::Hue => {
            let sextants = 6.0 * factor;
            each_pixel(
                row,
                #[inline(always)]
                |[r, g, b]: [f32; 3]| {
                    let value = larger(larger(r, g), b);
                    let chroma = value - smaller(smaller(r, g), b);
                    let divisor = if chroma > 0.0 { chroma } else { 1.0 };
                    let (difference, start) = if value == r {
                        (g - b, 0.0)
                    } else if value == g {
                        (b - r, 2.0)
                    } else {
                        (r - g, 4.0)
                    };
                    let hue = difference / divisor + start + sextants;
                    [5.0, 3.0, 1.0].map(
                        #[inline(always)]
                        |offset: f32| {
                            let k = hue + offset;
                            let k = k - 6.0 * (k * (1.0 / 6.0)).floor();
                            clipped(value - chroma * clipped(smaller(k, 4.0 - k)))
                        },
                    )
                },
            );
        }
    }
}

/// All channels become the luma.
#[inline(always)]
pub(super) fn grayscale(row: &mut Row<'_>) {
    let [red, green, blue] = LUMA;
    each_pixel(
        row,
        #[inline(always)]
        |[r, g, b]: [f32; 3]| [blue.mul_add(b, green.mul_add(g, red * r)); 3],
    );
}
