use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One, in nanos: the finest step a quantity has.
const NANOS: i128 = 1_000_000_000;
/// Largest amount, in nanos: 2⁶³-1 units, as `k8s.io/apimachinery/pkg/api/resource` caps it.
const LIMIT: i128 = (i64::MAX as i128) * NANOS;
/// More digits than this cannot matter between 10⁻⁹ and 2⁶³; longer input is refused rather than worked on.
const LENGTH_LIMIT: usize = 128;

/// How a quantity wants to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No digits, or something that is neither digit, dot nor suffix.
    #[error("quantity {0:?} has no valid number")]
    BadNumber(String),
    /// The suffix is unknown.
    #[error("quantity {0:?} has an unknown suffix")]
    BadSuffix(String),
    /// Longer than 128 characters.
    #[error("quantity is too long")]
    TooLong,
}

/// A Kubernetes resource quantity, exact to 10⁻⁹ and capped at ±(2⁶³-1).
///
/// Compares and hashes by amount alone: `1` equals `1000m`.
#[derive(Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// That many units, written with decimal suffixes.
    pub fn from_units(units: i64) -> Self {
        Self::from_nanos(i128::from(units) * NANOS, Format::DecimalSi)
    }

    /// That many bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self::from_nanos(i128::from(bytes) * NANOS, Format::BinarySi)
    }

    /// That many thousandths, written with decimal suffixes.
    pub fn from_millis(millis: i64) -> Self {
        Self::from_nanos(i128::from(millis) * (NANOS / 1000), Format::DecimalSi)
    }

    /// From the finest step; capped.
    pub fn from_nanos(nanos: i128, format: Format) -> Self {
        Self { nanos: nanos.clamp(-LIMIT, LIMIT), format }
    }

    /// Whole units (bytes), rounded away from zero, as `Quantity.Value()` does.
    pub fn units(&self) -> i128 {
        round_away(self.nanos, NANOS)
    }

    /// Thousandths (milli-CPU), rounded away from zero, as `Quantity.MilliValue()` does.
    pub fn millis(&self) -> i128 {
        round_away(self.nanos, NANOS / 1000)
    }

    /// The exact amount.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Nothing at all.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
}

/// Divides; a remainder counts as one more, away from zero.
fn round_away(value: i128, step: i128) -> i128 {
    let whole = value / step;
    match value % step {
        0 => whole,
        rest => whole + rest.signum(),
    }
}

struct Suffix {
    format: Format,
    base: u32,
    exponent: i32,
}

fn parse_suffix(suffix: &str) -> Option<Suffix> {
    let decimal = |exponent| Suffix { format: Format::DecimalSi, base: 10, exponent };
    let binary = |exponent| Suffix { format: Format::BinarySi, base: 2, exponent };
    Some(match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let exponent = digits.strip_prefix('+').unwrap_or(digits).parse().ok()?;
            Suffix { format: Format::DecimalExponent, base: 10, exponent }
        }
    })
}

/// `digits` (all of them, without the dot) times `10^-fraction` times `base^exponent`, in nanos, away from zero, capped.
fn scale(digits: &str, fraction: usize, suffix: &Suffix) -> i128 {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let decimal_exponent = if suffix.base == 10 { suffix.exponent } else { 0 };
    let mut exponent = i64::from(decimal_exponent) + 9 - i64::try_from(fraction).unwrap_or(i64::MAX);
    let magnitude = i64::try_from(digits.len()).unwrap_or(i64::MAX) + exponent;
    // 10^29 nanos is beyond the cap; with at least that many digits the answer is known.
    if magnitude > 30 {
        return LIMIT;
    }
    if magnitude < -20 {
        return 1;
    }
    // At most 34 digits go into the sum (34 digits * 2^60 could overflow, so binary ones are checked); the rest only rounds up.
    let kept = digits.len().min(34);
    let mut value: i128 = digits[..kept].parse().unwrap_or(LIMIT);
    exponent += i64::try_from(digits.len() - kept).unwrap_or(0);
    let mut inexact = digits[kept..].bytes().any(|b| b != b'0');
    if suffix.base == 2 {
        // Whole part and remainder apart, so that 18 digits times 2^60 stays in range.
        let Some(product) = value.checked_mul(1_i128 << suffix.exponent) else {
            return binary_wide(value, suffix.exponent, exponent);
        };
        value = product;
    }
    while exponent > 0 {
        match value.checked_mul(10) {
            Some(product) => value = product,
            None => return LIMIT,
        }
        exponent -= 1;
    }
    while exponent < 0 {
        inexact |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    (value + i128::from(inexact)).min(LIMIT)
}

/// Many digits times a large power of two: divide first; what is lost is far below one nano per unit of the last digit kept.
fn binary_wide(value: i128, binary_exponent: i32, exponent: i64) -> i128 {
    let mut value = value;
    let mut exponent = exponent;
    let mut inexact = false;
    while value.checked_mul(1_i128 << binary_exponent).is_none() {
        inexact |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    value *= 1_i128 << binary_exponent;
    while exponent < 0 {
        inexact |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    while exponent > 0 {
        match value.checked_mul(10) {
            Some(product) => value = product,
            None => return LIMIT,
        }
        exponent -= 1;
    }
    (value + i128::from(inexact)).min(LIMIT)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.len() > LENGTH_LIMIT {
            return Err(QuantityError::TooLong);
        }
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::BadNumber(text.to_owned()));
        }
        let suffix = parse_suffix(suffix).ok_or_else(|| QuantityError::BadSuffix(text.to_owned()))?;
        let magnitude = scale(&format!("{whole}{fraction}"), fraction.len(), &suffix);
        Ok(Self::from_nanos(if negative { -magnitude } else { magnitude }, suffix.format))
    }
}

