//! A link between two mirrors on loopback that can be cut.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

struct State {
    cut: bool,
    streams: Vec<TcpStream>,
}

/// Takes connections and passes them on; its thread ends with the test's process.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Link {
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { cut: false, streams: Vec::new() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(onward) = TcpStream::connect(target) else { continue };
                let mut state = shared.lock().unwrap();
                if state.cut {
                    continue;
                }
                for (mut from, mut to) in
                    [(stream.try_clone().unwrap(), onward.try_clone().unwrap()), (onward, stream)]
                {
                    state.streams.extend([from.try_clone().unwrap(), to.try_clone().unwrap()]);
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, state }
    }

    pub(crate) fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.cut = true;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn heal(&self) {
        self.state.lock().unwrap().cut = false;
    }
}
