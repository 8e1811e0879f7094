//! Every form of rule, beside what `nft` makes of the same words: the kernel must hold the same expressions, and the listing must load
//! again.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use orlop_netlink::namespace::{Namespace, inside};
use orlop_netlink::nft::NftSocket;
use orlop_nft::{
    Chain, ChainKind, Command, DataType, Element, Family, Hook, IpVersion, Rule, Selector, Set, Statement,
    Table, Value, Verdict,
};

fn nft(namespace: &Namespace, arguments: &[&str], input: &str) -> String {
    let done = inside(namespace, || {
        let mut process = Process::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        process.wait_with_output().unwrap()
    })
    .unwrap();
    assert!(done.status.success(), "{input}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn apply(namespace: &Namespace, commands: &[Command]) -> Result<(), String> {
    inside(namespace, || NftSocket::open().unwrap().apply(commands))
        .unwrap()
        .map_err(|error| format!("{error}: {}", error.source))
}

/// The kernel's expressions, without the handles and numbers that differ from table to table.
fn bytecode(namespace: &Namespace) -> String {
    let text = nft(namespace, &["--debug=netlink", "list", "ruleset"], "");
    let lines = text.lines().map(|line| {
        let line = line.split(" use ").next().unwrap();
        let words = line.split(' ').map(|word| if word.starts_with("__map") { "__map" } else { word });
        // `ip t CHAIN HANDLE [PREVIOUS]` opens a rule.
        let words: Vec<&str> = if line.starts_with("ip") { words.take(3).collect() } else { words.collect() };
        words.join(" ")
    });
    // Elements of hash sets come in an order of the kernel's own.
    let is_element = |line: &str| line.trim_start().starts_with("element");
    let (mut elements, rest): (Vec<String>, Vec<String>) = lines.partition(|line| is_element(line));
    elements.sort();
    rest.join("\n") + &elements.join("\n")
}

fn skeleton(version: IpVersion) -> (Table, Vec<Command>, String) {
    let family = version.family();
    let table = Table::new(family, "t");
    let address = version.data_type();
    let key = [address, DataType::Protocol, DataType::Port];
    let name = address.name();
    let sets = [
        Set::plain("addresses", &[address]),
        Set::plain("pairs", &[address, address]),
        Set::verdicts("verdicts", &key),
        Set::map("targets", &key, &[address, DataType::Port]),
        Set::dynamic("seen", &[address, address, DataType::Protocol, DataType::Port], 1000),
    ];
    let mut commands = vec![Command::AddTable(table.clone())];
    commands.extend(sets.into_iter().map(|set| Command::AddSet(table.clone(), set)));
    commands.push(Command::AddChain(table.clone(), Chain::regular("other", vec![])));
    let text = format!(
        "set addresses {{ type {name}; }}\nset pairs {{ type {name} . {name}; }}
         map verdicts {{ type {name} . inet_proto . inet_service : verdict; }}
         map targets {{ type {name} . inet_proto . inet_service : {name} . inet_service; }}
         set seen {{ type {name} . {name} . inet_proto . inet_service; size 1000; flags dynamic, timeout; }}
         chain other {{ }}"
    );
    (table, commands, text)
}

#[test]
fn every_statement_is_what_nft_would_have_written() {
    for version in [IpVersion::V4, IpVersion::V6] {
        let (ours, theirs, again) =
            (Namespace::create().unwrap(), Namespace::create().unwrap(), Namespace::create().unwrap());
        let (table, mut commands, sets) = skeleton(version);
        let (nat, filter) = rules(version);
        let word = if version == IpVersion::V4 { "ip" } else { "ip6" };
        let mut text = format!("table {word} t {{\n{sets}\n");
        for (name, hook, kind, rules) in [
            ("nat", Hook::Postrouting, ChainKind::Nat, nat),
            ("filter", Hook::Forward, ChainKind::Filter, filter),
        ] {
            let place = if kind == ChainKind::Nat { "postrouting" } else { "forward" };
            text.push_str(&format!("chain {name} {{ type {name} hook {place} priority 0;\n"));
            for (rule, words) in &rules {
                assert_eq!(rule.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), *words);
                text.push_str(&format!("{words}\n"));
            }
            text.push_str("}\n");
            let rules = rules.into_iter().map(|(rule, _)| rule).collect();
            commands.push(Command::AddChain(table.clone(), Chain::base(name, kind, hook, 0, rules)));
        }
        let dnat = Rule::from([Statement::DnatByMap { version, key: key(version), map: "targets".into() }]);
        text.push_str(&format!(
            "chain translate {{ type nat hook prerouting priority -100;\n{}\n}}\n}}\n",
            dnat.0[0]
        ));
        commands.push(Command::AddChain(
            table,
            Chain::base("translate", ChainKind::Nat, Hook::Prerouting, -100, vec![dnat]),
        ));
        apply(&ours, &commands).unwrap();
        nft(&theirs, &["-f", "-"], &text);
        assert_eq!(bytecode(&ours), bytecode(&theirs));
        let listed = nft(&ours, &["list", "ruleset"], "");
        nft(&again, &["-f", "-"], &listed);
        assert_eq!(listed, nft(&again, &["list", "ruleset"], ""));
    }
}

