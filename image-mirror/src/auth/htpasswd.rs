//! Users and passwords: a file of `NAME:HASH` lines as `htpasswd -B` writes them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ring::hmac;
use tokio::sync::Semaphore;

use super::rules::{AUTHENTICATED, EVERYBODY};
use crate::watched::Watched;

/// A hash takes 2^cost steps. Above this a handful of requests would keep the machine busy for minutes.
const COST_LIMIT: u32 = 15;
/// bcrypt reads no more of a password; what is longer is no password but an attack.
const PASSWORD_LIMIT_BYTES: usize = 4096;
const NAME_LIMIT_BYTES: usize = 256;
/// Passwords that are tried at one time, and requests that wait for their turn.
const TRIED: usize = 2;
const WAITING: usize = 64;
/// How long a password that was right need not be tried again, and how many.
const REMEMBERED: Duration = Duration::from_secs(300);
const REMEMBERED_LIMIT: usize = 1024;
/// Tried where there is no user, so that both take as long. It belongs to no password that anybody knows.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuE1QaLcJLIbZzOXPbhYZ1DvBXPFLDaPm";

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// No such user, or another password.
    Wrong,
    /// Too many passwords are being tried.
    Busy,
}

/// One state of the file.
#[derive(Debug, Default)]
struct Table {
    hashes: HashMap<Arc<str>, String>,
    /// The slowest hash of the file, tried for users that are not in it.
    slowest: Option<String>,
}

/// Whose passwords were right, and until when that counts.
type Verified = HashMap<[u8; 32], (Arc<str>, Instant)>;

/// The users.
pub(crate) struct Passwords {
    pub(super) file: Arc<Watched<TableOfUsers>>,
    secret: hmac::Key,
    verified: Mutex<Verified>,
    waiting: Semaphore,
    tried: Arc<Semaphore>,
}

/// What [`Passwords`] reads; opaque.
pub(crate) struct TableOfUsers(Table);

impl Passwords {
    pub(super) fn open(file: PathBuf) -> anyhow::Result<Self> {
        let parse = |contents: &[Vec<u8>]| Ok(TableOfUsers(parse(&contents[0])?));
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
        Ok(Self {
            file: Arc::new(Watched::open("users", vec![file], parse)?),
            secret,
            verified: Mutex::default(),
            waiting: Semaphore::new(WAITING),
            tried: Arc::new(Semaphore::new(TRIED)),
        })
    }

    /// The hash of a user's password as the file has it.
    pub(super) fn with_hash<R>(&self, user: &str, read: impl FnOnce(&str) -> R) -> Option<R> {
        self.file.get().0.hashes.get(user).map(|hash| read(hash))
    }

    /// Checks a password; gives the user's name.
    pub(super) async fn verify(&self, user: &str, password: &str) -> Result<Arc<str>, Denied> {
        if user.len() > NAME_LIMIT_BYTES || password.len() > PASSWORD_LIMIT_BYTES {
            return Err(Denied::Wrong);
        }
        let table = self.file.get();
        let known = table.0.hashes.get_key_value(user);
        let hash = known.map(|(_, hash)| hash.as_str()).or(table.0.slowest.as_deref()).unwrap_or(NOBODY);
        let remembered = self.key(user, password, hash);
        if let Some(user) = self.recall(&remembered) {
            return Ok(user);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| Denied::Busy)?;
        let permit = self.tried.clone().acquire_owned().await.map_err(|_| Denied::Busy)?;
        let (tried, hash) = (password.to_owned(), hash.to_owned());
        let right = tokio::task::spawn_blocking(move || {
            // Held until it ends: who goes away meanwhile does not make room for another one.
            let _permit = permit;
            bcrypt::verify(tried, &hash).unwrap_or(false)
        });
        let right = right.await.map_err(|_| Denied::Busy)?;
        match known.filter(|_| right) {
            Some((user, _)) => {
                self.remember(remembered, user.clone());
                Ok(user.clone())
            }
            None => Err(Denied::Wrong),
        }
    }

    /// Where it is remembered that this password belongs to this hash. Neither can be told from it.
    fn key(&self, user: &str, password: &str, hash: &str) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.secret);
        for part in [user, hash, password] {
            context.update(&part.len().to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.sign().as_ref());
        key
    }

    fn recall(&self, key: &[u8; 32]) -> Option<Arc<str>> {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(key).filter(|(_, until)| *until > Instant::now()).map(|(user, _)| user.clone())
    }

    fn remember(&self, key: [u8; 32], user: Arc<str>) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if verified.len() >= REMEMBERED_LIMIT {
            verified.retain(|_, (_, until)| *until > now);
        }
        if verified.len() < REMEMBERED_LIMIT {
            verified.insert(key, (user, now + REMEMBERED));
        }
    }
}

fn parse(bytes: &[u8]) -> anyhow::Result<Table> {
    let text = std::str::from_utf8(bytes).context("it is no UTF-8 text")?;
    let mut table = Table::default();
    let (mut problems, mut cost) = (Vec::new(), 0);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_line(line) {
            Ok((user, hash, of_this)) => {
                if of_this > cost {
                    (cost, table.slowest) = (of_this, Some(hash.to_owned()));
                }
                if table.hashes.insert(user.into(), hash.to_owned()).is_some() {
                    problems.push(format!("line {}: user {user:?} is there twice", index + 1));
                }
            }
            Err(problem) => problems.push(format!("line {}: {problem}", index + 1)),
        }
    }
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(table)
}

