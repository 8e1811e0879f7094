//! Signals by name and number, and as CRI's enumeration counts them.

use orlop_cri::v1::Signal;

/// Names in the order of CRI's enumeration from `SIGABRT` (1) to `SIGXFSZ` (33), with their Linux numbers on x86-64 and aarch64.
const NAMED: [(&str, i32); 33] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
];
const XFSZ: i32 = 25;
/// First real-time signal that the C library leaves to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;
/// CRI's value of `SIGRTMIN`; the following ones count on to `SIGRTMAX` (65).
const CRI_RTMIN: i32 = 35;
const CRI_XFSZ: i32 = 34;

/// The Linux number of a CRI signal; `None` for `RUNTIME_DEFAULT`.
pub(crate) fn from_cri(signal: Signal) -> Option<i32> {
    match signal as i32 {
        0 => None,
        CRI_XFSZ => Some(XFSZ),
        value if value >= CRI_RTMIN => Some(value - CRI_RTMIN + RTMIN),
        value => NAMED.get(usize::try_from(value - 1).ok()?).map(|(_, number)| *number),
    }
}

/// The CRI value of a Linux number.
pub(crate) fn to_cri(number: i32) -> Signal {
    let value = match number {
        XFSZ => CRI_XFSZ,
        RTMIN..=RTMAX => number - RTMIN + CRI_RTMIN,
        _ => NAMED
            .iter()
            .position(|(_, known)| *known == number)
            .and_then(|index| i32::try_from(index + 1).ok())
            .unwrap_or_default(),
    };
    Signal::try_from(value).unwrap_or_default()
}

/// Parses an image's `StopSignal`: `SIGTERM`, `term`, `15`, `RTMIN+3`.
pub(crate) fn parse(text: &str) -> Option<i32> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, sign: char, base: i32| match rest.strip_prefix(sign) {
        Some(offset) => {
            offset.parse::<i32>().ok().map(|offset| if sign == '+' { base + offset } else { base - offset })
        }
        None => rest.is_empty().then_some(base),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        real_time(rest, '+', RTMIN)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        real_time(rest, '-', RTMAX)?
    } else if name == "XFSZ" {
        XFSZ
    } else {
        NAMED.iter().find(|(known, _)| *known == name)?.1
    };
    (1..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_cri_agree() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-14", 50),
            ("SIGXFSZ", 25),
            ("RTMIN", 34),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
            assert_eq!(from_cri(to_cri(number)), Some(number), "{text}");
        }
        for text in ["", "SIGNOPE", "0", "65", "RTMIN+99", "RTMAX+1"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(from_cri(Signal::Sigxcpu), Some(24));
        assert_eq!(from_cri(Signal::Sigxfsz), Some(25));
        assert_eq!(from_cri(Signal::Sigrtmin), Some(34));
        assert_eq!(from_cri(Signal::Sigrtmax), Some(64));
        assert_eq!(from_cri(Signal::RuntimeDefault), None);
        assert_eq!(to_cri(15), Signal::Sigterm);
    }
}