fn key(version: IpVersion) -> Vec<Selector> {
    vec![Selector::DestinationAddress(version), Selector::Protocol, Selector::DestinationPort]
}

/// Rules with their words.
type Worded = Vec<(Rule, String)>;

/// Rules for a nat and a filter chain, each with its words.
fn rules(version: IpVersion) -> (Worded, Worded) {
    let v4 = version == IpVersion::V4;
    let word = if v4 { "ip" } else { "ip6" };
    let address = Selector::SourceAddress(version);
    let in_set = |selectors: Vec<Selector>, set: &str| Statement::InSet { key: selectors, set: set.into() };
    let goto = || Verdict::Goto("other".into());
    let verdict = Statement::Verdict;
    let mut filter = vec![
        (
            Rule::from([in_set(vec![address], "addresses"), verdict(Verdict::Accept)]),
            format!("{word} saddr @addresses accept"),
        ),
        (
            Rule::from([
                in_set(vec![address, Selector::DestinationAddress(version)], "pairs"),
                verdict(Verdict::Drop),
            ]),
            format!("{word} saddr . {word} daddr @pairs drop"),
        ),
        (
            Rule::from([Statement::VerdictMap { key: key(version), map: "verdicts".into() }]),
            format!("{word} daddr . meta l4proto . th dport vmap @verdicts"),
        ),
        (
            Rule::from([Statement::RandomVerdict(vec![
                goto(),
                Verdict::Accept,
                Verdict::Jump("other".into()),
            ])]),
            "numgen random mod 3 vmap { 0 : goto other, 1 : accept, 2 : jump other }".into(),
        ),
        (
            Rule::from([Statement::Update {
                key: [vec![address], key(version)].concat(),
                set: "seen".into(),
                timeout: Duration::from_secs(60),
            }]),
            format!("update @seen {{ {word} saddr . {word} daddr . meta l4proto . th dport timeout 60s }}"),
        ),
        (Rule::from([Statement::MarkSet(0x4000)]), "meta mark set meta mark | 0x00004000".into()),
        (Rule::from([Statement::MarkClear(0x4000)]), "meta mark set meta mark & 0xffffbfff".into()),
        (
            Rule::from([Statement::MarkHas { bits: 0x4000, negated: true }, verdict(Verdict::Return)]),
            "meta mark & 0x00004000 == 0 return".into(),
        ),
        (
            Rule::from([Statement::MarkHas { bits: 0x4000, negated: false }, verdict(goto())]),
            "meta mark & 0x00004000 != 0 goto other".into(),
        ),
        (Rule::from([Statement::ConnectionNew, Statement::Counter]), "ct state new counter".into()),
        (Rule::from([Statement::ConnectionTranslated, Statement::Counter]), "ct status dnat counter".into()),
        (
            Rule::from([Statement::DestinationLocal, Statement::Counter]),
            "fib daddr type local counter".into(),
        ),
        (Rule::from([Statement::SourceLocal, Statement::Counter]), "fib saddr type local counter".into()),
        (
            Rule::from([Statement::OutInterface { name: "eth0".into(), negated: true }, Statement::Counter]),
            "oifname != \"eth0\" counter".into(),
        ),
        (Rule::from([Statement::ResetTcp]), "meta l4proto tcp reject with tcp reset".into()),
        (Rule::from([Statement::Reject]), "reject".into()),
    ];
    let networks: &[&str] = if v4 {
        &["10.0.0.0/8", "10.244.0.0/16", "10.244.1.0/24", "10.96.0.0/12", "10.1.2.3/32", "224.0.0.0/4"]
    } else {
        &["fd00::/8", "fd00:10:244::/48", "fd00:10:96::/108", "::1/128", "fc00::/7"]
    };
    for network in networks {
        for negated in [false, true] {
            let not = if negated { "!= " } else { "" };
            let network = network.parse().unwrap();
            let source = Rule::from([Statement::SourceIn { network, negated }, Statement::Counter]);
            filter.push((source, format!("{word} saddr {not}{network} counter")));
            let destination = Rule::from([Statement::DestinationIn { network, negated }, Statement::Counter]);
            filter.push((destination, format!("{word} daddr {not}{network} counter")));
        }
    }
    let nat = vec![(Rule::from([Statement::Masquerade]), "masquerade fully-random".into())];
    (nat, filter)
}

