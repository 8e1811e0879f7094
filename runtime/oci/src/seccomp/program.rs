//! Tables to instructions.
//!
//! Classic BPF jumps forward only and a conditional jump reaches 255 instructions, so code is built from the leaves up as vectors whose length is
//! known when the jump over them is made.

use orlop_linux::seccomp::Instruction;

use super::SeccompError;
use super::model::{Comparison, Condition, KILL_PROCESS, Rule, Table, Verdict};

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The kernel's BPF_MAXINSNS.
const LENGTH_LIMIT: usize = 4096;

fn line(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

/// The whole program.
pub(super) fn assemble(tables: &[Table]) -> Result<Vec<Instruction>, SeccompError> {
    let mut program = vec![line(LOAD_WORD, ARCH)];
    for table in tables {
        let mut section = vec![line(LOAD_WORD, NUMBER)];
        section.extend(search(&table.ranges));
        // Equal: fall into the section. Not: a long jump over it.
        program.push(Instruction {
            code: JUMP_EQUAL,
            jump_true: 1,
            jump_false: 0,
            operand: table.audit_arch,
        });
        program.push(line(JUMP, length(&section)));
        program.extend(section);
    }
    program.push(line(RETURN, KILL_PROCESS));
    if program.len() > LENGTH_LIMIT {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

fn length(code: &[Instruction]) -> u32 {
    u32::try_from(code.len()).expect("built in memory from a profile of bounded size")
}

/// Binary search over ranges; the number is in the accumulator.
fn search(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return leaf(verdict);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let Some((start, _)) = high.first() else {
        return vec![line(RETURN, KILL_PROCESS)];
    };
    let low = search(low);
    let mut code = match u8::try_from(low.len()) {
        Ok(distance) => {
            vec![Instruction {
                code: JUMP_GREATER_OR_EQUAL,
                jump_true: distance,
                jump_false: 0,
                operand: *start,
            }]
        }
        Err(_) => vec![
            Instruction { code: JUMP_GREATER_OR_EQUAL, jump_true: 0, jump_false: 1, operand: *start },
            line(JUMP, length(&low)),
        ],
    };
    code.extend(low);
    code.extend(search(high));
    code
}

fn leaf(verdict: &Verdict) -> Vec<Instruction> {
    let mut code: Vec<Instruction> = verdict.rules.iter().flat_map(rule).collect();
    code.push(line(RETURN, verdict.otherwise));
    code
}

/// Where a comparison goes.
#[derive(Clone, Copy)]
enum Target {
    /// The next instruction.
    Next,
    /// Behind this condition: it holds.
    Holds,
    /// Behind this rule: it does not apply.
    Fails,
}

struct Step {
    code: u16,
    operand: u32,
    yes: Target,
    no: Target,
}

/// At most six conditions of six instructions, so every jump fits into a byte.
fn rule(rule: &Rule) -> Vec<Instruction> {
    let conditions: Vec<Vec<Step>> = rule.conditions.iter().map(steps).collect();
    let total: usize = conditions.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(total);
    for condition in conditions {
        let end = code.len() + condition.len();
        for step in condition {
            let next = code.len() + 1;
            let distance = |target| match target {
                Target::Next => 0,
                Target::Holds => u8::try_from(end - next).expect("a condition has at most six instructions"),
                Target::Fails => u8::try_from(total - next).expect("a rule has at most 37 instructions"),
            };
            code.push(Instruction {
                code: step.code,
                jump_true: distance(step.yes),
                jump_false: distance(step.no),
                operand: step.operand,
            });
        }
    }
    code.push(line(RETURN, rule.answer));
    code
}

/// A 64-bit comparison as two of 32 bits: high words first (both architectures are little endian).
fn steps(condition: &Condition) -> Vec<Step> {
    use Target::{Fails, Holds, Next};
    let low_offset = ARGUMENTS + 8 * u32::from(condition.index);
    let plain = |code, operand| Step { code, operand, yes: Next, no: Next };
    let test = |code, operand, yes, no| Step { code, operand, yes, no };
    let load_high = || plain(LOAD_WORD, low_offset + 4);
    let load_low = || plain(LOAD_WORD, low_offset);
    let ordered = |value: u64, above: Target, below: Target, code: u16, yes: Target, no: Target| {
        vec![
            load_high(),
            test(JUMP_GREATER, high(value), above, Next),
            test(JUMP_EQUAL, high(value), Next, below),
            load_low(),
            test(code, low(value), yes, no),
        ]
    };
    match condition.comparison {
        Comparison::Equal(value) => vec![
            load_high(),
            test(JUMP_EQUAL, high(value), Next, Fails),
            load_low(),
            test(JUMP_EQUAL, low(value), Next, Fails),
        ],
        Comparison::NotEqual(value) => vec![
            load_high(),
            test(JUMP_EQUAL, high(value), Next, Holds),
            load_low(),
            test(JUMP_EQUAL, low(value), Fails, Next),
        ],
        Comparison::Masked { mask, value } => vec![
            load_high(),
            plain(AND, high(mask)),
            test(JUMP_EQUAL, high(value), Next, Fails),
            load_low(),
            plain(AND, low(mask)),
            test(JUMP_EQUAL, low(value), Next, Fails),
        ],
        Comparison::Greater(value) => ordered(value, Holds, Fails, JUMP_GREATER, Next, Fails),
        Comparison::GreaterOrEqual(value) => ordered(value, Holds, Fails, JUMP_GREATER_OR_EQUAL, Next, Fails),
        Comparison::Less(value) => ordered(value, Fails, Holds, JUMP_GREATER_OR_EQUAL, Fails, Next),
        Comparison::LessOrEqual(value) => ordered(value, Fails, Holds, JUMP_GREATER, Fails, Next),
    }
}

fn high(value: u64) -> u32 {
    u32::try_from(value >> 32).expect("shifted")
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("masked")
}
