//! Matrix loads and tensor-core products of a warp, in the fragment layouts of the PTX manual.

/// What the 32 lanes of a warp give, or get, as 64-bit words of two registers each.
pub(crate) type Lanes<const WORDS: usize> = [[u64; WORDS]; 32];

fn register<const WORDS: usize>(words: &[u64; WORDS], index: usize) -> u32 {
    (words[index / 2] >> (32 * (index % 2))) as u32
}

/// Four 8 × 8 matrices of 16-bit elements from the 16-byte row that each lane gave.
pub(crate) fn load(rows: &Lanes<2>, transposed: bool) -> Lanes<2> {
    let element = |matrix: usize, row: usize, column: usize| {
        let word = register(&rows[8 * matrix + row], column / 2);
        u64::from(word >> (16 * (column % 2)) & 0xffff)
    };
    let mut result = [[0; 2]; 32];
    for (lane, words) in result.iter_mut().enumerate() {
        for matrix in 0..4 {
            let (outer, inner) = (lane / 4, 2 * (lane % 4));
            let pair = if transposed {
                element(matrix, inner, outer) | element(matrix, inner + 1, outer) << 16
            } else {
                element(matrix, outer, inner) | element(matrix, outer, inner + 1) << 16
            };
            words[matrix / 2] |= pair << (32 * (matrix % 2));
        }
    }
    result
}

/// A number `significand · 2^(exponent - fraction)`.
#[derive(Clone, Copy)]
struct Number {
    significand: i32,
    exponent: i32,
    special: Special,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    Finite,
    Infinite,
    NotANumber,
}

/// Bits of a storage type.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    fraction: u32,
    exponent: u32,
}

/// The upper half of an f32.
pub(crate) const BF16: Format = Format { fraction: 7, exponent: 8 };
/// IEEE half precision.
pub(crate) const F16: Format = Format { fraction: 10, exponent: 5 };
const F32: Format = Format { fraction: 23, exponent: 8 };
/// The exponent of zero: below all others, also as one of two factors.
const ZERO: i32 = -100_000;

impl Format {
    /// Of what is not finite, the significand has the sign.
    fn decode(self, bits: u32) -> Number {
        let top = (1 << self.exponent) - 1;
        let field = (bits >> self.fraction & top) as i32;
        let fraction = (bits & ((1 << self.fraction) - 1)) as i32;
        let negative = bits >> (self.fraction + self.exponent) & 1 != 0;
        let special = match (field == top as i32, fraction) {
            (false, _) => Special::Finite,
            (true, 0) => Special::Infinite,
            (true, _) => Special::NotANumber,
        };
        let magnitude = if field == 0 { fraction } else { fraction | 1 << self.fraction };
        let bias = (1 << (self.exponent - 1)) - 1;
        let exponent = if magnitude == 0 { ZERO } else { field.max(1) - bias };
        Number { significand: if negative { -magnitude } else { magnitude }, exponent, special }
    }
}

/// Bits behind the leading one of the largest addend that take part in a sum: those of an f32 and one more.
const ALIGNED: u32 = 24;
/// Products that are added at once.
const GROUP: usize = 8;
/// What every invalid operation gives.
const NAN: u32 = 0x7fff_ffff;

/// A row of the left matrix or a column of the right one.
#[derive(Clone, Copy)]
struct Line {
    significands: [i32; 16],
    exponents: [i32; 16],
    finite: bool,
}

impl Line {
    const EMPTY: Self = Self { significands: [0; 16], exponents: [ZERO; 16], finite: true };

    fn set(&mut self, k: usize, number: Number) {
        self.significands[k] = number.significand;
        self.exponents[k] = number.exponent;
        self.finite &= number.special == Special::Finite;
    }
}