#[test]
fn a_table_of_both_versions_checks_the_version() {
    let (ours, theirs) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let table = Table::new(Family::Inet, "t");
    let cluster = |negated| Statement::SourceIn { network: "10.244.0.0/16".parse().unwrap(), negated };
    let rules = vec![
        Rule::from([
            cluster(false),
            Statement::DestinationIn { network: "10.0.0.0/8".parse().unwrap(), negated: true },
            Statement::Counter,
        ]),
        Rule::from([
            Statement::DestinationIn { network: "fd00::/8".parse().unwrap(), negated: false },
            Statement::Reject,
        ]),
    ];
    let commands = [
        Command::AddTable(table.clone()),
        Command::AddChain(table, Chain::base("c", ChainKind::Filter, Hook::Input, 0, rules)),
    ];
    apply(&ours, &commands).unwrap();
    let text = "table inet t { chain c { type filter hook input priority 0;
        ip saddr 10.244.0.0/16 ip daddr != 10.0.0.0/8 counter
        ip6 daddr fd00::/8 reject
    }
}";
    nft(&theirs, &["-f", "-"], text);
    let listed = nft(&ours, &["list", "ruleset"], "");
    assert!(listed.contains("ip saddr 10.244.0.0/16 ip daddr != 10.0.0.0/8 counter"), "{listed}");
    nft(&Namespace::create().unwrap(), &["-f", "-"], &listed);
}

