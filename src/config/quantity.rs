//! Durations, sizes and numbers of things: whole numbers with a unit, within bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value as Json, json};
use toml::Value;

use super::kind::Kind;
use super::value::{Invalid, form};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// Durations are bounded in milliseconds.
const SECOND: u64 = 1_000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;

pub(super) const MILLION: u64 = 1_000_000;

const DURATION: Unit = Unit {
    name: "a duration",
    example: "500ms, 5s, 2m or 1h",
    units: &[("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)],
};
const SIZE: Unit = Unit {
    name: "a size",
    example: "512KiB, 4MiB, 1GiB or a number of bytes",
    units: &[("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("", 1)],
};
const COUNT: Unit = Unit { name: "a number", example: "8", units: &[("", 1)] };

/// Whole numbers within bounds.
pub(super) struct Quantity<T> {
    unit: Unit,
    bounds: RangeInclusive<u64>,
    from: fn(u64) -> Option<T>,
    to: fn(&T) -> u64,
}

/// The units of a quantity.
struct Unit {
    name: &'static str,
    example: &'static str,
    /// Largest first; the last is 1.
    units: &'static [(&'static str, u64)],
}

/// A duration within bounds given in milliseconds.
pub(super) const fn duration(bounds: RangeInclusive<u64>) -> Quantity<Duration> {
    Quantity {
        unit: DURATION,
        bounds,
        from: |millis| Some(Duration::from_millis(millis)),
        to: |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    }
}

/// A size within bounds given in bytes.
pub(super) const fn size<T>(bounds: RangeInclusive<u64>) -> Quantity<T>
where
    T: Copy + TryFrom<u64> + TryInto<u64>,
{
    numbers(SIZE, bounds)
}

/// A number of things.
pub(super) const fn count(bounds: RangeInclusive<u64>) -> Quantity<usize> {
    numbers(COUNT, bounds)
}

const fn numbers<T>(unit: Unit, bounds: RangeInclusive<u64>) -> Quantity<T>
where
    T: Copy + TryFrom<u64> + TryInto<u64>,
{
    Quantity {
        unit,
        bounds,
        from: |number| T::try_from(number).ok(),
        to: |number| (*number).try_into().unwrap_or(u64::MAX),
    }
}

impl<T> Kind for Quantity<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, Invalid> {
        let amount = self.unit.amount(text).ok_or_else(|| form(self.unit.name, text, self.unit.example))?;
        let value = if self.bounds.contains(&amount) { (self.from)(amount) } else { None };
        value.ok_or_else(|| Invalid::Bounds {
            text: text.to_owned(),
            least: self.unit.write(*self.bounds.start()),
            most: self.unit.write(*self.bounds.end()),
        })
    }

    fn show(&self, value: &T) -> Option<Value> {
        let amount = (self.to)(value);
        let written = self.unit.write(amount);
        Some(written.parse().map_or(Value::String(written), Value::Integer))
    }

    fn schema(&self) -> Json {
        let units: Vec<&str> =
            self.unit.units.iter().map(|(unit, _)| *unit).filter(|unit| !unit.is_empty()).collect();
        if units.len() == self.unit.units.len() {
            return json!({ "type": "string", "pattern": format!("^[0-9]+({})$", units.join("|")) });
        }
        let unit = if units.is_empty() { String::new() } else { format!("({})?", units.join("|")) };
        json!({
            "type": ["integer", "string"],
            "minimum": self.bounds.start(),
            "maximum": self.bounds.end(),
            "pattern": format!("^[0-9]+{unit}$"),
        })
    }

    fn bounds(&self) -> Option<String> {
        let [least, most] = [self.bounds.start(), self.bounds.end()].map(|bound| self.unit.write(*bound));
        Some(format!("{least} to {most}"))
    }
}

impl Unit {
    fn amount(&self, text: &str) -> Option<u64> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        let (_, factor) = self.units.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*factor)
    }

    fn write(&self, amount: u64) -> String {
        let fits = |(_, factor): &&(&str, u64)| amount >= *factor && amount.is_multiple_of(*factor);
        match self.units.iter().find(fits) {
            Some((unit, factor)) => format!("{}{unit}", amount / factor),
            None => format!("{amount}{}", self.units.last().map_or("", |(unit, _)| unit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_duration(text: &str, expected: Result<u64, &str>) {
        let found = duration(1..=24 * HOUR).parse(text).map_err(|invalid| invalid.to_string());
        assert_eq!(found, expected.map(Duration::from_millis).map_err(str::to_owned));
    }

    #[test]
    fn durations_are_whole_numbers_with_a_unit() {
        check_duration("500ms", Ok(500));
        check_duration("5s", Ok(5_000));
        check_duration("2m", Ok(120_000));
        check_duration("1h", Ok(3_600_000));
        check_duration("24h", Ok(86_400_000));
        check_duration("25h", Err(r#"out of bounds: "25h" (write 1ms to 24h)"#));
        check_duration("0s", Err(r#"out of bounds: "0s" (write 1ms to 24h)"#));
        for text in ["", "5", "s", "5 s", "5S", "1.5s", "-5s", "+5s", "1m30s", "5 bananas", "٥s"] {
            check_duration(text, Err(&format!("not a duration: {text:?} (write 500ms, 5s, 2m or 1h)")));
        }
        for overflow in ["18446744073709551615h", "18446744073709551616ms"] {
            check_duration(
                overflow,
                Err(&format!("not a duration: {overflow:?} (write 500ms, 5s, 2m or 1h)")),
            );
        }
    }

    #[track_caller]
    fn check_size(text: &str, expected: Result<u64, &str>) {
        let found = size(1..=4 * GIB).parse(text).map_err(|invalid| invalid.to_string());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn sizes_are_whole_numbers_of_bytes_or_of_binary_units() {
        check_size("1", Ok(1));
        check_size("512KiB", Ok(512 * KIB));
        check_size("4MiB", Ok(4 * MIB));
        check_size("1GiB", Ok(GIB));
        check_size("0", Err(r#"out of bounds: "0" (write 1 to 4GiB)"#));
        check_size("5GiB", Err(r#"out of bounds: "5GiB" (write 1 to 4GiB)"#));
        for text in ["", "MiB", "4MB", "4M", "4 MiB", "0x10", "1_000"] {
            let message = format!("not a size: {text:?} (write 512KiB, 4MiB, 1GiB or a number of bytes)");
            check_size(text, Err(&message));
        }
    }

    #[test]
    fn a_size_that_its_type_cannot_hold_is_out_of_bounds() {
        assert_eq!(size::<u8>(0..=KIB).parse("255"), Ok(255));
        assert!(matches!(size::<u8>(0..=KIB).parse("256"), Err(Invalid::Bounds { .. })));
    }

    #[track_caller]
    fn check_written(unit: &Unit, amount: u64, expected: &str) {
        assert_eq!(unit.write(amount), expected);
    }

    #[test]
    fn bounds_are_written_in_the_largest_unit_that_fits() {
        check_written(&DURATION, 0, "0ms");
        check_written(&DURATION, 1_500, "1500ms");
        check_written(&DURATION, 90 * SECOND, "90s");
        check_written(&SIZE, 0, "0");
        check_written(&SIZE, 64 * KIB, "64KiB");
        check_written(&COUNT, 256, "256");
    }
}
