//! What a command of ExecSync said, up to CRI's limit, in memory that is bounded over all commands.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// CRI: a response has at most 16 MB, "the remaining output should be discarded, and the command should proceed with no error"
/// (api.proto, ExecSyncResponse). Kubelets take no message of more than 16 MiB, so both streams together are less than that by what
/// the message itself needs.
const OUTPUT_LIMIT_BYTES: usize = orlop_cri::MESSAGE_LIMIT_BYTES - 4096;
/// Of each stream so much is always kept, however long the other one is.
const RESERVED_BYTES: usize = 64 * 1024;
/// Beyond this a command needs one of the places below: probes and hooks say little.
const SMALL_BYTES: usize = 256 * 1024;
/// Commands with long output at once, each up to [`OUTPUT_LIMIT_BYTES`].
const LARGE_OUTPUTS: usize = 4;
/// A command whose output waited for a place this long says no more; it stands still meanwhile, so it may not wait forever.
const PLACE_PATIENCE: Duration = Duration::from_secs(10);

/// Places for long outputs.
pub(crate) struct OutputRoom {
    places: Arc<Semaphore>,
    patience: Duration,
}

impl Default for OutputRoom {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(LARGE_OUTPUTS)), patience: PLACE_PATIENCE }
    }
}

/// Which stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// Both streams of one command.
pub(super) struct Output {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// Bytes that were discarded.
    pub(super) cut: u64,
    places: Arc<Semaphore>,
    patience: Duration,
    place: Option<OwnedSemaphorePermit>,
    limit: usize,
}

impl Output {
    pub(super) fn new(room: &OutputRoom) -> Self {
        Self {
            stdout: Vec::new(),
            stderr: Vec::new(),
            cut: 0,
            places: room.places.clone(),
            patience: room.patience,
            place: None,
            limit: OUTPUT_LIMIT_BYTES,
        }
    }

    /// Keeps what there is room for. Waits for a place where the output gets long; the command stands still then.
    pub(super) async fn push(&mut self, stream: Stream, data: &[u8]) {
        let held = self.stdout.len() + self.stderr.len();
        if held + data.len() > SMALL_BYTES && self.place.is_none() && self.limit > SMALL_BYTES {
            match tokio::time::timeout(self.patience, self.places.clone().acquire_owned()).await {
                Ok(Ok(place)) => self.place = Some(place),
                _ => self.limit = SMALL_BYTES,
            }
        }
        let limit = self.limit;
        let (this, other) = match stream {
            Stream::Stdout => (&mut self.stdout, self.stderr.len()),
            Stream::Stderr => (&mut self.stderr, self.stdout.len()),
        };
        let room = limit.saturating_sub(other.max(RESERVED_BYTES)).saturating_sub(this.len());
        let kept = &data[..data.len().min(room)];
        this.extend_from_slice(kept);
        self.cut += (data.len() - kept.len()) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static CHUNK: [u8; 64 * 1024] = [b'x'; 64 * 1024];

    async fn say(output: &mut Output, stream: Stream, mebibytes: usize) {
        for _ in 0..mebibytes * 16 {
            output.push(stream, &CHUNK).await;
        }
    }

    #[tokio::test]
    async fn both_streams_fit_into_one_message() {
        let room = OutputRoom::default();
        let mut output = Output::new(&room);
        say(&mut output, Stream::Stdout, 20).await;
        output.push(Stream::Stderr, b"why").await;
        assert_eq!(output.stdout.len(), OUTPUT_LIMIT_BYTES - RESERVED_BYTES);
        assert!(output.stdout.len() > 16_000_000);
        assert_eq!(output.stderr, b"why");
        assert_eq!(output.cut, (20 << 20) - output.stdout.len() as u64);
        let mut output = Output::new(&room);
        say(&mut output, Stream::Stderr, 10).await;
        say(&mut output, Stream::Stdout, 10).await;
        assert_eq!(output.stderr.len(), 10 << 20);
        assert_eq!(output.stdout.len() + output.stderr.len(), OUTPUT_LIMIT_BYTES);
    }

    #[tokio::test]
    async fn long_outputs_wait_for_each_other_and_not_forever() {
        let room = OutputRoom { patience: Duration::from_millis(1), ..OutputRoom::default() };
        let mut long = Vec::new();
        for _ in 0..LARGE_OUTPUTS {
            let mut output = Output::new(&room);
            say(&mut output, Stream::Stdout, 1).await;
            long.push(output);
        }
        let mut short = Output::new(&room);
        for _ in 0..3 {
            short.push(Stream::Stdout, &CHUNK).await;
        }
        assert_eq!((short.stdout.len(), short.cut), (3 * CHUNK.len(), 0));
        say(&mut short, Stream::Stdout, 1).await;
        assert_eq!(short.stdout.len(), SMALL_BYTES);
        assert!(short.cut > 0);
        let mut next = Output::new(&room);
        long.pop();
        say(&mut next, Stream::Stdout, 1).await;
        assert_eq!((next.stdout.len(), next.cut), (1 << 20, 0));
    }
}
