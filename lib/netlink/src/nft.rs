//! nftables transactions and questions.

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockProtocol, recv, setsockopt, sockopt};
use orlop_nft::wire;
use orlop_nft::{Command, Element, Family, Set, Table, batch, read};
use std::os::fd::AsRawFd as _;

use crate::NetlinkError;
use crate::socket::Socket;

const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = 1;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const GET_ELEMENT: u16 = 13;
const NEW_ELEMENT: u16 = 12;
/// Answers of a failed batch repeat the messages they refuse.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
const SEND_BUFFER_FLOOR_BYTES: usize = 256 << 10;
const COMMAND_TEXT_LIMIT: usize = 200;

/// An nftables socket in one network namespace.
#[derive(Debug)]
pub struct NftSocket {
    socket: Socket,
    send_buffer: usize,
}

impl NftSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        // Without the right to force it, the default size still does for small batches.
        let _ = setsockopt(socket.fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES);
        Ok(Self { socket, send_buffer: 0 })
    }

    /// Applies a transaction: all of it or nothing. Blocks for the kernel's commit (up to some ten milliseconds, more when large).
    ///
    /// # Errors
    /// The kernel's refusal, naming the command.
    pub fn apply(&mut self, commands: &[Command]) -> Result<(), NetlinkError> {
        if commands.is_empty() {
            return Ok(());
        }
        let first = self.socket.next_sequence();
        let batch = batch::encode(commands, None, first);
        let used = batch.last.wrapping_sub(first).wrapping_add(2);
        self.socket.reserve_sequences(used);
        self.grow_send_buffer(batch.bytes.len())?;
        self.socket.send(&batch.bytes).map_err(|source| {
            NetlinkError::new(format!("send {} nftables commands", commands.len()), source)
        })?;
        self.outcome(&batch, commands)
    }

    /// The kernel has handled the batch when send returns: its answers are all in the buffer.
    fn outcome(&self, batch: &batch::Batch, commands: &[Command]) -> Result<(), NetlinkError> {
        let mut buffer = vec![0; 256 << 10];
        let mut first_error = None;
        let mut acknowledged = false;
        loop {
            let length = match recv(self.socket.fd().as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => break,
                Err(source) => {
                    first_error.get_or_insert_with(|| {
                        NetlinkError::new("read the answer to an nftables batch", source)
                    });
                    break;
                }
            };
            for message in
                wire::messages(&buffer[..length]).filter(|message| message.kind == wire::MESSAGE_ERROR)
            {
                let offset = message.sequence.wrapping_sub(batch.begin);
                if offset > batch.last.wrapping_sub(batch.begin) {
                    continue;
                }
                match wire::read_u32(message.payload, 0).unwrap_or(0).cast_signed() {
                    0 => acknowledged |= message.sequence == batch.last,
                    code => {
                        let source = Errno::from_raw(code.wrapping_neg());
                        first_error.get_or_insert_with(|| {
                            NetlinkError::new(act_of(batch.command_of(message.sequence), commands), source)
                        });
                    }
                }
            }
        }
        match first_error {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NetlinkError::new("commit an nftables batch (no acknowledgement)", Errno::EPROTO)),
        }
    }

    /// The whole batch is one datagram; the right to force the size comes with the right to change rules.
    fn grow_send_buffer(&mut self, length: usize) -> Result<(), NetlinkError> {
        let wanted = (length + (length >> 1)).max(SEND_BUFFER_FLOOR_BYTES);
        if wanted <= self.send_buffer {
            return Ok(());
        }
        let forced = setsockopt(self.socket.fd(), sockopt::SndBufForce, &wanted);
        forced.or_else(|_| setsockopt(self.socket.fd(), sockopt::SndBuf, &wanted)).map_err(|source| {
            NetlinkError::new(format!("enlarge the send buffer to {wanted} bytes"), source)
        })?;
        self.send_buffer = wanted;
        Ok(())
    }

    /// Removes tables with all they hold; what is gone already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_tables(&mut self, tables: &[Table]) -> Result<(), NetlinkError> {
        for table in tables {
            if self.has_table(table)? {
                self.apply(&[Command::AddTable(table.clone()), Command::DeleteTable(table.clone())])?;
            }
        }
        Ok(())
    }

    /// Whether a table exists.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub fn has_table(&mut self, table: &Table) -> Result<bool, NetlinkError> {
        let asked = self.socket.request(
            || format!("look for table {table}"),
            SUBSYSTEM | GET_TABLE,
            0,
            |encoder| {
                encoder.raw(&family_header(table.family));
                encoder.put_str(1, &table.name);
            },
        );
        match asked {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names of a table's sets and maps; none when there is no such table.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn set_names(&mut self, table: &Table) -> Result<Vec<String>, NetlinkError> {
        let act = format!("list sets of {table}");
        let answers = self.socket.dump(&act, SUBSYSTEM | GET_SET, |encoder| {
            encoder.raw(&family_header(table.family));
            encoder.put_str(1, &table.name);
        });
        match answers {
            Ok(answers) => {
                let sets = answers.iter().filter(|answer| answer.kind == SUBSYSTEM | NEW_SET);
                Ok(sets
                    .filter_map(|answer| wire::attribute(answer.payload.get(4..)?, 2).map(wire::read_str))
                    .collect())
            }
            Err(error) if error.is_missing() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The elements of a set; `None` when there is no such set or table.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn elements(&mut self, table: &Table, set: &Set) -> Result<Option<Vec<Element>>, NetlinkError> {
        let act = format!("list elements of {table} {}", set.name);
        let answers = self.socket.dump(&act, SUBSYSTEM | GET_ELEMENT, |encoder| {
            encoder.raw(&family_header(table.family));
            encoder.put_str(1, &table.name);
            encoder.put_str(2, &set.name);
        });
        match answers {
            Ok(answers) => {
                let lists = answers.iter().filter(|answer| answer.kind == SUBSYSTEM | NEW_ELEMENT);
                let elements =
                    lists.flat_map(|answer| read::elements(set, answer.payload.get(4..).unwrap_or(&[])));
                Ok(Some(elements.collect()))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// `struct nfgenmsg`.
const fn family_header(family: Family) -> [u8; 4] {
    [family.number(), 0, 0, 0]
}

fn act_of(index: Option<usize>, commands: &[Command]) -> String {
    let Some(command) = index.and_then(|index| commands.get(index)) else {
        return "commit an nftables batch".to_owned();
    };
    let mut text = command.to_string();
    if let Some((cut, _)) = text.char_indices().nth(COMMAND_TEXT_LIMIT) {
        text.truncate(cut);
        text.push('…');
    }
    text
}
