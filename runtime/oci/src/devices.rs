//! OCI `linux.resources.devices` to the device program of a cgroup v2.
//!
//! The program reads `struct bpf_cgroup_dev_ctx` (`access_type`, `major`, `minor`), tries the rules from the last to the first, and answers
//! 1 (allowed) or 0. The last rule that matches wins, as on cgroup v1. cgroup v1 itself is libcontainer's work.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use orlop_linux::bpf::Instruction;

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND_IMMEDIATE: u8 = 0x57;
const AND_IMMEDIATE_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Registers: r1 is the context on entry; the rest is ours.
const R0: u8 = 0;
const R1: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_ACC_*` and `BPF_DEVCG_DEV_*`.
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;

fn line(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

fn exit_with(answer: bool) -> [Instruction; 2] {
    [line(MOVE_IMMEDIATE, R0, 0, 0, i32::from(answer)), line(EXIT, 0, 0, 0, 0)]
}

/// The devices that every container may use, whatever its rules say before them (runtime-spec config-linux.md, "Default Devices"; ptmx
/// and pts as in runc). mknod of any device stays possible, opening it does not.
fn defaults() -> Vec<LinuxDeviceCgroup> {
    let rule = |major: Option<i64>, minor: Option<i64>, typ: LinuxDeviceType, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_typ(Some(typ)).set_major(major).set_minor(minor);
        rule.set_access(Some(access.to_owned()));
        rule
    };
    let mut rules =
        vec![rule(None, None, LinuxDeviceType::C, "m"), rule(None, None, LinuxDeviceType::B, "m")];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule(Some(major), Some(minor), LinuxDeviceType::C, "rwm"));
    }
    rules.push(rule(Some(136), None, LinuxDeviceType::C, "rwm"));
    rules
}

/// The program for a container's rules.
pub fn compile(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    let mut program = vec![
        // access_type: device type in the low, access in the high 16 bits.
        line(LOAD_WORD, TYPE, R1, 0, 0),
        line(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        line(AND_IMMEDIATE_32, TYPE, 0, 0, 0xffff),
        line(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        line(LOAD_WORD, MAJOR, R1, 4, 0),
        line(LOAD_WORD, MINOR, R1, 8, 0),
    ];
    // A rule for everything makes all earlier ones unreachable, and the verifier refuses unreachable code.
    let mut closed = false;
    let all: Vec<LinuxDeviceCgroup> = rules.iter().cloned().chain(defaults()).collect();
    for rule in all.iter().rev() {
        let (code, catches_all) = compile_rule(rule);
        program.extend(code);
        if catches_all {
            closed = true;
            break;
        }
    }
    if !closed {
        program.extend(exit_with(false));
    }
    program
}

fn compile_rule(rule: &LinuxDeviceCgroup) -> (Vec<Instruction>, bool) {
    // (code, destination, source, immediate) of tests that leave the rule when they hold, and of the moves between them.
    let mut steps: Vec<(u8, u8, u8, i32)> = Vec::new();
    match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => {}
        LinuxDeviceType::B => steps.push((JUMP_NOT_EQUAL, TYPE, 0, TYPE_BLOCK)),
        LinuxDeviceType::C | LinuxDeviceType::U => steps.push((JUMP_NOT_EQUAL, TYPE, 0, TYPE_CHARACTER)),
        // A FIFO is no device to the kernel; the rule matches nothing.
        LinuxDeviceType::P => return (Vec::new(), false),
    }
    let mask = access_mask(rule.access().as_deref());
    if mask != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
        // Every access that is asked for must be in the rule: (access & mask) == access.
        steps.push((MOVE_REGISTER, R1, ACCESS, 0));
        steps.push((AND_IMMEDIATE, R1, 0, mask));
        steps.push((JUMP_NOT_EQUAL_REGISTER, R1, ACCESS, 0));
    }
    for (register, number) in [(MAJOR, rule.major()), (MINOR, rule.minor())] {
        // -1 and absent both mean any (runtime-spec).
        if let Some(number) =
            number.and_then(|number| i32::try_from(number).ok()).filter(|number| *number >= 0)
        {
            steps.push((JUMP_NOT_EQUAL, register, 0, number));
        }
    }
    let count = steps.len();
    let mut code: Vec<Instruction> = Vec::with_capacity(count + 2);
    for (at, (operation, destination, source, immediate)) in steps.into_iter().enumerate() {
        let is_test = operation == JUMP_NOT_EQUAL || operation == JUMP_NOT_EQUAL_REGISTER;
        // Over the remaining steps and the two instructions of the answer.
        let behind = i16::try_from(count - at - 1 + 2).expect("a rule has few steps");
        code.push(line(operation, destination, source, if is_test { behind } else { 0 }, immediate));
    }
    code.extend(exit_with(rule.allow()));
    (code, count == 0)
}

fn access_mask(access: Option<&str>) -> i32 {
    match access {
        None | Some("") => ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE,
        Some(text) => text.chars().fold(0, |mask, letter| {
            mask | match letter {
                'm' => ACCESS_MKNOD,
                'r' => ACCESS_READ,
                'w' => ACCESS_WRITE,
                _ => 0,
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with these instructions.
    fn run(program: &[Instruction], typ: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [typ | access << 16, major, minor];
        let mut registers = [0_i32; 11];
        let mut at = 0_usize;
        loop {
            let line = program[at];
            at += 1;
            let destination = usize::from(line.registers & 15);
            let source = usize::from(line.registers >> 4);
            match line.code {
                LOAD_WORD => registers[destination] = context[usize::try_from(line.offset).unwrap() / 4],
                MOVE_IMMEDIATE => registers[destination] = line.immediate,
                MOVE_REGISTER => registers[destination] = registers[source],
                AND_IMMEDIATE | AND_IMMEDIATE_32 => registers[destination] &= line.immediate,
                SHIFT_RIGHT_32 => registers[destination] >>= line.immediate,
                JUMP_NOT_EQUAL if registers[destination] != line.immediate => {
                    at += usize::try_from(line.offset).unwrap()
                }
                JUMP_NOT_EQUAL_REGISTER if registers[destination] != registers[source] => {
                    at += usize::try_from(line.offset).unwrap();
                }
                JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn rules(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn denies_all_but_the_defaults() {
        let program = compile(&rules(r#"[{"allow":false,"access":"rwm"}]"#));
        assert!(run(&program, TYPE_CHARACTER, ACCESS_READ | ACCESS_WRITE, 1, 3), "null");
        assert!(run(&program, TYPE_CHARACTER, ACCESS_READ, 136, 7), "a terminal");
        assert!(run(&program, TYPE_BLOCK, ACCESS_MKNOD, 8, 0), "mknod");
        assert!(!run(&program, TYPE_CHARACTER, ACCESS_READ, 4, 64));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_READ, 8, 0));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_READ | ACCESS_MKNOD, 8, 0));
    }

    #[test]
    fn the_last_rule_that_matches_wins() {
        let program = compile(&rules(
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"w"},{"allow":true,"type":"b","major":8,"minor":3,"access":"rw"}]"#,
        ));
        assert!(run(&program, TYPE_BLOCK, ACCESS_READ, 8, 1));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_WRITE, 8, 1));
        assert!(run(&program, TYPE_BLOCK, ACCESS_WRITE, 8, 3));
        assert!(run(&program, TYPE_CHARACTER, ACCESS_WRITE, 10, 200));
    }

    #[test]
    fn the_kernel_takes_the_program() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root");
            return;
        }
        for json in [
            "[]",
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#,
            r#"[{"allow":true,"access":"rwm"}]"#,
        ] {
            orlop_linux::bpf::load_device_program(&compile(&rules(json))).unwrap();
        }
    }
}
