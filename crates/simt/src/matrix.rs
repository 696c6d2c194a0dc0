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
    /// Significand and exponent of a number `significand · 2^(exponent - fraction)`, without a branch: the compiler makes
    /// vectors of the loops around it. What is not finite has the exponent of the next power of two.
    #[inline(always)]
    fn decode(self, bits: u32) -> (i32, i32) {
        let field = (bits >> self.fraction & ((1 << self.exponent) - 1)) as i32;
        let fraction = (bits & ((1 << self.fraction) - 1)) as i32;
        let magnitude = if field == 0 { fraction } else { fraction | 1 << self.fraction };
        let bias = (1 << (self.exponent - 1)) - 1;
        let exponent = if magnitude == 0 { ZERO } else { field.max(1) - bias };
        let sign = (bits << (31 - self.fraction - self.exponent)) as i32 >> 31;
        ((magnitude ^ sign) - sign, exponent)
    }

    /// The exponent of what is not finite.
    const fn top(self) -> i32 {
        1 << (self.exponent - 1)
    }

    fn class(self, (significand, exponent): (i32, i32)) -> Special {
        if exponent != self.top() {
            Special::Finite
        } else if significand.unsigned_abs() == 1 << self.fraction {
            Special::Infinite
        } else {
            Special::NotANumber
        }
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
    #[inline(always)]
    fn of(bits: [u32; 16], format: Format) -> Self {
        let mut line = Self { significands: [0; 16], exponents: [0; 16], finite: true };
        for (k, bits) in bits.into_iter().enumerate() {
            (line.significands[k], line.exponents[k]) = format.decode(bits);
        }
        line.finite = line.exponents.iter().all(|exponent| *exponent != format.top());
        line
    }
}

/// A loop, as `array::map` is not inlined into functions for certain processors.
#[inline(always)]
fn lines<const COUNT: usize>(bits: &[[u32; 16]; COUNT], format: Format) -> [Line; COUNT] {
    let mut lines = [Line { significands: [0; 16], exponents: [0; 16], finite: true }; COUNT];
    for (line, bits) in lines.iter_mut().zip(bits) {
        *line = Line::of(*bits, format);
    }
    lines
}

/// `sum` + Σ a·b over the group that begins at `first`: products are exact, every addend is shifted to the exponent
/// of the largest one and loses the bits behind `ALIGNED`, and so does the sum when it becomes an f32 again.
fn add_products(sum: u32, a: &Line, b: &Line, first: usize, format: Format) -> u32 {
    let (significand, exponent) = F32.decode(sum);
    let mut significands = [0i32; GROUP];
    let mut exponents = [0i32; GROUP];
    let mut largest = exponent;
    for i in 0..GROUP {
        significands[i] = a.significands[first + i] * b.significands[first + i];
        exponents[i] = a.exponents[first + i] + b.exponents[first + i];
        largest = largest.max(exponents[i]);
    }
    let mut total = aligned(significand, largest - exponent, F32.fraction);
    for i in 0..GROUP {
        total += aligned(significands[i], largest - exponents[i], 2 * format.fraction);
    }
    encode(total, largest - ALIGNED as i32)
}

const COLUMNS: usize = 8;

/// The right matrix, the numbers of a row of it side by side.
struct Columns {
    significands: [[i32; COLUMNS]; 16],
    exponents: [[i32; COLUMNS]; 16],
    finite: bool,
}

impl Columns {
    #[inline(always)]
    fn of(lines: &[Line; COLUMNS]) -> Self {
        let mut columns = Self {
            significands: [[0; COLUMNS]; 16],
            exponents: [[0; COLUMNS]; 16],
            finite: lines.iter().all(|line| line.finite),
        };
        for k in 0..16 {
            for (n, line) in lines.iter().enumerate() {
                columns.significands[k][n] = line.significands[k];
                columns.exponents[k][n] = line.exponents[k];
            }
        }
        columns
    }

