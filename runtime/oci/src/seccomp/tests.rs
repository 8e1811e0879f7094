use oci_spec::runtime::LinuxSeccomp;
use orlop_linux::seccomp::Instruction;

use super::model::{Machine, tables};
use super::{SeccompError, compile, program};

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;

fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

struct Call {
    arch: u32,
    number: u32,
    arguments: [u64; 6],
}

/// The kernel's interpreter, as far as these programs go.
fn run(code: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.arch,
        offset => {
            let argument = call.arguments[usize::try_from((offset - 16) / 8).unwrap()];
            u32::try_from(if offset % 8 == 0 { argument & 0xffff_ffff } else { argument >> 32 }).unwrap()
        }
    };
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let line = code[at];
        at += 1;
        let holds = match line.code {
            0x20 => {
                accumulator = word(line.operand);
                continue;
            }
            0x54 => {
                accumulator &= line.operand;
                continue;
            }
            0x05 => {
                at += usize::try_from(line.operand).unwrap();
                continue;
            }
            0x06 => return line.operand,
            0x15 => accumulator == line.operand,
            0x25 => accumulator > line.operand,
            0x35 => accumulator >= line.operand,
            other => panic!("unknown instruction {other:#x}"),
        };
        at += usize::from(if holds { line.jump_true } else { line.jump_false });
    }
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

fn answer(profile: &LinuxSeccomp, arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let code = program::assemble(&tables(profile, Machine::X86_64).unwrap()).unwrap();
    run(&code, &Call { arch, number, arguments })
}

#[test]
fn names_numbers_and_architectures() {
    let profile = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
        "syscalls":[{"names":["read","write","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                    {"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":5},
                    {"names":["mseal"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    let table = [
        (X86_64, 0, ALLOW),
        (X86_64, 1, ALLOW),
        (X86_64, 2, errno(1)),
        (X86_64, 83, errno(5)),
        (X86_64, 462, KILL),
        (X86_64, 463, errno(38)),
        (X86_64, 100_000, errno(38)),
        (X86_64, u32::MAX, errno(1)),
        // read of x32, which is not listed.
        (X86_64, 0x4000_0000, KILL),
        (X86, 3, ALLOW),
        (X86, 39, errno(5)),
        (X86, 0, errno(1)),
        (0xc000_00b7, 0, KILL),
    ];
    for (arch, number, expected) in table {
        assert_eq!(answer(&profile, arch, number, [0; 6]), expected, "{arch:#x} {number}");
    }
}

#[test]
fn x32_has_numbers_of_its_own() {
    let profile = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"],
        "syscalls":[{"names":["read","execve"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(answer(&profile, X86_64, 0x4000_0000, [0; 6]), ALLOW);
    assert_eq!(answer(&profile, X86_64, 0x4000_0000 | 520, [0; 6]), ALLOW, "execve of x32");
    assert_eq!(
        answer(&profile, X86_64, 0x4000_0000 | 59, [0; 6]),
        errno(1),
        "execve of x86-64 with the x32 bit"
    );
    assert_eq!(answer(&profile, X86_64, u32::MAX, [0; 6]), errno(1));
}

#[test]
fn compares_all_64_bits() {
    let interesting = [
        0,
        1,
        0x7f,
        0xffff_ffff,
        1 << 32,
        (1 << 32) + 1,
        (5 << 32) | 7,
        (5 << 32) | 8,
        u64::MAX - 1,
        u64::MAX,
    ];
    type Holds = fn(u64, u64) -> bool;
    let operators: [(&str, Holds); 6] = [
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
        ("SCMP_CMP_GT", |a, b| a > b),
        ("SCMP_CMP_GE", |a, b| a >= b),
    ];
    for (operator, holds) in operators {
        for value in interesting {
            let profile = profile(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["ioctl"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":3,"value":{value},"op":"{operator}"}}]}}]}}"#
            ));
            for argument in interesting {
                let expected = if holds(argument, value) { ALLOW } else { errno(1) };
                let got = answer(&profile, X86_64, 16, [9, 9, 9, argument, 9, 9]);
                assert_eq!(got, expected, "{argument:#x} {operator} {value:#x}");
            }
        }
    }
}

#[test]
fn conditions_hold_together_or_apart() {
    let masked = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"},{"index":1,"value":7,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(answer(&masked, X86_64, 56, [0x11, 7, 0, 0, 0, 0]), ALLOW);
    assert_eq!(answer(&masked, X86_64, 56, [0x11, 8, 0, 0, 0, 0]), errno(1));
    assert_eq!(answer(&masked, X86_64, 56, [0x1000_0000, 7, 0, 0, 0, 0]), errno(1));
    let either = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(answer(&either, X86_64, 135, [0; 6]), ALLOW);
    assert_eq!(answer(&either, X86_64, 135, [8, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(answer(&either, X86_64, 135, [4, 0, 0, 0, 0, 0]), errno(1));
}

#[test]
fn large_profiles_agree_with_a_list() {
    // Every third call by number, so that ranges are many and sections longer than a byte's jump.
    let names: Vec<&str> =
        super::numbers_x86_64::X86_64.iter().filter(|e| e.1 % 3 == 0).map(|e| e.0).collect();
    let json = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"},
                     {"names": ["write"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]});
    let profile = profile(&json.to_string());
    let code = program::assemble(&tables(&profile, Machine::X86_64).unwrap()).unwrap();
    assert!(code.len() < 4096, "{}", code.len());
    for (name, number) in super::numbers_x86_64::X86_64 {
        let expected = match number {
            1 | 0 => ALLOW,
            number if number % 3 == 0 => ALLOW,
            469 => errno(38),
            _ => errno(1),
        };
        let call = Call { arch: X86_64, number: *number, arguments: [1, 0, 0, 0, 0, 0] };
        assert_eq!(run(&code, &call), expected, "{name}");
    }
}

#[test]
fn tables_are_sorted() {
    use super::{numbers_aarch64, numbers_x32, numbers_x86, numbers_x86_64};
    for numbers in [numbers_aarch64::AARCH64, numbers_x32::X32, numbers_x86::X86, numbers_x86_64::X86_64] {
        assert!(numbers.is_sorted_by_key(|entry| entry.0));
    }
}

#[test]
fn refuses() {
    let notify = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_NOTIFY"}]}"#,
    );
    assert_eq!(compile(&notify).unwrap_err(), SeccompError::NoListener);
    let index = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_LOG",
        "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert!(matches!(compile(&index).unwrap_err(), SeccompError::ArgumentIndex { index: 6, .. }));
}
