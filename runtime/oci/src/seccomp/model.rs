//! What each system call number answers, as values.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::SeccompError;
use super::{numbers_aarch64, numbers_x32, numbers_x86, numbers_x86_64};

/// `SECCOMP_RET_KILL_PROCESS`.
pub const KILL_PROCESS: u32 = 0x8000_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;
/// `SECCOMP_RET_USER_NOTIF`.
const RETURN_NOTIFY: u32 = 0x7fc0_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Set in the number of every x32 system call (`__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 0x4000_0000;
/// The number a tracer leaves behind to skip a system call: -1.
const SKIPPED: u32 = u32::MAX;

/// The machine that a program is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64 with i386 and x32.
    X86_64,
    /// arm64.
    Aarch64,
}

impl Machine {
    /// What this binary runs on.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Machine = Machine::X86_64;
    /// What this binary runs on.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Machine = Machine::Aarch64;
}

/// One comparison of a 64-bit argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub index: u8,
    /// How.
    pub comparison: Comparison,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal(u64),
    /// Not equal.
    NotEqual(u64),
    /// Less.
    Less(u64),
    /// Less or equal.
    LessOrEqual(u64),
    /// Greater.
    Greater(u64),
    /// Greater or equal.
    GreaterOrEqual(u64),
    /// Equal after masking.
    Masked {
        /// Bits that count.
        mask: u64,
        /// What they must be.
        value: u64,
    },
}

/// All conditions hold: this answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// At least one.
    pub conditions: Vec<Condition>,
    /// `SECCOMP_RET_*`.
    pub answer: u32,
}

/// The answer for one number: the first rule that holds, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In the profile's order.
    pub rules: Vec<Rule>,
    /// `SECCOMP_RET_*`.
    pub otherwise: u32,
}

impl Verdict {
    fn always(answer: u32) -> Self {
        Self { rules: Vec::new(), otherwise: answer }
    }
}

/// One value of `seccomp_data.arch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `AUDIT_ARCH_*`.
    pub audit_arch: u32,
    /// Sorted; each holds from its number up to the next one's. The first is 0.
    pub ranges: Vec<(u32, Verdict)>,
}

/// The tables of a profile.
pub fn tables(profile: &LinuxSeccomp, machine: Machine) -> Result<Vec<Table>, SeccompError> {
    let answers = Answers::new(profile)?;
    let listed = |arch: Arch| profile.architectures().iter().flatten().any(|a| *a == arch);
    match machine {
        Machine::X86_64 => {
            let mut ranges = answers.ranges(&|name| find(numbers_x86_64::X86_64, name), 0)?;
            if listed(Arch::ScmpArchX32) {
                ranges.extend(answers.ranges(&x32_number, X32_BIT)?);
            } else {
                ranges.push((X32_BIT, Verdict::always(KILL_PROCESS)));
            }
            ranges.push((SKIPPED, Verdict::always(answers.default)));
            let mut tables = vec![table(Arch::ScmpArchX86_64, ranges)];
            if listed(Arch::ScmpArchX86) {
                let ranges = answers.ranges(&|name| find(numbers_x86::X86, name), 0)?;
                tables.push(table(Arch::ScmpArchX86, ranges));
            }
            Ok(tables)
        }
        Machine::Aarch64 => {
            let ranges = answers.ranges(&|name| find(numbers_aarch64::AARCH64, name), 0)?;
            Ok(vec![table(Arch::ScmpArchAarch64, ranges)])
        }
    }
}

fn find(numbers: &[(&str, u32)], name: &str) -> Option<u32> {
    let at = numbers.binary_search_by_key(&name, |entry| entry.0).ok()?;
    Some(numbers[at].1)
}

fn x32_number(name: &str) -> Option<u32> {
    let number = find(numbers_x32::X32, name).or_else(|| find(numbers_x86_64::X86_64, name))?;
    Some(number | X32_BIT)
}

/// Neighbours with one verdict become one range.
fn table(arch: Arch, ranges: Vec<(u32, Verdict)>) -> Table {
    let mut merged: Vec<(u32, Verdict)> = Vec::new();
    for (start, verdict) in ranges {
        if merged.last().is_none_or(|last| last.1 != verdict) {
            merged.push((start, verdict));
        }
    }
    Table { audit_arch: arch as u32, ranges: merged }
}