    /// `add_products` of finite numbers for all columns at once.
    #[allow(clippy::needless_range_loop, reason = "one index through several arrays: a vector of columns")]
    #[inline(always)]
    fn add_products(&self, sums: [u32; COLUMNS], a: &Line, first: usize, format: Format) -> [u32; COLUMNS] {
        let mut largest = [0i32; COLUMNS];
        let mut total = [0i32; COLUMNS];
        for n in 0..COLUMNS {
            let (significand, exponent) = F32.decode(sums[n]);
            total[n] = significand;
            largest[n] = exponent;
        }
        let own = largest;
        for k in first..first + GROUP {
            for n in 0..COLUMNS {
                largest[n] = largest[n].max(a.exponents[k] + self.exponents[k][n]);
            }
        }
        for n in 0..COLUMNS {
            total[n] = aligned(total[n], largest[n] - own[n], F32.fraction);
        }
        for k in first..first + GROUP {
            for n in 0..COLUMNS {
                let product = a.significands[k] * self.significands[k][n];
                let exponent = a.exponents[k] + self.exponents[k][n];
                total[n] += aligned(product, largest[n] - exponent, 2 * format.fraction);
            }
        }
        let mut result = [0; COLUMNS];
        for n in 0..COLUMNS {
            result[n] = encode(total[n], largest[n] - ALIGNED as i32);
        }
        result
    }
}

/// `value` with `fraction` bits behind its point, brought to `ALIGNED` of them and then moved behind `distance` places,
/// towards zero. Products have at most 22 bits and become at most 26 long, nine addends so less than 30.
#[inline(always)]
fn aligned(value: i32, distance: i32, fraction: u32) -> i32 {
    let magnitude = value.unsigned_abs() << (ALIGNED - fraction) >> distance.min(31);
    // The sign without a branch: the compiler makes a vector of columns of this.
    let sign = value >> 31;
    (magnitude as i32 ^ sign) - sign
}