/// A line of such a file.
///
/// # Errors
/// The name or the password cannot be used; it says why.
pub fn user_line(name: &str, password: &str) -> anyhow::Result<String> {
    anyhow::ensure!(is_user_name(name) && !name.contains(':'), "{name:?} cannot be a user's name");
    anyhow::ensure!(!password.is_empty(), "the password is empty");
    let hash = bcrypt::non_truncating_hash(password, bcrypt::DEFAULT_COST);
    let hash =
        hash.context("the password cannot be hashed: bcrypt takes at most 71 bytes, none of them zero")?;
    Ok(format!("{name}:{hash}\n"))
}

/// Whether somebody may be called so.
pub(crate) fn is_user_name(name: &str) -> bool {
    let printable = !name.is_empty() && name.len() <= NAME_LIMIT_BYTES && !name.chars().any(char::is_control);
    printable && ![EVERYBODY, AUTHENTICATED].contains(&name)
}

/// Name, hash and cost.
fn parse_line(line: &str) -> Result<(&str, &str, u32), String> {
    // The line itself may be a password: it is not shown.
    let (user, hash) = line.split_once(':').ok_or("it is no NAME:HASH")?;
    if !is_user_name(user) {
        return Err(format!(
            "{user:?} cannot be a user: it is empty, too long, not printable or a word of rules"
        ));
    }
    if !["$2y$", "$2a$", "$2b$"].iter().any(|prefix| hash.starts_with(prefix)) {
        return Err(format!("the hash of {user:?} is not bcrypt: make it with htpasswd -B"));
    }
    match hash.parse::<bcrypt::HashParts>() {
        Ok(parts) if parts.get_cost() <= COST_LIMIT => Ok((user, hash, parts.get_cost())),
        Ok(parts) => {
            Err(format!("the hash of {user:?} has cost {}: at most {COST_LIMIT} is taken", parts.get_cost()))
        }
        Err(_) => Err(format!("the hash of {user:?} is damaged")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(user: &str, password: &str) -> String {
        format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    #[test]
    fn lines_that_cannot_be_used_are_named() {
        let good = line("ann", "secret");
        for (text, wanted) in [
            (format!("# users\n\n{good}"), None),
            (format!("{good}{good}"), Some("line 2: user \"ann\" is there twice")),
            ("hunter2".to_owned(), Some("line 1: it is no NAME:HASH")),
            ("ann:$apr1$x$y\n".to_owned(), Some("htpasswd -B")),
            ("ann:$2y$10$short".to_owned(), Some("damaged")),
            (good.replace("$04$", "$20$"), Some("cost 20")),
            (format!("*{}", &good[3..]), Some("cannot be a user")),
            (format!("{good}\nx"), Some("line 3")),
        ] {
            let problem = parse(text.as_bytes()).err().map(|error| error.to_string());
            match wanted {
                None => assert_eq!(problem, None, "{text}"),
                Some(wanted) => {
                    assert!(problem.as_ref().is_some_and(|found| found.contains(wanted)), "{problem:?}")
                }
            }
        }
        assert!(!parse(b"hunter2").unwrap_err().to_string().contains("hunter2"));
        assert_eq!(NOBODY.parse::<bcrypt::HashParts>().unwrap().get_cost(), 10);
    }

    #[tokio::test]
    async fn passwords_are_checked_and_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users");
        let other_kind = line("bob", "x").replace("$2b$", "$2y$");
        std::fs::write(&file, line("ann", "secret") + &other_kind).unwrap();
        let passwords = Passwords::open(file.clone()).unwrap();
        for _ in 0..2 {
            assert_eq!(passwords.verify("ann", "secret").await.as_deref(), Ok("ann"));
            assert_eq!(passwords.verify("ann", "secrets").await, Err(Denied::Wrong));
            assert_eq!(passwords.verify("eve", "secret").await, Err(Denied::Wrong));
            assert_eq!(passwords.verify("", "").await, Err(Denied::Wrong));
        }
        assert_eq!(passwords.verify("bob", "x").await.as_deref(), Ok("bob"));
        assert_eq!(passwords.verified.lock().unwrap().len(), 2);
        // Another password: what was remembered does not count any more.
        std::fs::write(&file, line("ann", "changed")).unwrap();
        crate::watched::Refresh::refresh(&*passwords.file);
        assert_eq!(passwords.verify("ann", "secret").await, Err(Denied::Wrong));
        assert_eq!(passwords.verify("ann", "changed").await.as_deref(), Ok("ann"));
        assert_eq!(passwords.verify("bob", "x").await, Err(Denied::Wrong));
    }

    #[test]
    fn a_line_that_is_made_is_a_line_that_is_read() {
        let table = parse(user_line("ann", "secret").unwrap().as_bytes()).unwrap();
        assert!(bcrypt::verify("secret", &table.hashes["ann"]).unwrap());
        for (name, password) in [("a:b", "x"), ("", "x"), ("*", "x"), ("a", ""), ("a", &"x".repeat(80))] {
            assert!(user_line(name, password).is_err(), "{name:?} {password:?}");
        }
    }

    proptest! {
        #[test]
        fn any_file_is_read(text in "([a-z*#]{0,3}:?(\\$2[aby]\\$)?[0-9$./A-Za-z]{0,60}\n){0,4}\\PC{0,10}") {
            let _ = parse(text.as_bytes());
        }
    }
}
