//! The kernel's texts about control groups (cgroup-v2.rst, psi.rst, blkio-controller.rst). Pure.

use std::collections::HashMap;

/// v1 writes "no limit" as the largest multiple of a page; nothing real comes near.
pub(super) const NO_LIMIT_BYTES: u64 = 1 << 62;

/// Flat keyed files: one `key value` a line.
#[derive(Debug, Default)]
pub(super) struct Keyed(HashMap<String, u64>);

impl Keyed {
    pub(super) fn new(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        });
        Self(pairs.collect())
    }

    pub(super) fn find(&self, key: &str) -> Option<u64> {
        self.0.get(key).copied()
    }

    pub(super) fn get(&self, key: &str) -> u64 {
        self.find(key).unwrap_or_default()
    }
}

/// Stalls of some and of all tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited.
    pub full: PressureLine,
}

/// Shares of time in percent, and the whole time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PressureLine {
    /// Of the last 10 seconds.
    pub average_10: f64,
    /// Of the last 60 seconds.
    pub average_60: f64,
    /// Of the last 300 seconds.
    pub average_300: f64,
    /// Nanoseconds since the group was made.
    pub total: u64,
}

/// `some avg10=… avg60=… avg300=… total=MICROSECONDS`, then `full …`. None where accounting is off (`cgroup.pressure`).
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut seen = false;
    for line in text.lines() {
        let (kind, fields) = line.split_once(' ')?;
        let mut parsed = PressureLine::default();
        for (key, value) in fields.split(' ').filter_map(|field| field.split_once('=')) {
            match key {
                "avg10" => parsed.average_10 = value.parse().ok()?,
                "avg60" => parsed.average_60 = value.parse().ok()?,
                "avg300" => parsed.average_300 = value.parse().ok()?,
                "total" => parsed.total = value.parse::<u64>().ok()?.saturating_mul(1000),
                _ => {}
            }
        }
        match kind {
            "some" => pressure.some = parsed,
            "full" => pressure.full = parsed,
            _ => continue,
        }
        seen = true;
    }
    seen.then_some(pressure)
}

/// Traffic of a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceIo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// v2: `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=… …`.
pub(super) fn io_stat(text: &str) -> Vec<DeviceIo> {
    let devices = text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (major, minor) = numbers(fields.next()?)?;
        let mut device = DeviceIo { major, minor, ..DeviceIo::default() };
        let mut seen = false;
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let field = match key {
                "rbytes" => &mut device.read_bytes,
                "wbytes" => &mut device.write_bytes,
                "rios" => &mut device.reads,
                "wios" => &mut device.writes,
                _ => continue,
            };
            *field = value.parse().ok()?;
            seen = true;
        }
        seen.then_some(device)
    });
    devices.collect()
}

/// v1: `MAJOR:MINOR Read|Write|… N` a line, bytes and operations in two files; the total at the end has no device.
pub(super) fn blkio(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    for (text, of_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [device, kind, value] = fields[..] else { continue };
            let (Some((major, minor)), Ok(value)) = (numbers(device), value.parse::<u64>()) else { continue };
            let at = devices.iter().position(|known| (known.major, known.minor) == (major, minor));
            let at = at.unwrap_or_else(|| {
                devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
                devices.len() - 1
            });
            match (kind, of_bytes) {
                ("Read", true) => devices[at].read_bytes = value,
                ("Write", true) => devices[at].write_bytes = value,
                ("Read", false) => devices[at].reads = value,
                ("Write", false) => devices[at].writes = value,
                _ => {}
            }
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_in_nanoseconds() {
        let text = "some avg10=1.50 avg60=2.25 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.50 total=3\n";
        let found = pressure(text).unwrap();
        assert_eq!((found.some.average_10, found.some.average_60, found.some.total), (1.5, 2.25, 7000));
        assert_eq!((found.full.average_300, found.full.total), (0.5, 3000));
        // CPU pressure of a whole machine had no full line before Linux 5.13.
        assert_eq!(pressure(text.lines().next().unwrap()).unwrap().full, PressureLine::default());
        for bad in ["", "some", "some avg10=x avg60=0 avg300=0 total=0"] {
            assert_eq!(pressure(bad), None, "{bad}");
        }
    }

    #[test]
    fn both_generations_tell_the_same_traffic() {
        let wanted =
            [DeviceIo { major: 8, minor: 0, read_bytes: 4096, write_bytes: 512, reads: 2, writes: 1 }];
        assert_eq!(io_stat("8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n7:0 \n"), wanted);
        let bytes = "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 0\n8:0 Total 4608\nTotal 4608\n";
        assert_eq!(blkio(bytes, "8:0 Read 2\n8:0 Write 1\nTotal 3\n"), wanted);
        assert!(blkio("Total 0\n", "").is_empty());
    }

    #[test]
    fn keyed_files_skip_what_is_no_number() {
        let keyed = Keyed::new("usage_usec 12\nnot a number\nunder_oom 0\noom_kill 3\n");
        assert_eq!((keyed.find("usage_usec"), keyed.get("oom_kill"), keyed.find("x")), (Some(12), 3, None));
    }
}
