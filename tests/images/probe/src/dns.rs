//! One DNS question to the pod's resolver.

use std::io::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::Context as _;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

/// Asks for `name` as it is and below every search domain, prints the first answer that is not empty.
pub(crate) fn lookup(name: &str, kind: &str) -> anyhow::Result<()> {
    let kind =
        RecordType::from_str(&kind.to_uppercase()).with_context(|| format!("{kind:?} is no record type"))?;
    let text = std::fs::read_to_string("/etc/resolv.conf").context("failed to read /etc/resolv.conf")?;
    let words = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(key));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let server: IpAddr = words("nameserver").first().context("no nameserver")?.parse()?;
    let mut candidates = vec![name.to_owned()];
    if !name.ends_with('.') {
        candidates.extend(words("search").iter().map(|domain| format!("{name}.{domain}")));
    }
    for candidate in candidates {
        let answers = ask(server, &candidate, kind)?;
        if !answers.is_empty() {
            let mut out = std::io::stdout().lock();
            for answer in answers {
                writeln!(out, "{answer}")?;
            }
            return Ok(());
        }
    }
    anyhow::bail!("{name} has no {kind} record")
}

fn ask(server: IpAddr, name: &str, kind: RecordType) -> anyhow::Result<Vec<String>> {
    let mut name = Name::from_utf8(name)?;
    name.set_fqdn(true);
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name, kind));
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(&question.to_vec()?, (server, 53))?;
    let mut buffer = [0; 4096];
    let (length, _) = socket.recv_from(&mut buffer).context("no answer")?;
    let answer = Message::from_vec(&buffer[..length])?;
    Ok(answer
        .answers
        .iter()
        .filter(|record| record.record_type() == kind)
        .map(|record| record.data.to_string())
        .collect())
}