/// `sum` + Σ a·b over the group that begins at `first`: products are exact, every addend is shifted to the exponent
/// of the largest one and loses the bits behind `ALIGNED`, and so does the sum when it becomes an f32 again.
fn add_products(sum: u32, a: &Line, b: &Line, first: usize, format: Format) -> u32 {
    let c = F32.decode(sum);
    let mut significands = [0i32; GROUP];
    let mut exponents = [0i32; GROUP];
    let mut largest = c.exponent;
    for i in 0..GROUP {
        significands[i] = a.significands[first + i] * b.significands[first + i];
        exponents[i] = a.exponents[first + i] + b.exponents[first + i];
        largest = largest.max(exponents[i]);
    }
    // Products have at most 22 bits and become at most 26 long, nine addends so less than 30.
    let aligned = |value: i32, exponent: i32, fraction: u32| {
        let magnitude = value.unsigned_abs() << (ALIGNED - fraction) >> (largest - exponent).min(31);
        if value < 0 { -(magnitude as i32) } else { magnitude as i32 }
    };
    let mut total = aligned(c.significand, c.exponent, F32.fraction);
    for i in 0..GROUP {
        total += aligned(significands[i], exponents[i], 2 * format.fraction);
    }
    encode(i64::from(total), largest - ALIGNED as i32)
}

/// The sum of a group when not everything in it is finite, or `None` when it is.
fn special_sum(sum: u32, a: &Line, b: &Line, first: usize, format: Format) -> Option<u32> {
    let top = 1 << (format.exponent - 1);
    let class = |significand: i32, exponent: i32, top: i32, fraction: u32| match exponent == top {
        false => Special::Finite,
        true if significand.unsigned_abs() == 1 << fraction => Special::Infinite,
        true => Special::NotANumber,
    };
    let c = F32.decode(sum);
    let (mut positive, mut negative) = (false, false);
    let mut infinite = |sign: i32| if sign < 0 { negative = true } else { positive = true };
    match c.special {
        Special::NotANumber => return Some(NAN),
        Special::Infinite => infinite(c.significand),
        Special::Finite => {}
    }
    for i in first..first + GROUP {
        let (x, y) = (a.significands[i], b.significands[i]);
        let classes =
            [class(x, a.exponents[i], top, format.fraction), class(y, b.exponents[i], top, format.fraction)];
        if classes.contains(&Special::NotANumber) {
            return Some(NAN);
        }
        if classes.contains(&Special::Infinite) {
            if x == 0 || y == 0 {
                return Some(NAN);
            }
            infinite(x.signum() * y.signum());
        }
    }
    match (positive, negative) {
        (false, false) => None,
        (true, true) => Some(NAN),
        (true, false) => Some(0x7f80_0000),
        (false, true) => Some(0xff80_0000),
    }
}

/// `value · 2^exponent` as f32, towards zero; beyond the range infinite.
fn encode(value: i64, exponent: i32) -> u32 {
    if value == 0 {
        return 0;
    }
    let sign = if value < 0 { 0x8000_0000 } else { 0 };
    let magnitude = value.unsigned_abs();
    let leading = 63 - magnitude.leading_zeros() as i32;
    let scale = (leading + exponent).max(-126);
    // The unit in the last place is 2^(scale - 23).
    let shift = scale - 23 - exponent;
    let significand = match shift {
        64.. => 0,
        0..64 => magnitude >> shift,
        _ => magnitude << -shift,
    };
    if scale > 127 {
        return sign | 0x7f80_0000;
    }
    let field = if significand < 1 << 23 { 0 } else { (scale + 127) as u32 };
    sign | field << 23 | (significand as u32 & 0x7f_ffff)
}

