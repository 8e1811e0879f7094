//! Tables, chains, sets, maps and elements.

use std::fmt;
use std::time::Duration;

use crate::statement::Statement;
use crate::value::{DataType, Tuple, Verdict};

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    /// `NFPROTO_*`.
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// A table: the namespace of everything else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
}

impl Table {
    /// A table.
    pub fn new(family: Family, name: &str) -> Self {
        Self { family, name: name.to_owned() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.family.name(), self.name)
    }
}

/// Where a base chain is hooked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// All packets that come in.
    Prerouting,
    /// Packets for this machine.
    Input,
    /// Packets that are passed on.
    Forward,
    /// Packets of this machine.
    Output,
    /// All packets that go out.
    Postrouting,
}

impl Hook {
    /// `NF_INET_*`.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Filter.
    Filter,
    /// Address translation: sees the first packet of a connection.
    Nat,
}

impl ChainKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// `priority dstnat`.
pub const PRIORITY_DNAT: i32 = -100;
/// `priority filter`.
pub const PRIORITY_FILTER: i32 = 0;
/// `priority srcnat`.
pub const PRIORITY_SNAT: i32 = 100;

/// The hook of a base chain; its policy is accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Type.
    pub kind: ChainKind,
    /// Hook.
    pub hook: Hook,
    /// Order among the chains of the hook.
    pub priority: i32,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// `None`: only reached by jump and goto.
    pub base: Option<BaseChain>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that is reached by jump and goto.
    pub fn regular(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), base: None, rules }
    }

    /// A base chain.
    pub fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), base: Some(BaseChain { kind, hook, priority }), rules }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(pub Vec<Statement>);

impl<const N: usize> From<[Statement; N]> for Rule {
    fn from(statements: [Statement; N]) -> Self {
        Self(statements.to_vec())
    }
}

/// What the elements of a set carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetData {
    /// Nothing: a set.
    None,
    /// Verdicts: a verdict map.
    Verdict,
    /// Values: a map.
    Values(Vec<DataType>),
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Fields of the key.
    pub key: Vec<DataType>,
    /// Data.
    pub data: SetData,
    /// Keys are ranges.
    pub interval: bool,
    /// Elements may expire.
    pub timeout: bool,
    /// Rules add elements, at most this many.
    pub dynamic_size: Option<u32>,
}

impl Set {
    /// A plain set.
    pub fn plain(name: impl Into<String>, key: &[DataType]) -> Self {
        Self {
            name: name.into(),
            key: key.to_vec(),
            data: SetData::None,
            interval: false,
            timeout: false,
            dynamic_size: None,
        }
    }

    /// A verdict map.
    pub fn verdicts(name: impl Into<String>, key: &[DataType]) -> Self {
        Self { data: SetData::Verdict, ..Self::plain(name, key) }
    }

    /// A map of values.
    pub fn map(name: impl Into<String>, key: &[DataType], data: &[DataType]) -> Self {
        Self { data: SetData::Values(data.to_vec()), ..Self::plain(name, key) }
    }

    /// A set that rules fill and time empties.
    pub fn dynamic(name: impl Into<String>, key: &[DataType], size: u32) -> Self {
        Self { timeout: true, dynamic_size: Some(size), ..Self::plain(name, key) }
    }
}

/// The datum of an element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Datum {
    /// A verdict.
    Verdict(Verdict),
    /// Values.
    Values(Tuple),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    /// The key, or the first one of a range.
    pub key: Tuple,
    /// In interval sets: the last key of the range; `None` is a range of one.
    pub end: Option<Tuple>,
    /// For maps.
    pub datum: Option<Datum>,
    /// Expires after this time of silence.
    pub timeout: Option<Duration>,
    /// What is left of the timeout.
    pub expires: Option<Duration>,
}

impl Element {
    /// An element of a set.
    pub fn key(key: impl Into<Tuple>) -> Self {
        Self { key: key.into(), end: None, datum: None, timeout: None, expires: None }
    }

    /// A range in an interval set.
    pub fn range(first: impl Into<Tuple>, last: impl Into<Tuple>) -> Self {
        Self { end: Some(last.into()), ..Self::key(first) }
    }

