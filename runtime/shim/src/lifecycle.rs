//! From a set-up child's answer to the last trace: starts, ends, deadlines, removals.

use std::time::{Duration, Instant};

use crate::container::Removal;
use crate::log::Stream;
use crate::protocol::{ErrorKind, ExecEnd, ExitStatus, Phase, Response};
use crate::requests::send;
use crate::running::{Chunk, Console, Role, Running, Stage, read_chunk};
use crate::server::{READS_PER_TURN, Shim};
use crate::{exit_file, now_nanos, rootfs, say, staged};

/// Ends of children that nobody has claimed; they are claimed within the same set-up or never.
const UNCLAIMED_LIMIT: usize = 256;
/// Output that a container's or exec's left-over children hold open.
const INIT_DRAIN: Duration = Duration::from_secs(2);
const EXEC_DRAIN: Duration = Duration::from_secs(1);
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);
const REMOVAL_LIMIT: Duration = Duration::from_secs(10);

impl Shim {
    /// Collects every child that has ended.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            let Ok(pid) = u32::try_from(pid.as_raw_nonzero().get()) else {
                continue;
            };
            self.child_ended(pid, code, now_nanos());
        }
    }

    fn child_ended(&mut self, pid: u32, code: i32, at: i64) {
        if let Some(key) = self.find(|running| running.pid == Some(pid)) {
            self.process_ended(key, code, at);
            return;
        }
        let of_setup = self
            .find(|running| matches!(running.stage, Stage::Preparing { setup_pid, .. } if setup_pid == pid));
        if let Some(key) = of_setup {
            match self.processes.get_mut(&key).and_then(Running::read_answer) {
                Some(answer) => self.prepared(key, answer),
                None => self.fail_preparation(key, format!("the set-up child ended with code {code}")),
            }
            return;
        }
        if self.reaper == Some(pid) {
            say(&format!("the reaper of the shared PID namespace ended with code {code}"));
            self.reaper = None;
        }
        // Set-up's own helpers and orphans end here too.
        self.unclaimed.push_back((pid, code, at));
        if self.unclaimed.len() > UNCLAIMED_LIMIT {
            self.unclaimed.pop_front();
        }
        if self.find(|running| matches!(running.stage, Stage::Preparing { .. })).is_none() {
            self.unclaimed.clear();
        }
    }

    fn find(&self, matches: impl Fn(&Running) -> bool) -> Option<u64> {
        self.processes.iter().find(|(_, running)| matches(running)).map(|(key, _)| *key)
    }

    pub(crate) fn answer_ready(&mut self, key: u64) {
        if let Some(answer) = self.processes.get_mut(&key).and_then(Running::read_answer) {
            self.prepared(key, answer);
        }
    }

    /// The set-up child has answered.
    fn prepared(&mut self, key: u64, answer: orlop_oci::setup::Answer) {
        let Some(running) = self.processes.get_mut(&key) else {
            return;
        };
        for warning in &answer.warnings {
            say(&format!("{}: {warning}", running.container));
        }
        let Some(pid) = answer.pid else {
            self.fail_preparation(
                key,
                answer.error.unwrap_or_else(|| "the set-up child said nothing".to_owned()),
            );
            return;
        };
        running.pid = Some(pid);
        running.deadline = running.time_limit;
        running.stage = if running.is_init() { Stage::Waiting } else { Stage::Starting };
        if let Console::Listener(listener) = &running.console {
            running.console = match listener.accept() {
                Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => Console::Socket(stream.into()),
                _ => Console::None,
            };
        }
        if running.is_init() {
            let id = running.container.clone();
            if let Some(container) = self.containers.get_mut(&id) {
                container.pid = Some(pid);
                container.created_at = now_nanos();
                let state = container.state();
                let creators = std::mem::take(&mut container.creators);
                for creator in creators {
                    self.answer(creator, &Response::Container(state.clone()));
                }
            }
            self.announce(&id);
        }
        // The program may have been quicker than the answer about it.
        if self.processes.get(&key).is_some_and(|running| running.status.is_none()) {
            self.status_ended(key);
        }
        let early = self.unclaimed.iter().find(|ended| ended.0 == pid).copied();
        if let Some((_, code, at)) = early {
            self.process_ended(key, code, at);
        }
    }

    fn fail_preparation(&mut self, key: u64, message: String) {
        let Some(running) = self.processes.remove(&key) else {
            return;
        };
        match running.role {
            Role::Init => {
                let id = running.container;
                if let Some(container) = self.containers.get_mut(&id) {
                    container.init = None;
                }
                self.fail_creation(&id, message);
            }
            Role::Session { connection }
            | Role::Streamed { connection, .. }
            | Role::Collected { connection, .. } => {
                self.refuse(connection, ErrorKind::Failed, message);
            }
        }
    }

    /// Cleans up first, so that a retry finds nothing in its way; then the creators hear why.
    pub(crate) fn fail_creation(&mut self, id: &str, message: String) {
        if let Some(container) = self.containers.get_mut(id) {
            container.failure = Some(message);
            container.cgroup.kill();
        }
        self.begin_removal(id);
    }

    /// execve has happened, or has failed and said why.
    pub(crate) fn status_ended(&mut self, key: u64) {
        let Some(running) = self.processes.get_mut(&key) else {
            return;
        };
        if !matches!(running.stage, Stage::Starting) {
            return;
        }
        running.stage = Stage::Running;
        let why = String::from_utf8_lossy(&std::mem::take(&mut running.status_text)).into_owned();
        let failed = !why.is_empty();
        match &mut running.role {
            Role::Init => {
                let id = running.container.clone();
                self.started(&id, failed.then_some(why));
            }
            Role::Session { connection } | Role::Streamed { connection, .. } => {
                let connection = std::mem::replace(connection, if failed { 0 } else { *connection });
                match failed {
                    true => self.refuse(connection, ErrorKind::Failed, why),
                    false => self.begin_session(connection, key),
                }
            }
            Role::Collected { connection, .. } if failed => {
                let connection = std::mem::replace(connection, 0);
                self.refuse(connection, ErrorKind::Failed, why);
            }
            Role::Collected { .. } => {}
        }
    }

    fn started(&mut self, id: &str, failure: Option<String>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        // One that failed never ran: it may be removed at once, even before its end was waited for.
        if failure.is_none() {
            container.phase = Phase::Running;
        }
        container.started_at = now_nanos();
        let state = container.state();
        for starter in std::mem::take(&mut container.starters) {
            match &failure {
                Some(why) => self.refuse(starter, ErrorKind::Failed, why.clone()),
                None => self.answer(starter, &Response::Container(state.clone())),
            }
        }
        if failure.is_none() {
            self.announce(id);
        }
    }

    /// A process of ours was waited for.
    fn process_ended(&mut self, key: u64, code: i32, at: i64) {
        let Some(running) = self.processes.get_mut(&key) else {
            return;
        };
        // From here on the pid may be anybody's.
        running.pid = None;
        running.exited = Some((code, at));
        running.deadline = None;
        running.drain_until = Some(Instant::now() + if running.is_init() { INIT_DRAIN } else { EXEC_DRAIN });
        // The set-up child may still hold the pipe's other side; what is in it is all that will ever come.
        running.read_status();
        running.status = None;
        if running.is_init()
            && let Some(container) = self.containers.get_mut(&running.container)
        {
            container.pid = None;
            // With a PID namespace of its own the kernel has done this already.
            container.cgroup.kill();
        }
        self.status_ended(key);
        if let Some(running) = self.processes.get_mut(&key) {
            // Killed before it was started: it has no output to wait for.
            running.stage = Stage::Running;
        }
        self.console_ready(key);
        self.pump(key, Stream::Stdout);
        self.pump(key, Stream::Stderr);
        self.try_finish(key, Instant::now());
    }

    /// Moves output on.
    pub(crate) fn pump(&mut self, key: u64, stream: Stream) {
        for _ in 0..READS_PER_TURN {
            let Some(running) = self.processes.get_mut(&key) else {
                return;
            };
            let Some(fd) = running.output(stream) else { break };
            match read_chunk(std::os::fd::AsFd::as_fd(fd)) {
                Chunk::Data(data) => self.deliver(key, stream, &data),
                Chunk::Later => break,
                Chunk::End => {
                    running.close_output(stream);
                    break;
                }
            }
        }
        self.try_finish(key, Instant::now());
    }

    /// Publishes a process's end once its output is complete, or late enough.
    fn try_finish(&mut self, key: u64, now: Instant) {
        let Some(running) = self.processes.get(&key) else {
            return;
        };
        let Some((code, at)) = running.exited else { return };
        if !running.is_drained() {
            if running.drain_until.is_some_and(|until| now < until) {
                return;
            }
            // A client that is slow gets all of it; one that is stuck is its session's to end.
            if self.is_congested(running)
                && let Some(running) = self.processes.get_mut(&key)
            {
                running.drain_until = Some(now + EXEC_DRAIN);
                return;
            }
        }
        let Some(running) = self.processes.remove(&key) else {
            return;
        };
        let exit = ExitStatus { code, finished_at: at, oom_killed: false };
        match running.role {
            Role::Init => self.finish_container(&running.container, exit),
            Role::Session { connection } => self.end_session(connection, &exit),
            Role::Streamed { connection, timed_out } => {
                self.end_session(connection, &ExecEnd { exit, timed_out })
            }
            Role::Collected { connection, stdout, stderr, timed_out } => {
                use base64::Engine as _;
                let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
                let response =
                    Response::ExecSync { stdout: encode(&stdout), stderr: encode(&stderr), exit, timed_out };
                self.answer(connection, &response);
            }
        }
    }

    fn finish_container(&mut self, id: &str, mut exit: ExitStatus) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        // Before the group goes, and before anybody is told.
        exit.oom_killed = container.cgroup.oom_kills() > 0;
        container.log.finish();
        if let Err(error) = exit_file::write(&container.directory, &exit) {
            say(&format!("{id}: failed to write the exit file: {error}"));
        }
        container.exit = Some(exit.clone());
        container.phase = Phase::Exited;
        container.init = None;
        container.stop = None;
        let stoppers = std::mem::take(&mut container.stoppers);
        let starters = std::mem::take(&mut container.starters);
        let wants_removal = !container.removers.is_empty() || self.ending.is_some();
        self.announce(id);
        self.end_attached(id, &exit);
        for stopper in stoppers {
            self.answer(stopper, &Response::Ok);
        }
        for starter in starters {
            self.refuse(starter, ErrorKind::WrongState, format!("container {id} ended before it started"));
        }
        if wants_removal {
            self.begin_removal(id);
        }
    }

    pub(crate) fn begin_removal(&mut self, id: &str) {
        let now = Instant::now();
        if let Some(container) = self.containers.get_mut(id) {
            container.removal = Some(Removal { next_try: now, give_up_at: now + REMOVAL_LIMIT });
            self.try_removal(id, now);
        }
    }

    fn try_removal(&mut self, id: &str, now: Instant) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(removal) = &mut container.removal else {
            return;
        };
        let unmounted = staged::unstage(&container.request.mounts)
            .and_then(|()| rootfs::unmount_overlay(&container.request.bundle.join("rootfs")));
        let gone = container.cgroup.try_remove();
        if gone && unmounted.is_ok() {
            if let Err(error) = std::fs::remove_dir_all(&container.directory) {
                say(&format!("{id}: failed to remove the state directory: {error}"));
            }
            self.forget(id);
            return;
        }
        if now < removal.give_up_at {
            removal.next_try = now + REMOVAL_PAUSE;
            container.cgroup.kill();
            return;
        }
        let why = match unmounted {
            Err(error) => format!("failed to unmount the container's file systems: {error}"),
            Ok(()) => format!("control groups stay busy: {:?}", container.cgroup.directories()),
        };
        container.removal = None;
        let failure = container.failure.clone();
        let waiting = std::mem::take(&mut container.removers);
        let creators = std::mem::take(&mut container.creators);
        for key in waiting {
            self.refuse(key, ErrorKind::Failed, why.clone());
        }
        for key in creators {
            let message = failure.clone().unwrap_or_else(|| why.clone());
            self.refuse(key, ErrorKind::Failed, message);
        }
    }

    fn forget(&mut self, id: &str) {
        let Some(container) = self.containers.remove(id) else {
            return;
        };
        for key in container.removers {
            self.answer(key, &Response::Ok);
        }
        for key in container.creators {
            self.refuse(key, ErrorKind::Failed, container.failure.clone().unwrap_or_default());
        }
    }

    /// The earliest thing that must happen without a descriptor's help.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let of_processes =
            self.processes.values().flat_map(|running| [running.deadline, running.drain_until]);
        let of_containers = self.containers.values().flat_map(|container| {
            let stop = container.stop.map(|stop| if stop.killed { stop.give_up_at } else { stop.kill_at });
            [stop, container.removal.map(|removal| removal.next_try)]
        });
        let of_end = self.ending.map(|ending| ending.give_up_at);
        of_processes.chain(of_containers).chain([of_end]).flatten().min()
    }

    pub(crate) fn fire_deadlines(&mut self, now: Instant) {
        let keys: Vec<u64> = self.processes.keys().copied().collect();
        for key in keys {
            self.expire(key, now);
            if self
                .processes
                .get(&key)
                .is_some_and(|running| running.drain_until.is_some_and(|until| now >= until))
            {
                self.try_finish(key, now);
            }
        }
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            self.advance_stop(&id, now);
            let due = |container: &crate::container::Container| {
                container.removal.is_some_and(|removal| now >= removal.next_try)
            };
            if self.containers.get(&id).is_some_and(due) {
                self.try_removal(&id, now);
            }
        }
    }

    fn expire(&mut self, key: u64, now: Instant) {
        let Some(running) = self.processes.get_mut(&key) else {
            return;
        };
        if running.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        running.deadline = None;
        if let Role::Collected { timed_out, .. } | Role::Streamed { timed_out, .. } = &mut running.role {
            *timed_out = true;
        }
        match (&running.stage, running.pid) {
            (Stage::Preparing { setup_pid, .. }, _) => {
                say(&format!("{}: set-up took too long", running.container));
                let _ = send(*setup_pid, libc::SIGKILL);
            }
            (_, Some(pid)) => {
                // It leads a session of its own, so its children in the foreground go with it.
                if let Ok(pid) = i32::try_from(pid) {
                    let _ = orlop_linux::process::send_signal(-pid, libc::SIGKILL);
                }
                let _ = send(pid, libc::SIGKILL);
            }
            (_, None) => {}
        }
    }

    fn advance_stop(&mut self, id: &str, now: Instant) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(stop) = &mut container.stop else { return };
        if !stop.killed && now >= stop.kill_at {
            stop.killed = true;
            stop.give_up_at = now + (stop.give_up_at - stop.kill_at).min(REMOVAL_LIMIT);
            if let Some(pid) = container.pid {
                let _ = send(pid, libc::SIGKILL);
            }
            container.cgroup.kill();
        } else if stop.killed && now >= stop.give_up_at {
            container.stop = None;
            for stopper in std::mem::take(&mut container.stoppers) {
                self.refuse(stopper, ErrorKind::Failed, format!("container {id} does not die of SIGKILL"));
            }
        }
    }

    /// Ends the shim when nothing is left, or it is late. True when done.
    pub(crate) fn try_end(&mut self, now: Instant) -> bool {
        let Some(ending) = self.ending else { return false };
        if !self.containers.is_empty() && now < ending.give_up_at {
            return false;
        }
        if let Some(reaper) = self.reaper.take() {
            let _ = send(reaper, libc::SIGKILL);
            let pid = i32::try_from(reaper).ok().and_then(rustix::process::Pid::from_raw);
            let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        }
        // Our own control group is the daemon's to remove after we are gone: leaving it first costs a grace period of the kernel.
        for file in ["shim.sock", "shim.json"] {
            let _ = std::fs::remove_file(self.config.state_dir.join(file));
        }
        self.answer(ending.connection, &Response::Ok);
        if let Some(connection) = self.connections.get_mut(&ending.connection) {
            connection.flush();
        }
        true
    }
}