/// A 16 × 16 by 16 × 8 product added to 16 × 8 sums. Words of a lane: sums (2), a (2), b (1).
pub(crate) fn multiply_add(lanes: &Lanes<5>, format: Format) -> Lanes<2> {
    let mut a = [Line::EMPTY; 16];
    let mut b = [Line::EMPTY; 8];
    for (lane, words) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        for half in 0..2 {
            let value = |index: usize| format.decode(register(words, index) >> (16 * half) & 0xffff);
            for (index, [row, column]) in [[g, t], [g + 8, t], [g, t + 8], [g + 8, t + 8]].iter().enumerate()
            {
                a[*row].set(column + half, value(4 + index));
            }
            b[g].set(t + half, value(8));
            b[g].set(t + 8 + half, value(9));
        }
    }
    let mut result = [[0; 2]; 32];
    for (lane, words) in result.iter_mut().enumerate() {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        for index in 0..4 {
            let (row, column) = (&a[g + 8 * (index / 2)], &b[t + index % 2]);
            let mut sum = register(&lanes[lane], index);
            for first in (0..16).step_by(GROUP) {
                let finite = row.finite && column.finite && sum & 0x7f80_0000 != 0x7f80_0000;
                let special = if finite { None } else { special_sum(sum, row, column, first, format) };
                sum = special.unwrap_or_else(|| add_products(sum, row, column, first, format));
            }
            words[index / 2] |= u64::from(sum) << (32 * (index % 2));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(values: &[f32]) -> Line {
        let mut line = Line::EMPTY;
        for (k, value) in values.iter().enumerate() {
            line.set(k, BF16.decode(value.to_bits() >> 16));
        }
        line
    }

    fn add(sum: f32, a: &[f32], b: &[f32]) -> f32 {
        let (a, b) = (line(a), line(b));
        let bits = sum.to_bits();
        let special = special_sum(bits, &a, &b, 0, BF16);
        f32::from_bits(special.unwrap_or_else(|| add_products(bits, &a, &b, 0, BF16)))
    }

    #[test]
    fn sums_are_cut_off_behind_one_extra_bit() {
        let e = |x: i32| 2f32.powi(x);
        assert_eq!(add(1.5, &[3.0, -0.5], &[5.0, 8.0]), 12.5);
        // 2^-24 is the last bit beside 1, but has no room in the result; two of them have.
        assert_eq!(add(1.0, &[e(-12)], &[e(-12)]), 1.0);
        assert_eq!(add(1.0, &[e(-12), e(-12)], &[e(-12), e(-12)]), 1.0 + e(-23));
        // 2^-25 is lost, however often; towards zero also below it.
        assert_eq!(add(1.0, &[e(-12); 8], &[e(-13); 8]), 1.0);
        assert_eq!(add(-1.0, &[-e(-12); 8], &[e(-13); 8]), -1.0);
        assert_eq!(add(1.0, &[-1.0], &[1.0]).to_bits(), 0);
        // Subnormal results and factors.
        assert_eq!(add(e(-149), &[e(-75)], &[e(-74)]), e(-148));
        assert_eq!(add(0.0, &[e(-133)], &[e(-10)]), e(-143));
        assert_eq!(add(0.0, &[e(-133)], &[e(-30)]), 0.0);
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(add(inf, &[1.0], &[1.0]), inf);
        assert_eq!(add(0.0, &[-inf, 2.0], &[3.0, 1.0]), -inf);
        assert_eq!(add(f32::MAX, &[2f32.powi(127)], &[2.0]), inf);
        assert!(add(inf, &[-inf], &[1.0]).is_nan());
        assert!(add(0.0, &[inf], &[0.0]).is_nan());
        assert!(add(0.0, &[nan], &[0.0]).is_nan());
        assert!(add(nan, &[1.0], &[1.0]).is_nan());
        assert!(add(0.0, &[inf, 1.0], &[1.0, nan]).is_nan());
    }

    #[test]
    fn half_precision_has_subnormals_too() {
        let mut a = Line::EMPTY;
        a.set(0, F16.decode(1));
        let mut b = Line::EMPTY;
        b.set(0, F16.decode(0x7bff));
        assert_eq!(f32::from_bits(add_products(0, &a, &b, 0, F16)), 65504.0 * 2f32.powi(-24));
    }
}
