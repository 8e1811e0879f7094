//! Sends a log to a client: what is there, then (when following) what comes, across rotations, until the container ended.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use orlop_cri::v1 as cri;
use tokio::sync::mpsc;

use super::{LINE_LIMIT_BYTES, Options, Renderer, tail_offset};
use crate::runtime::Runtime;

const CHUNK_BYTES: usize = 64 * 1024;
/// While nothing is written the container is asked about this often.
const IDLE: Duration = Duration::from_millis(500);

/// Chunks towards the client; a slow client holds the reader back.
pub(crate) type Output = mpsc::Sender<Result<Bytes, io::Error>>;

struct Reader {
    path: PathBuf,
    file: File,
    rest: Vec<u8>,
    renderer: Renderer,
}

impl Reader {
    fn open(path: &Path, options: Options) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let start = match options.tail_lines {
            Some(lines) => tail_offset(&mut file, lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(start))?;
        Ok(Self { path: path.to_owned(), file, rest: Vec::new(), renderer: Renderer::new(options) })
    }

    /// The next rendered chunk; `None` at the end of what is written.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = self.file.read(&mut chunk)?;
        if read == 0 {
            return Ok(None);
        }
        self.rest.extend_from_slice(&chunk[..read]);
        let mut output = Vec::new();
        let mut done = 0;
        while let Some(at) = self.rest[done..].iter().position(|byte| *byte == b'\n') {
            self.renderer.line(&self.rest[done..done + at], &mut output);
            done += at + 1;
        }
        self.rest.drain(..done);
        if self.rest.len() > LINE_LIMIT_BYTES {
            self.rest.clear();
        }
        Ok(Some(output))
    }

    /// Goes on with the new file when the log was rotated; true when it did.
    fn follow_rotation(&mut self) -> io::Result<bool> {
        let current = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let open = self.file.metadata()?;
        if (current.ino(), current.dev()) == (open.ino(), open.dev()) {
            return Ok(false);
        }
        self.file = File::open(&self.path)?;
        self.rest.clear();
        Ok(true)
    }
}

/// Sends until the end; an error goes to the client as a broken body.
pub(crate) async fn send(
    runtime: Runtime,
    container_id: String,
    path: PathBuf,
    options: Options,
    output: Output,
) {
    if let Err(error) = try_send(&runtime, &container_id, &path, options, &output).await {
        let _ = output.send(Err(error)).await;
    }
}

async fn try_send(
    runtime: &Runtime,
    id: &str,
    path: &Path,
    options: Options,
    output: &Output,
) -> io::Result<()> {
    let follow = options.follow;
    let mut reader = Reader::open(path, options)?;
    let mut changes = if follow { Some(watch(path)?) } else { None };
    let mut ended = false;
    loop {
        while let Some(chunk) = reader.next()? {
            if !chunk.is_empty() && output.send(Ok(Bytes::from(chunk))).await.is_err() {
                return Ok(());
            }
            if reader.renderer.is_full() {
                return Ok(());
            }
        }
        let Some(changes) = &mut changes else {
            return Ok(());
        };
        if reader.follow_rotation()? {
            continue;
        }
        if ended {
            return Ok(());
        }
        tokio::select! {
            _ = changes.next() => {}
            () = output.closed() => return Ok(()),
            // One more read after the container ended: its last words.
            () = tokio::time::sleep(IDLE) => ended = !is_running(runtime, id).await,
        }
    }
}

fn watch(path: &Path) -> io::Result<inotify::EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    // The directory tells of both writes and rotation.
    let directory = path.parent().unwrap_or(path);
    inotify.watches().add(directory, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
    inotify.into_event_stream([0; 4096])
}

async fn is_running(runtime: &Runtime, id: &str) -> bool {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    match runtime.container_status(request).await {
        Ok(answer) => {
            answer.status.is_some_and(|status| status.state == cri::ContainerState::ContainerRunning as i32)
        }
        // The runtime may be restarting: the container goes on, and so do its readers.
        Err(error) => !error.is_not_found(),
    }
}
