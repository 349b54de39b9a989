//! Kubernetes quantities and Go durations, exactly.

use std::time::Duration;

/// Why a text is not a quantity or a duration that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QuantityError {
    #[error("{0:?} is not a quantity like `500m`, `1.5`, `256Mi` or `1G`")]
    Quantity(String),
    #[error("{0:?} is not a duration like `90s`, `1m30s` or `500ms`")]
    Duration(String),
    #[error("{0:?} is too large")]
    TooLarge(String),
}

/// Reads a quantity in thousandths, rounded up as Kubernetes does.
///
/// # Source
/// Kubernetes `apimachinery/pkg/api/resource`, `Quantity`: decimal number, then one of
/// `n u m k M G T P E`, `Ki Mi Gi Ti Pi Ei`, or a decimal exponent `e3`/`E3`.
pub(super) fn milli(text: &str) -> Result<u128, QuantityError> {
    let bad = || QuantityError::Quantity(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(bad());
    }
    if whole.len() > 24 || fraction.len() > 9 {
        return Err(too_large());
    }
    let (factor, divisor) = scale(suffix).ok_or_else(bad)?;
    let digits = format!("{whole}{fraction}");
    let digits: u128 = digits.parse().map_err(|_| bad())?;
    let scaled = digits.checked_mul(factor).and_then(|n| n.checked_mul(1000));
    let scaled = scaled.ok_or_else(too_large)?;
    let decimals = u32::try_from(fraction.len()).map_err(|_| too_large())?;
    Ok(scaled.div_ceil(divisor * 10_u128.pow(decimals)))
}

fn scale(suffix: &str) -> Option<(u128, u128)> {
    let factor = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let (negative, digits) = match exponent.strip_prefix('-') {
                Some(digits) => (true, digits),
                None => (false, exponent.strip_prefix('+').unwrap_or(exponent)),
            };
            let power: u32 = digits.parse().ok().filter(|power| *power <= 18)?;
            let power = 10_u128.pow(power);
            if negative { (1, power) } else { (power, 1) }
        }
    };
    Some(factor)
}

/// Reads a whole quantity, e.g. of bytes; a fraction is rounded up.
pub(super) fn whole(text: &str) -> Result<u64, QuantityError> {
    let rounded = milli(text)?.div_ceil(1000);
    u64::try_from(rounded).map_err(|_| QuantityError::TooLarge(text.to_owned()))
}

/// Reads a duration as Go's `time.ParseDuration` does, without signs.
pub(super) fn duration(text: &str) -> Result<Duration, QuantityError> {
    let bad = || QuantityError::Duration(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(bad());
        }
        if whole.len() > 15 || fraction.len() > 12 {
            return Err(too_large());
        }
        let decimals = u32::try_from(fraction.len()).map_err(|_| too_large())?;
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
        nanos += digits * unit / 10_u128.pow(decimals);
        rest = tail;
    }
    if text.is_empty() {
        return Err(bad());
    }
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| too_large())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_kubernetes_reads_them() {
        let table = [
            ("500m", 500),
            ("1", 1000),
            ("0.5", 500),
            (".5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("128Mi", 134_217_728_000),
            ("100M", 100_000_000_000),
            ("1e3", 1_000_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("1n", 1),
            ("+2k", 2_000_000),
        ];
        for (text, want) in table {
            assert_eq!(milli(text), Ok(want), "{text}");
        }
        for text in ["", ".", "m", "1.2.3", "-1", "1 Gi", "1GiB", "0x1", "1e", "1e99", "NaN"] {
            assert!(milli(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_as_go_reads_them() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for text in ["", "5", "s", "-1s", "1d", "1.2.3s", "1s2"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_error_or_a_value(text in ".{0,40}") {
            let _ = milli(&text);
            let _ = whole(&text);
            let _ = duration(&text);
        }

        #[test]
        fn whole_numbers_stay_exact(n: u64) {
            proptest::prop_assert_eq!(whole(&n.to_string()), Ok(n));
            proptest::prop_assert_eq!(milli(&format!("{n}m")), Ok(u128::from(n)));
        }

        #[test]
        fn seconds_stay_exact(n in 0_u64..1 << 32) {
            proptest::prop_assert_eq!(duration(&format!("{n}s")), Ok(Duration::from_secs(n)));
        }
    }
}