/// The sum of a group when not everything in it is finite, or `None` when it is.
#[cold]
fn special_sum(sum: u32, a: &Line, b: &Line, first: usize, format: Format) -> Option<u32> {
    let c = F32.decode(sum);
    let (mut positive, mut negative) = (false, false);
    let mut infinite = |sign: i32| if sign < 0 { negative = true } else { positive = true };
    match F32.class(c) {
        Special::NotANumber => return Some(NAN),
        Special::Infinite => infinite(c.0),
        Special::Finite => {}
    }
    for i in first..first + GROUP {
        let (x, y) = (a.significands[i], b.significands[i]);
        let classes = [format.class((x, a.exponents[i])), format.class((y, b.exponents[i]))];
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

/// `value · 2^exponent` as f32, towards zero; beyond the range infinite. Without a branch, for `value` below 2^30.
#[inline(always)]
fn encode(value: i32, exponent: i32) -> u32 {
    let sign = value as u32 & 0x8000_0000;
    let magnitude = value.unsigned_abs();
    // As a float, less the bits that could round it up to the next power of two.
    let leading = ((magnitude & !(magnitude >> 1)) as i32 as f32).to_bits() as i32 >> 23;
    let scale = (leading - 127 + exponent).max(-126);
    // The unit in the last place is 2^(scale - 23).
    let shift = scale - 23 - exponent;
    let significand = magnitude >> shift.clamp(0, 31) << (-shift).clamp(0, 31);
    let field = if significand < 1 << 23 { 0 } else { (scale + 127) as u32 };
    let finite = sign | field << 23 | significand & 0x7f_ffff;
    let bits = if scale > 127 { sign | 0x7f80_0000 } else { finite };
    if value == 0 { 0 } else { bits }
}

/// A 16 × 16 by 16 × 8 product added to 16 × 8 sums. Words of a lane: sums (2), a (2), b (1).
pub(crate) fn multiply_add(lanes: &Lanes<5>, format: Format) -> Lanes<2> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("lzcnt")
    {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { multiply_add_avx2(lanes, format) };
    }
    multiply_add_anywhere(lanes, format)
}

/// The same instructions for every processor, and for those that shift every element by its own distance: a group of
/// products is one register there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2,lzcnt")]
fn multiply_add_avx2(lanes: &Lanes<5>, format: Format) -> Lanes<2> {
    multiply_add_anywhere(lanes, format)
}

#[inline(always)]
fn multiply_add_anywhere(lanes: &Lanes<5>, format: Format) -> Lanes<2> {
    let mut a = [[0; 16]; 16];
    let mut b = [[0; 16]; COLUMNS];
    for (lane, words) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        for half in 0..2 {
            let value = |index: usize| register(words, index) >> (16 * half) & 0xffff;
            for (index, [row, column]) in [[g, t], [g + 8, t], [g, t + 8], [g + 8, t + 8]].iter().enumerate()
            {
                a[*row][column + half] = value(4 + index);
            }
            b[g][t + half] = value(8);
            b[g][t + 8 + half] = value(9);
        }
    }
    let (a, b) = (lines(&a, format), lines(&b, format));
    let columns = Columns::of(&b);
    let mut result = [[0; 2]; 32];
    for (row, line) in a.iter().enumerate() {
        // A lane has two neighboring columns of a row, in one word.
        let (first_lane, word) = (row % 8 * 4, row / 8);
        let mut sums = [0; COLUMNS];
        for (column, sum) in sums.iter_mut().enumerate() {
            *sum = register(&lanes[first_lane + column / 2], 2 * word + column % 2);
        }
        for first in (0..16).step_by(GROUP) {
            if line.finite && columns.finite && sums.iter().all(|sum| sum & 0x7f80_0000 != 0x7f80_0000) {
                sums = columns.add_products(sums, line, first, format);
                continue;
            }
            for (sum, column) in sums.iter_mut().zip(&b) {
                let special = special_sum(*sum, line, column, first, format);
                *sum = special.unwrap_or_else(|| add_products(*sum, line, column, first, format));
            }
        }
        for (column, sum) in sums.iter().enumerate() {
            result[first_lane + column / 2][word] |= u64::from(*sum) << (32 * (column % 2));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(values: &[f32]) -> Line {
        let mut bits = [0; 16];
        bits.iter_mut().zip(values).for_each(|(bits, value)| *bits = value.to_bits() >> 16);
        Line::of(bits, BF16)
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
        let line = |first| Line::of(std::array::from_fn(|k| if k == 0 { first } else { 0 }), F16);
        let (a, b) = (line(1), line(0x7bff));
        assert_eq!(f32::from_bits(add_products(0, &a, &b, 0, F16)), 65504.0 * 2f32.powi(-24));
    }

    /// Numbers of all kinds: zeros, subnormals, far exponents, infinities, NaN.
    #[test]
    fn columns_side_by_side_are_summed_like_one_alone() {
        let mut random = crate::random::Random::new(1);
        let mut bits = |finite: bool| {
            let mut word = random.next();
            if random.below(2) == 0 {
                word &= 0x9fff_9fff_9fff_9fff; // small ones
            }
            if random.below(4) == 0 {
                word &= 0x83ff_807f_83ff_807f; // subnormal ones, and zeros
            }
            if finite { word & 0xbfff_bfff_bfff_bfff } else { word }
        };
        for (turn, format) in [BF16, F16, BF16, F16].into_iter().cycle().take(400).enumerate() {
            let lanes: Lanes<5> = std::array::from_fn(|_| std::array::from_fn(|_| bits(turn % 4 < 2)));
            let found = multiply_add(&lanes, format);
            for (lane, words) in found.iter().enumerate() {
                let (g, t) = (lane / 4, 2 * (lane % 4));
                for index in 0..4 {
                    let (row, column) = (g + 8 * (index / 2), t + index % 2);
                    let element = |lane: usize, register_at: usize, half: usize| {
                        register(&lanes[lane], register_at) >> (16 * half) & 0xffff
                    };
                    let a = std::array::from_fn(|k| {
                        element(row % 8 * 4 + k % 8 / 2, 4 + row / 8 + 2 * (k / 8), k % 2)
                    });
                    let b = std::array::from_fn(|k| element(column * 4 + k % 8 / 2, 8 + k / 8, k % 2));
                    let (a, b) = (Line::of(a, format), Line::of(b, format));
                    let mut sum = register(&lanes[lane], index);
                    for first in [0, 8] {
                        let special = special_sum(sum, &a, &b, first, format);
                        sum = special.unwrap_or_else(|| add_products(sum, &a, &b, first, format));
                    }
                    assert_eq!(register(words, index), sum, "turn {turn}, row {row}, column {column}");
                }
            }
        }
    }
}