#[test]
fn elements_are_read_back_as_they_were_written() {
    let namespace = Namespace::create().unwrap();
    let (table, commands, _) = skeleton(IpVersion::V4);
    apply(&namespace, &commands).unwrap();
    let ip = |last: u8| Value::Ipv4([10, 0, 0, last].into());
    let key = |last| vec![ip(last), Value::Protocol(6), Value::Port(80)];
    let target = |last| orlop_nft::Tuple(vec![ip(last), Value::Port(8080)]);
    let fields = [DataType::Ipv4, DataType::Protocol, DataType::Port];
    let seen = Element {
        timeout: Some(Duration::from_secs(60)),
        expires: Some(Duration::from_secs(50)),
        ..Element::key(orlop_nft::Tuple([vec![ip(9)], key(1)].concat()))
    };
    let ranges = Set { interval: true, ..Set::plain("ranges", &[DataType::Ipv4]) };
    let mixed = Set { interval: true, ..Set::plain("mixed", &[DataType::Ipv4, DataType::Port]) };
    let written = [
        (Set::plain("addresses", &[DataType::Ipv4]), vec![Element::key([ip(1)]), Element::key([ip(2)])]),
        (
            Set::verdicts("verdicts", &fields),
            vec![
                Element::verdict(orlop_nft::Tuple(key(1)), Verdict::Goto("other".into())),
                Element::verdict(orlop_nft::Tuple(key(2)), Verdict::Drop),
            ],
        ),
        (
            Set::map("targets", &fields, &[DataType::Ipv4, DataType::Port]),
            vec![Element::value(orlop_nft::Tuple(key(1)), target(7))],
        ),
        (Set::dynamic("seen", &[&[DataType::Ipv4][..], &fields].concat(), 1000), vec![seen]),
    ];
    apply(
        &namespace,
        &[Command::AddSet(table.clone(), ranges.clone()), Command::AddSet(table.clone(), mixed.clone())],
    )
    .unwrap();
    apply(
        &namespace,
        &[
            Command::AddElements(
                table.clone(),
                ranges,
                vec![Element::range([ip(0)], [ip(7)]), Element::key([ip(9)])],
            ),
            Command::AddElements(
                table.clone(),
                mixed,
                vec![Element::range([ip(0), Value::Port(1)], [ip(7), Value::Port(9)])],
            ),
        ],
    )
    .unwrap();
    let listed = nft(&namespace, &["list", "ruleset"], "");
    assert!(listed.contains("10.0.0.0/29") && listed.contains("10.0.0.0/29 . 1-9"), "{listed}");
    for (set, elements) in &written {
        apply(&namespace, &[Command::AddElements(table.clone(), set.clone(), elements.clone())]).unwrap();
        let mut found = inside(&namespace, || NftSocket::open().unwrap().elements(&table, set))
            .unwrap()
            .unwrap()
            .unwrap();
        found.sort_by(|left, right| left.key.cmp(&right.key));
        for (found, wanted) in found.iter_mut().zip(elements) {
            // Time passes.
            assert_eq!(found.expires.is_some(), wanted.expires.is_some());
            found.expires = wanted.expires;
        }
        assert_eq!(&found, elements);
    }
    let missing = inside(&namespace, || {
        NftSocket::open().unwrap().elements(&table, &Set::plain("none", &[DataType::Ipv4]))
    });
    assert_eq!(missing.unwrap().unwrap(), None);
}

#[test]
fn a_refused_batch_changes_nothing_and_names_the_command() {
    let namespace = Namespace::create().unwrap();
    let table = Table::new(Family::Ip, "t");
    let set = Set::plain("addresses", &[DataType::Ipv4]);
    let element = |last: u8| Element::key([Value::Ipv4([10, 0, 0, last].into())]);
    let many: Vec<Element> = (0..255).map(element).collect();
    let commands = [
        Command::AddTable(table.clone()),
        Command::AddSet(table.clone(), set.clone()),
        Command::AddElements(table.clone(), set.clone(), many),
        Command::DeleteElements(table.clone(), set, vec![element(255)]),
        Command::AddTable(Table::new(Family::Ip, "u")),
    ];
    let error = apply(&namespace, &commands).unwrap_err();
    assert!(error.contains("delete element ip t addresses { 10.0.0.255 }: ENOENT"), "{error}");
    assert_eq!(nft(&namespace, &["list", "ruleset"], ""), "");
    inside(&namespace, || {
        let mut socket = NftSocket::open().unwrap();
        assert!(!socket.has_table(&table).unwrap());
        socket.apply(&commands[..3]).unwrap();
        assert!(socket.has_table(&table).unwrap());
        assert_eq!(socket.set_names(&table).unwrap(), ["addresses"]);
        assert!(socket.apply(&[Command::CreateTable(table.clone())]).unwrap_err().is_exists());
        for _ in 0..2 {
            socket.delete_tables(std::slice::from_ref(&table)).unwrap();
        }
        assert!(!socket.has_table(&table).unwrap());
    })
    .unwrap();
}