struct Answers<'p> {
    profile: &'p LinuxSeccomp,
    default: u32,
    /// For numbers above everything that the profile names.
    unheard_of: u32,
}

impl<'p> Answers<'p> {
    fn new(profile: &'p LinuxSeccomp) -> Result<Self, SeccompError> {
        let default = answer(profile.default_action(), profile.default_errno_ret())?;
        let permissive = matches!(
            profile.default_action(),
            LinuxSeccompAction::ScmpActAllow
                | LinuxSeccompAction::ScmpActLog
                | LinuxSeccompAction::ScmpActTrace
        );
        Ok(Self { profile, default, unheard_of: if permissive { default } else { RETURN_ERRNO | ENOSYS } })
    }

    /// Ranges from `base` on, in order.
    fn ranges(
        &self,
        number: &dyn Fn(&str) -> Option<u32>,
        base: u32,
    ) -> Result<Vec<(u32, Verdict)>, SeccompError> {
        let mut named: BTreeMap<u32, Verdict> = BTreeMap::new();
        let mut closed: std::collections::BTreeSet<u32> = std::collections::BTreeSet::new();
        let mut highest = None;
        for entry in self.profile.syscalls().iter().flatten() {
            let chosen = answer(entry.action(), entry.errno_ret())?;
            for name in entry.names() {
                // A name that this architecture does not have is not an error: profiles name the calls of all of them.
                let Some(number) = number(name) else { continue };
                highest = highest.max(Some(number));
                if chosen == self.default {
                    continue;
                }
                let verdict = named.entry(number).or_insert_with(|| Verdict::always(self.default));
                let rules = rules(entry, name, chosen)?;
                if !rules.is_empty() {
                    verdict.rules.extend(rules);
                } else if closed.insert(number) {
                    verdict.otherwise = chosen;
                }
            }
        }
        let mut ranges = vec![(base, Verdict::always(self.default))];
        for (number, verdict) in named {
            if ranges.last().is_some_and(|last| last.0 == number) {
                ranges.pop();
            }
            ranges.push((number, verdict));
            ranges.push((number + 1, Verdict::always(self.default)));
        }
        if let Some(highest) = highest {
            ranges.retain(|range| range.0 <= highest);
            ranges.push((highest + 1, Verdict::always(self.unheard_of)));
        }
        Ok(ranges)
    }
}

/// `SECCOMP_RET_*` of an action.
fn answer(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    match action {
        LinuxSeccompAction::ScmpActNotify => Ok(RETURN_NOTIFY),
        LinuxSeccompAction::ScmpActErrno => Ok(RETURN_ERRNO | errno.unwrap_or(EPERM) & 0xffff),
        other => Ok(other.as_u32(errno.map(|number| number & 0xffff))),
    }
}

/// Conditions of one entry hold together, unless one argument is tested twice: then each is a rule of its own, as runc reads it.
fn rules(entry: &LinuxSyscall, name: &str, answer: u32) -> Result<Vec<Rule>, SeccompError> {
    let conditions = entry
        .args()
        .iter()
        .flatten()
        .map(|argument| condition(argument, name))
        .collect::<Result<Vec<_>, _>>()?;
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    let mut seen = [false; 6];
    let repeated =
        conditions.iter().any(|condition| std::mem::replace(&mut seen[usize::from(condition.index)], true));
    Ok(if repeated {
        let alone = |condition| Rule { conditions: vec![condition], answer };
        conditions.into_iter().map(alone).collect()
    } else {
        vec![Rule { conditions, answer }]
    })
}

fn condition(argument: &LinuxSeccompArg, syscall: &str) -> Result<Condition, SeccompError> {
    let index = u8::try_from(argument.index()).ok().filter(|index| *index < 6).ok_or_else(|| {
        SeccompError::ArgumentIndex { syscall: syscall.to_owned(), index: argument.index() }
    })?;
    let value = argument.value();
    let comparison = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => Comparison::Equal(value),
        LinuxSeccompOperator::ScmpCmpNe => Comparison::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Comparison::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Comparison::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Comparison::Greater(value),
        LinuxSeccompOperator::ScmpCmpGe => Comparison::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            Comparison::Masked { mask: value, value: argument.value_two().unwrap_or(0) }
        }
    };
    Ok(Condition { index, comparison })
}
