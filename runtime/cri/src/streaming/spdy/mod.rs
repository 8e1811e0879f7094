//! SPDY/3.1 as kubectl, kubelets and API servers speak it (draft-mbelshe-httpbis-spdy-00 and the 3.1 changes), server side.
//!
//! [`frame`] and [`headers`] are pure framing; [`connection`] runs a connection over any byte stream.
//! Flow control: the Go library at the other end neither honours nor sends WINDOW_UPDATE, so ours are sent for peers that
//! count and the peer's are not waited for; the transport's own back pressure bounds what is in flight.

pub(crate) mod connection;
pub(crate) mod frame;
pub(crate) mod headers;
