//! `list`: all containers below `--root`.

use super::arguments::{Format, List};
use super::container::Container;
use super::state::{Shown, show};
use super::{Call, print};

/// Of a column, with the space behind it (as runc's table).
const COLUMN_WIDTH: usize = 12;
const COLUMN_SPACE: usize = 3;

pub(super) fn main(call: &Call, options: &List) -> anyhow::Result<()> {
    let ids = call.store.ids()?;
    if options.quiet {
        return print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>());
    }
    let mut all: Vec<Shown> = Vec::new();
    for id in ids {
        // One that is deleted meanwhile, or unreadable, must not hide the others.
        let shown = Container::load(&call.store, &id)
            .and_then(|container| show(&container, owner_name(call.store.owner(&id)?)));
        match shown {
            Ok(shown) => all.push(shown),
            Err(error) => call.log.warning(&format!("load container {id}: {error:#}")),
        }
    }
    match options.format {
        Format::Json if all.is_empty() => print("null"),
        Format::Json => print(&serde_json::to_string(&all)?),
        Format::Table => print(&table(&all)),
    }
}

/// By the file: a static program must not load the C library's name services.
fn owner_name(uid: u32) -> String {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

fn table(all: &[Shown]) -> String {
    let mut rows: Vec<[String; 6]> =
        vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(all.iter().map(|shown| {
        [
            shown.id.clone(),
            shown.pid.to_string(),
            shown.status.to_owned(),
            shown.bundle.display().to_string(),
            shown.created.to_string(),
            shown.owner.clone(),
        ]
    }));
    let width = |at: usize| {
        let longest = rows.iter().map(|row| row[at].len()).max().unwrap_or_default();
        (longest + COLUMN_SPACE).max(COLUMN_WIDTH)
    };
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (field, width) in row.iter().zip(&widths) {
            text.push_str(&format!("{field:<width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}