    /// An element of a verdict map.
    pub fn verdict(key: impl Into<Tuple>, verdict: Verdict) -> Self {
        Self { datum: Some(Datum::Verdict(verdict)), ..Self::key(key) }
    }

    /// An element of a map.
    pub fn value(key: impl Into<Tuple>, value: impl Into<Tuple>) -> Self {
        Self { datum: Some(Datum::Values(value.into())), ..Self::key(key) }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(formatter)?;
        if let Some(end) = &self.end {
            write!(formatter, "-{end}")?;
        }
        match &self.datum {
            None => Ok(()),
            Some(Datum::Verdict(verdict)) => write!(formatter, " : {verdict}"),
            Some(Datum::Values(values)) => write!(formatter, " : {values}"),
        }
    }
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes a table, or finds it.
    AddTable(Table),
    /// Makes a table; the transaction fails when there is one (of two programs that set it up, one wins).
    CreateTable(Table),
    /// Removes a table with all it holds. It must exist: add it before to be sure.
    DeleteTable(Table),
    /// Makes a chain and appends its rules.
    AddChain(Table, Chain),
    /// Makes a set or map.
    AddSet(Table, Set),
    /// Adds elements.
    AddElements(Table, Set, Vec<Element>),
    /// Removes elements: all must exist.
    DeleteElements(Table, Set, Vec<Element>),
}

impl Command {
    /// The same for another table.
    #[must_use]
    pub fn in_table(self, table: &Table) -> Self {
        let table = table.clone();
        match self {
            Self::AddTable(_) => Self::AddTable(table),
            Self::CreateTable(_) => Self::CreateTable(table),
            Self::DeleteTable(_) => Self::DeleteTable(table),
            Self::AddChain(_, chain) => Self::AddChain(table, chain),
            Self::AddSet(_, set) => Self::AddSet(table, set),
            Self::AddElements(_, set, elements) => Self::AddElements(table, set, elements),
            Self::DeleteElements(_, set, elements) => Self::DeleteElements(table, set, elements),
        }
    }
}

impl fmt::Display for Command {
    /// As `nft` would take it, for logs, dumps and golden tests.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => write!(formatter, "add table {table}"),
            Self::CreateTable(table) => write!(formatter, "create table {table}"),
            Self::DeleteTable(table) => write!(formatter, "delete table {table}"),
            Self::AddChain(table, chain) => display_chain(formatter, table, chain),
            Self::AddSet(table, set) => display_set(formatter, table, set),
            Self::AddElements(table, set, elements) => {
                display_elements(formatter, "add", table, set, elements)
            }
            Self::DeleteElements(table, set, elements) => {
                display_elements(formatter, "delete", table, set, elements)
            }
        }
    }
}

fn display_chain(formatter: &mut fmt::Formatter<'_>, table: &Table, chain: &Chain) -> fmt::Result {
    write!(formatter, "add chain {table} {}", chain.name)?;
    if let Some(base) = chain.base {
        let (kind, hook, priority) = (base.kind.name(), base.hook.name(), base.priority);
        write!(formatter, " {{ type {kind} hook {hook} priority {priority}; }}")?;
    }
    for rule in &chain.rules {
        write!(formatter, "\nadd rule {table} {}", chain.name)?;
        for statement in &rule.0 {
            write!(formatter, " {statement}")?;
        }
    }
    Ok(())
}

fn display_set(formatter: &mut fmt::Formatter<'_>, table: &Table, set: &Set) -> fmt::Result {
    let names = |fields: &[DataType]| fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(" . ");
    let kind = if set.data == SetData::None { "set" } else { "map" };
    write!(formatter, "add {kind} {table} {} {{ type {}", set.name, names(&set.key))?;
    match &set.data {
        SetData::None => {}
        SetData::Verdict => formatter.write_str(" : verdict")?,
        SetData::Values(fields) => write!(formatter, " : {}", names(fields))?,
    }
    formatter.write_str("; }")
}

fn display_elements(
    formatter: &mut fmt::Formatter<'_>,
    verb: &str,
    table: &Table,
    set: &Set,
    elements: &[Element],
) -> fmt::Result {
    for (index, element) in elements.iter().enumerate() {
        let line = if index > 0 { "\n" } else { "" };
        write!(formatter, "{line}{verb} element {table} {} {{ {element} }}", set.name)?;
    }
    Ok(())
}