/// The canonical form: no fraction, the largest suffix that loses nothing.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANOS == 0;
        let small = self.nanos.abs() < 1024 * NANOS;
        let format = match self.format {
            Format::BinarySi if small || !whole => Format::DecimalSi,
            other => other,
        };
        if format == Format::BinarySi {
            let mut number = self.nanos / NANOS;
            let mut step = 0;
            while number % 1024 == 0 && step < 6 {
                number /= 1024;
                step += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let mut number = self.nanos;
        let mut exponent = -9_i32;
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if format == Format::DecimalExponent {
            return match exponent {
                0 => write!(f, "{number}"),
                _ => write!(f, "{number}e{exponent}"),
            };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{number}{suffix}")
    }
}

impl fmt::Debug for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl std::hash::Hash for Quantity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.nanos.hash(state);
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Capped; keeps the left side's format unless it is zero.
impl Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity::from_nanos(self.nanos + other.nanos, format)
    }
}

/// Capped; keeps the left side's format unless it is zero.
impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity::from_nanos(self.nanos - other.nanos, format)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A quantity may come as a string or as a bare number.
impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Null => return Ok(Quantity::ZERO),
            _ => return Err(serde::de::Error::custom("a quantity is a string or a number")),
        };
        text.trim().parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_writes_canonically() {
        let table = [
            ("0", "0"),
            ("0Ki", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("-1.5", "-1500m"),
            ("100m", "100m"),
            ("0.1", "100m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1100Mi", "1100Mi"),
            ("0.5Mi", "512Ki"),
            ("1.0001Ki", "1024102400u"),
            ("12e6", "12e6"),
            ("12E6", "12e6"),
            ("1200e3", "1200e3"),
            ("1000e3", "1e6"),
            ("1e-3", "1e-3"),
            ("1E", "1E"),
            ("5e0", "5"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1e-100", "1e-9"),
            ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("-1e99", "-9223372036854775807"),
            ("123456789", "123456789"),
        ];
        for (given, expected) in table {
            let quantity: Quantity = given.parse().unwrap();
            assert_eq!(quantity.to_string(), expected, "{given}");
            assert_eq!(expected.parse::<Quantity>().unwrap(), quantity, "stable: {given}");
        }
    }

    #[test]
    fn refuses() {
        for text in [
            "", "-", ".", "1.2.3", "1ki", "1KI", "Mi", "1 Mi", "1e", "1e+", "1ee3", "a", "1i", "--1", "1Mii",
            "0x10",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        assert!("1".repeat(129).parse::<Quantity>().is_err());
    }

    #[test]
    fn rounds_up() {
        let table = [
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("-1.5", -2, -1500),
            ("1u", 1, 1),
            ("1Gi", 1 << 30, (1 << 30) * 1000),
        ];
        for (given, units, millis) in table {
            let quantity: Quantity = given.parse().unwrap();
            assert_eq!((quantity.units(), quantity.millis()), (units, millis), "{given}");
        }
    }

    #[test]
    fn compares_adds_and_travels() {
        let one: Quantity = "1".parse().unwrap();
        let half: Quantity = "500m".parse().unwrap();
        assert_eq!(one, "1000m".parse().unwrap());
        assert!(half < one);
        assert_eq!((one + half).to_string(), "1500m");
        assert_eq!((half - one).to_string(), "-500m");
        assert_eq!((Quantity::ZERO + Quantity::from_bytes(1 << 20)).to_string(), "1Mi");
        assert_eq!(serde_json::to_string(&half).unwrap(), "\"500m\"");
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap(), Quantity::from_units(2));
        assert_eq!(serde_json::from_str::<Quantity>("\"2.5\"").unwrap(), Quantity::from_millis(2500));
    }

    #[test]
    fn long_numbers_do_not_overflow() {
        for text in
            ["0.123456789012345678901234567890123456789Ei", "1.000000000000000000000000000000000001Pi"]
        {
            let quantity: Quantity = text.parse().unwrap();
            assert!(quantity.nanos() > 0);
        }
        let long = format!("0.{}1", "0".repeat(100));
        assert_eq!(long.parse::<Quantity>().unwrap().nanos(), 1);
    }
}
