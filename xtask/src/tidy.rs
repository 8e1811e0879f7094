//! What STYLE.md asks for and a machine can see.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

const FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 70;
const VAGUE_NAMES: [&str; 5] = ["util", "common", "helpers", "misc", "manager"];
const PURE_NAMES: [&str; 3] = ["plan", "model", "rules"];
/// What a pure module must not mention: it has no tokio, file, socket, clock or netlink.
const IMPURE: [&str; 12] = [
    "tokio::",
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "netlink",
    "std::process",
    "rand::random",
];

pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in [
        "lib",
        "kubelet",
        "runtime",
        "cni",
        "proxy",
        "dns",
        "image-mirror",
        "master",
        "cli",
        "tests",
        "xtask",
    ] {
        collect(&root.join(folder), &mut files)?;
    }
    let mut problems = Vec::new();
    for path in files {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let shown = path.strip_prefix(root).unwrap_or(&path);
        check_file(shown, &text, &mut problems);
    }
    Ok(problems)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &Path, text: &str, problems: &mut Vec<String>) {
    let shown = path.display();
    let is_test =
        path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "benches")))
            || path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
    let lines: Vec<&str> = text.lines().collect();
    let end = lines.iter().position(|line| line.starts_with("#[cfg(test)]")).unwrap_or(lines.len());
    let code = if is_test { &lines[..] } else { &lines[..end] };
    if !is_test && code.len() > FILE_LINES {
        problems.push(format!(
            "{shown}: {} lines without tests, at most {FILE_LINES}: split it by meaning",
            code.len()
        ));
    }
    for part in path.components() {
        let name = Path::new(part.as_os_str()).file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
        if VAGUE_NAMES.contains(&name) {
            problems.push(format!("{shown}: the name {name:?} says nothing: name what it holds"));
        }
    }
    if is_pure(path) {
        for (number, line) in code.iter().enumerate() {
            let line = line.split("//").next().unwrap_or("");
            if let Some(word) = IMPURE.iter().find(|word| line.contains(*word)) {
                problems.push(format!("{shown}:{}: {word} in a pure module", number + 1));
            }
        }
    }
    if !path.starts_with("xtask") {
        check_words(&shown.to_string(), code, problems);
    }
    if !is_test {
        check_functions(&shown.to_string(), code, problems);
    }
}

fn is_pure(path: &Path) -> bool {
    path.components().any(|part| {
        let stem = Path::new(part.as_os_str()).file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
        PURE_NAMES.contains(&stem)
    })
}

fn check_words(shown: &str, code: &[&str], problems: &mut Vec<String>) {
    for (number, line) in code.iter().enumerate() {
        if ["TODO", "FIXME", "XXX"].iter().any(|word| line.contains(word)) {
            problems.push(format!("{shown}:{}: finish it, or say in an issue what is left", number + 1));
        }
    }
}

/// rustfmt closes a function with a brace at the column where its line began.
fn check_functions(shown: &str, code: &[&str], problems: &mut Vec<String>) {
    let mut start: Option<(usize, usize, String)> = None;
    for (number, line) in code.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if let Some((begin, column, name)) = &start {
            if line.trim_end() == format!("{}}}", " ".repeat(*column)) {
                let length = number - begin + 1;
                if length > FUNCTION_LINES {
                    problems.push(format!(
                        "{shown}:{}: {name} has {length} lines, at most {FUNCTION_LINES}",
                        begin + 1
                    ));
                }
                start = None;
            }
            continue;
        }
        if let Some(name) = function_name(line)
            && !line.trim_end().ends_with('}')
            && !line.trim_end().ends_with(';')
        {
            start = Some((number, indent, name));
        }
    }
}

fn function_name(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let mut word = words.next()?;
    while word.starts_with("pub") || ["async", "const", "unsafe", "extern", "\"C\""].contains(&word) {
        word = words.next()?;
    }
    if word != "fn" {
        return None;
    }
    let name = words.next()?;
    Some(name.split(['(', '<']).next().unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        check_file(Path::new(path), text, &mut problems);
        problems
    }

    #[test]
    fn finds_what_the_style_forbids() {
        assert_eq!(problems("proxy/src/rules.rs", "use tokio::sync::Mutex;\n").len(), 1);
        assert_eq!(problems("proxy/src/rules.rs", "// tokio::sync is not for us\n").len(), 0);
        assert_eq!(problems("lib/x/src/util.rs", "").len(), 1);
        let long = format!("fn long() {{\n{}}}\n", "    a();\n".repeat(70));
        assert_eq!(problems("lib/x/src/a.rs", &long).len(), 1);
        assert_eq!(problems("lib/x/src/a.rs", &"a\n".repeat(801)).len(), 1);
        assert_eq!(problems("lib/x/src/a.rs", &format!("#[cfg(test)]\n{}", "a\n".repeat(801))).len(), 0);
        let word = ["TO", "DO"].concat();
        assert_eq!(problems("lib/x/src/a.rs", &format!("// {word}: later\n")).len(), 1);
    }
}
