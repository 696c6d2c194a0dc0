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

/// A finite number `significand · 2^(exponent - FRACTION)`, or what is none.
#[derive(Clone, Copy, Default)]
struct Number {
    significand: i32,
    exponent: i32,
    special: Special,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Special {
    #[default]
    Finite,
    Infinite,
    NotANumber,
}

/// Bits of a fraction of a storage type.
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

impl Format {
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
        let magnitude = if special != Special::Finite {
            1
        } else if field == 0 {
            fraction
        } else {
            fraction | 1 << self.fraction
        };
        let bias = (1 << (self.exponent - 1)) - 1;
        let exponent = field.max(1) - bias;
        Number { significand: if negative { -magnitude } else { magnitude }, exponent, special }
    }
}

/// Bits behind the leading one of the largest addend that take part in a sum: those of an f32 and one more.
const ALIGNED: i32 = 24;
/// Products that are added at once.
const GROUP: usize = 8;
/// What every invalid operation gives.
const NAN: u32 = 0x7fff_ffff;

/// `sum` + Σ a·b over one group: products are exact, every addend is shifted to the exponent of the largest one
/// and loses the bits behind `ALIGNED`, and so does the sum when it becomes an f32 again.
fn add_products(sum: u32, a: &[Number], b: &[Number], format: Format) -> u32 {
    let c = F32.decode(sum);
    let mut special = c.special;
    let mut sign = c.significand.signum();
    let mut largest = if c.significand == 0 { i32::MIN } else { c.exponent };
    let mut products = [(0i64, 0i32); GROUP];
    for (product, (a, b)) in products.iter_mut().zip(a.iter().zip(b)) {
        let significand = i64::from(a.significand) * i64::from(b.significand);
        if a.special != Special::Finite || b.special != Special::Finite {
            let this = match (a.special, b.special) {
                (Special::NotANumber, _) | (_, Special::NotANumber) => Special::NotANumber,
                _ if significand == 0 => Special::NotANumber,
                _ => Special::Infinite,
            };
            let this_sign = significand.signum() as i32;
            special = match (special, this) {
                (Special::Finite, this) => {
                    sign = this_sign;
                    this
                }
                (Special::Infinite, Special::Infinite) if sign == this_sign => Special::Infinite,
                _ => Special::NotANumber,
            };
        }
        *product = (significand, a.exponent + b.exponent);
        if significand != 0 {
            largest = largest.max(product.1);
        }
    }
    match special {
        Special::NotANumber => return NAN,
        Special::Infinite => return if sign < 0 { 0xff80_0000 } else { 0x7f80_0000 },
        Special::Finite => {}
    }
    if largest == i32::MIN {
        // Zeros only; their signs are not followed.
        return 0;
    }
    let shifted = |value: i64, exponent: i32, fraction: i32| {
        let shift = largest - exponent - (ALIGNED - fraction);
        let magnitude = value.unsigned_abs();
        let magnitude = match shift {
            64.. => 0,
            0..64 => magnitude >> shift,
            _ => magnitude << -shift,
        };
        if value < 0 { -(magnitude as i64) } else { magnitude as i64 }
    };
    let mut total = shifted(i64::from(c.significand), c.exponent, F32.fraction as i32);
    for (value, exponent) in products {
        if value != 0 {
            total += shifted(value, exponent, 2 * format.fraction as i32);
        }
    }
    encode(total, largest - ALIGNED)
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
    let mut a = [[Number::default(); 16]; 16];
    let mut b = [[Number::default(); 16]; 8];
    for (lane, words) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        for half in 0..2 {
            let value = |index: usize| format.decode(register(words, index) >> (16 * half) & 0xffff);
            for (index, [row, column]) in [[g, t], [g + 8, t], [g, t + 8], [g + 8, t + 8]].iter().enumerate()
            {
                a[*row][column + half] = value(4 + index);
            }
            b[g][t + half] = value(8);
            b[g][t + 8 + half] = value(9);
        }
    }
    let mut result = [[0; 2]; 32];
    for (lane, words) in result.iter_mut().enumerate() {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        for index in 0..4 {
            let (row, column) = (g + 8 * (index / 2), t + index % 2);
            let mut sum = register(&lanes[lane], index);
            for group in (0..16).step_by(GROUP) {
                let range = group..group + GROUP;
                sum = add_products(sum, &a[row][range.clone()], &b[column][range], format);
            }
            words[index / 2] |= u64::from(sum) << (32 * (index % 2));
        }
    }
    result
}
