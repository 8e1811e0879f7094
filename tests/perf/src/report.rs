//! The table: ours beside the reference's, for a terminal and for SPECIFICATION.md.

use std::fmt::Write as _;

use crate::memory::Resident;
use crate::sample::Samples;

/// One number with what is known of its spread.
#[derive(Clone, Debug)]
pub(crate) enum Measure {
    /// Durations in milliseconds.
    Time(Samples),
    /// Memory of a set of processes.
    Memory(Resident),
    /// Size of files, in 10^6 bytes.
    Size(f64),
    /// Hundredths of one processor.
    Percent(f64),
    /// Microseconds of one thing.
    Micros(f64),
}

impl Measure {
    fn value(&self) -> f64 {
        match self {
            Self::Time(samples) => samples.median(),
            Self::Memory(resident) => resident.distinct,
            Self::Size(number) | Self::Percent(number) | Self::Micros(number) => *number,
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Time(samples) => show_time(samples),
            Self::Memory(resident) => {
                format!("{:.1} MB (Pss {:.1})", resident.distinct, resident.proportional)
            }
            Self::Size(megabytes) => format!("{megabytes:.1} MB"),
            Self::Percent(percent) => format!("{percent:.2} %"),
            Self::Micros(micros) => format!("{micros:.1} µs"),
        }
    }
}

/// Promises that depend on a reference have any number of digits.
fn rounded(target: f64) -> f64 {
    (target * 10.0).round() / 10.0
}

/// `median ms (least–most)`.
fn show_time(samples: &Samples) -> String {
    let median = samples.median();
    let digits = if median < 1.0 { 3 } else { usize::from(median < 30.0) };
    match samples.range() {
        Some((least, most)) if samples.len() > 1 => {
            format!("{median:.digits$} ms ({least:.digits$}–{most:.digits$})")
        }
        _ => format!("{median:.digits$} ms"),
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What is measured.
    pub what: String,
    /// The promise, in the measure's unit (milliseconds or 10^6 bytes).
    pub target: Option<f64>,
    /// Ours.
    pub ours: Measure,
    /// The reference's, and what the reference is.
    pub reference: Option<(Measure, &'static str)>,
}

impl Row {
    fn target(&self) -> String {
        let Some(target) = self.target else { return "–".to_owned() };
        match self.ours {
            Measure::Time(_) if target >= 1000.0 => format!("< {:.1} s", target / 1000.0),
            Measure::Time(_) => format!("< {} ms", rounded(target)),
            Measure::Micros(_) => format!("< {} µs", rounded(target)),
            Measure::Memory(_) | Measure::Size(_) => format!("< {target} MB"),
            Measure::Percent(_) => format!("< {target} %"),
        }
    }

    fn cells(&self) -> [String; 6] {
        let verdict = match self.target {
            Some(target) if self.ours.value() >= target => " **missed**",
            _ => "",
        };
        let (reference, ratio, name) = match &self.reference {
            Some((measure, name)) => {
                let ratio = self.ours.value() / measure.value();
                let ratio = if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") };
                (measure.show(), ratio, (*name).to_owned())
            }
            None => ("–".to_owned(), "–".to_owned(), "–".to_owned()),
        };
        [self.what.clone(), self.target(), format!("{}{verdict}", self.ours.show()), reference, ratio, name]
    }
}

const HEAD: [&str; 6] = ["promise", "target", "ours", "reference", "ratio", "the reference is"];

/// Aligned columns for a terminal.
pub(crate) fn plain(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// A table to paste into SPECIFICATION.md.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = format!("| {} |\n|{}\n", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64) -> Row {
        let mut samples = Samples::new();
        samples.push(std::time::Duration::from_secs_f64(ours / 1000.0));
        samples.push(std::time::Duration::from_millis(100));
        let reference = Some((Measure::Size(200.0), "a peer"));
        Row { what: "work".to_owned(), target: Some(300.0), ours: Measure::Time(samples), reference }
    }

    #[test]
    fn a_row_has_the_ratio_of_the_medians() {
        assert!(
            markdown(&[row(100.0)])
                .ends_with("| work | < 300 ms | 100 ms (100–100) | 200.0 MB | 0.50 | a peer |\n")
        );
    }

    #[test]
    fn a_missed_target_is_said() {
        assert!(markdown(&[row(900.0)]).contains("500 ms (100–900) **missed**"));
        assert!(plain(&[row(100.0)]).lines().nth(1).unwrap().starts_with("work     < 300 ms  100 ms"));
    }
}
