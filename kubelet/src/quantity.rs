//! Kubernetes quantities as integers (apimachinery `resource.Quantity`): rounded up, in thousandths or in whole units.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A list of resources, as in requests, limits, capacity.
pub(crate) type Resources = BTreeMap<String, Quantity>;

fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 1));
    let decimal = |power: u32| Some((10_i128.pow(power), 1));
    match suffix {
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => Some((1, 1)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            match exponent {
                0..=18 => Some((10_i128.pow(exponent.unsigned_abs()), 1)),
                -9..=-1 => Some((1, 10_i128.pow(exponent.unsigned_abs()))),
                _ => None,
            }
        }
    }
}

/// The value in thousandths, rounded up; saturates at the largest `i64`.
pub(crate) fn milli(text: &str) -> Option<i64> {
    let number_length =
        text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_length);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole = whole.trim_start_matches(['+', '-']);
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 15 || whole.len() > 18 {
        return None;
    }
    let digits: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let (multiply, divide) = scale(suffix)?;
    let numerator = digits.checked_mul(multiply)?.checked_mul(1000)?;
    let denominator = divide * 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let value = (numerator + denominator - 1) / denominator;
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    Some(if negative { -value } else { value })
}

/// The value in whole units, rounded up.
pub(crate) fn whole(text: &str) -> Option<i64> {
    let milli = milli(text)?;
    // A saturated value stays as large as it can be.
    Some(if milli > 0 { milli / 1000 + i64::from(milli % 1000 > 0) } else { milli / 1000 })
}

/// The value as a size.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    u64::try_from(whole(text)?).ok()
}

/// One resource of a list in thousandths; absent and unreadable count as none.
pub(crate) fn milli_of(resources: Option<&Resources>, name: &str) -> Option<i64> {
    milli(&resources?.get(name)?.0)
}

/// One resource of a list in whole units.
pub(crate) fn whole_of(resources: Option<&Resources>, name: &str) -> Option<i64> {
    whole(&resources?.get(name)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_round_up() {
        let table = [
            ("100m", Some(100)),
            ("1", Some(1000)),
            ("0.5", Some(500)),
            (".5", Some(500)),
            ("1.0005", Some(1001)),
            ("1n", Some(1)),
            ("1k", Some(1_000_000)),
            ("1Ki", Some(1_024_000)),
            ("1e3", Some(1_000_000)),
            ("-1", Some(-1000)),
            ("", None),
            ("x", None),
            ("1Q", None),
        ];
        for (text, expected) in table {
            assert_eq!(milli(text), expected, "{text}");
        }
        assert_eq!(whole("1500m"), Some(2));
        assert_eq!(bytes("10Mi"), Some(10 << 20));
        assert_eq!(bytes("128974848"), Some(128_974_848));
    }
}
