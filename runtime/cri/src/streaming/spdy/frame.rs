//! SPDY/3.1 frames as values. Pure; hostile bytes end in an error, never in a panic or an unbounded buffer.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// A longer frame is an attack or a bug: peers write at most 32 KiB at once.
pub(crate) const FRAME_LIMIT_BYTES: usize = 1024 * 1024;
const HEADER_BYTES: usize = 8;
const VERSION: u16 = 3;
const CONTROL: u32 = 0x8000_0000;
const STREAM_MASK: u32 = 0x7fff_ffff;
const FLAG_FIN: u8 = 0x01;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// RST_STREAM status codes (section 2.6.3).
pub(crate) mod reset {
    /// The frame was for no stream that is open.
    pub(crate) const INVALID_STREAM: u32 = 2;
    /// The stream is not wanted.
    pub(crate) const REFUSED_STREAM: u32 = 3;
}

/// Why bytes are not SPDY.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// Longer than [`FRAME_LIMIT_BYTES`].
    #[error("a SPDY frame of {0} bytes is too long")]
    TooLong(usize),
    /// Not version 3.
    #[error("SPDY version {0} is not spoken here")]
    Version(u16),
    /// Shorter than its type needs.
    #[error("a SPDY frame of type {0} is too short")]
    TooShort(u16),
}

/// One frame; header blocks are still compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Bytes of a stream.
    Data {
        /// Stream.
        stream: u32,
        /// The sender sends no more.
        fin: bool,
        /// Payload.
        data: Bytes,
    },
    /// Opens a stream.
    SynStream {
        /// Stream: odd ones are the client's.
        stream: u32,
        /// The sender sends no more.
        fin: bool,
        /// Compressed name/value block.
        block: Bytes,
    },
    /// Accepts a stream.
    SynReply {
        /// Stream.
        stream: u32,
        /// The sender sends no more.
        fin: bool,
        /// Compressed name/value block.
        block: Bytes,
    },
    /// Ends a stream at once.
    RstStream {
        /// Stream.
        stream: u32,
        /// See [`reset`].
        status: u32,
    },
    /// More headers.
    Headers {
        /// Stream.
        stream: u32,
        /// The sender sends no more.
        fin: bool,
        /// Compressed name/value block.
        block: Bytes,
    },
    /// To be sent back when its number is the peer's (odd from a client).
    Ping(u32),
    /// The sender opens and accepts no more streams.
    GoAway {
        /// Last stream that was accepted.
        last: u32,
        /// 0 is a normal end.
        status: u32,
    },
    /// The receiver has taken this many bytes.
    WindowUpdate {
        /// Stream; 0 is the connection.
        stream: u32,
        /// Bytes.
        delta: u32,
    },
    /// Settings, which change nothing here.
    Settings,
    /// A control frame of another type: to be ignored (section 2.2.1).
    Unknown(u16),
}

/// Takes the next whole frame off the front of `buffer`; `None` when more bytes are needed.
pub(crate) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(mut header) = buffer.get(..HEADER_BYTES) else {
        return Ok(None);
    };
    let first = header.get_u32();
    let second = header.get_u32();
    let length = (second & 0x00ff_ffff) as usize;
    if length > FRAME_LIMIT_BYTES {
        return Err(FrameError::TooLong(length));
    }
    if first & CONTROL != 0 && (first >> 16) & 0x7fff != u32::from(VERSION) {
        return Err(FrameError::Version(((first >> 16) & 0x7fff) as u16));
    }
    if buffer.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    let body = buffer.split_to(length).freeze();
    let flags = (second >> 24) as u8;
    let fin = flags & FLAG_FIN != 0;
    if first & CONTROL == 0 {
        return Ok(Some(Frame::Data { stream: first & STREAM_MASK, fin, data: body }));
    }
    control((first & 0xffff) as u16, fin, body).map(Some)
}

fn control(kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, FrameError> {
    let needed = match kind {
        SYN_STREAM => 10,
        RST_STREAM | GOAWAY | WINDOW_UPDATE => 8,
        SYN_REPLY | HEADERS | PING => 4,
        _ => 0,
    };
    if body.len() < needed {
        return Err(FrameError::TooShort(kind));
    }
    Ok(match kind {
        SYN_STREAM => {
            let stream = body.get_u32() & STREAM_MASK;
            // Associated stream, priority and credential slot mean nothing here.
            body.advance(6);
            Frame::SynStream { stream, fin, block: body }
        }
        SYN_REPLY => Frame::SynReply { stream: body.get_u32() & STREAM_MASK, fin, block: body },
        RST_STREAM => Frame::RstStream { stream: body.get_u32() & STREAM_MASK, status: body.get_u32() },
        SETTINGS => Frame::Settings,
        PING => Frame::Ping(body.get_u32()),
        GOAWAY => Frame::GoAway { last: body.get_u32() & STREAM_MASK, status: body.get_u32() },
        HEADERS => Frame::Headers { stream: body.get_u32() & STREAM_MASK, fin, block: body },
        WINDOW_UPDATE => {
            Frame::WindowUpdate { stream: body.get_u32() & STREAM_MASK, delta: body.get_u32() & STREAM_MASK }
        }
        other => Frame::Unknown(other),
    })
}

/// Appends a frame to `buffer`. Payloads are at most [`FRAME_LIMIT_BYTES`]: the callers cut them.
pub(crate) fn encode(frame: &Frame, buffer: &mut BytesMut) {
    let flag = |fin: bool| if fin { FLAG_FIN } else { 0 };
    match frame {
        Frame::Data { stream, fin, data } => {
            buffer.put_u32(stream & STREAM_MASK);
            put_length(buffer, flag(*fin), data.len());
            buffer.put_slice(data);
        }
        Frame::SynStream { stream, fin, block } => {
            put_control(buffer, SYN_STREAM, flag(*fin), 10 + block.len());
            buffer.put_u32(*stream);
            buffer.put_bytes(0, 6);
            buffer.put_slice(block);
        }
        Frame::SynReply { stream, fin, block } => {
            put_control(buffer, SYN_REPLY, flag(*fin), 4 + block.len());
            buffer.put_u32(*stream);
            buffer.put_slice(block);
        }
        Frame::Headers { stream, fin, block } => {
            put_control(buffer, HEADERS, flag(*fin), 4 + block.len());
            buffer.put_u32(*stream);
            buffer.put_slice(block);
        }
        Frame::RstStream { stream: first, status: second } => put_pair(buffer, RST_STREAM, *first, *second),
        Frame::GoAway { last: first, status: second } => put_pair(buffer, GOAWAY, *first, *second),
        Frame::WindowUpdate { stream: first, delta: second } => {
            put_pair(buffer, WINDOW_UPDATE, *first, *second)
        }
        Frame::Ping(id) => {
            put_control(buffer, PING, 0, 4);
            buffer.put_u32(*id);
        }
        Frame::Settings => {
            put_control(buffer, SETTINGS, 0, 4);
            buffer.put_u32(0);
        }
        Frame::Unknown(kind) => put_control(buffer, *kind, 0, 0),
    }
}

fn put_pair(buffer: &mut BytesMut, kind: u16, first: u32, second: u32) {
    put_control(buffer, kind, 0, 8);
    buffer.put_u32(first);
    buffer.put_u32(second);
}

fn put_control(buffer: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    buffer.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    put_length(buffer, flags, length);
}

fn put_length(buffer: &mut BytesMut, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(0x00ff_ffff) & 0x00ff_ffff;
    buffer.put_u32(u32::from(flags) << 24 | length);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        decode(&mut BytesMut::from(bytes))
    }

    #[test]
    fn frames_from_hand_made_bytes() {
        let block = Bytes::from_static(b"zz");
        let table: [(&[u8], Frame); 8] = [
            (
                b"\x00\x00\x00\x05\x01\x00\x00\x02hi",
                Frame::Data { stream: 5, fin: true, data: Bytes::from_static(b"hi") },
            ),
            (
                b"\x80\x03\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00zz",
                Frame::SynStream { stream: 1, fin: false, block: block.clone() },
            ),
            (
                b"\x80\x03\x00\x02\x01\x00\x00\x06\x00\x00\x00\x03zz",
                Frame::SynReply { stream: 3, fin: true, block },
            ),
            (
                b"\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x05",
                Frame::RstStream { stream: 1, status: 5 },
            ),
            (b"\x80\x03\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00", Frame::Settings),
            (b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x07", Frame::Ping(7)),
            (
                b"\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x09\x00\x00\x00\x00",
                Frame::GoAway { last: 9, status: 0 },
            ),
            (
                b"\x80\x03\x00\x09\x00\x00\x00\x08\x00\x00\x00\x01\x00\x01\x00\x00",
                Frame::WindowUpdate { stream: 1, delta: 65536 },
            ),
        ];
        for (bytes, frame) in table {
            assert_eq!(one(bytes).unwrap().as_ref(), Some(&frame));
            let mut encoded = BytesMut::new();
            encode(&frame, &mut encoded);
            assert_eq!(&encoded[..], bytes, "{frame:?}");
            // Every cut asks for more and takes nothing.
            for cut in 0..bytes.len() {
                let mut buffer = BytesMut::from(&bytes[..cut]);
                assert_eq!(decode(&mut buffer), Ok(None));
                assert_eq!(buffer.len(), cut);
            }
        }
        assert_eq!(one(b"\x80\x03\x00\x63\x00\x00\x00\x00"), Ok(Some(Frame::Unknown(99))));
    }

    #[test]
    fn hostile_bytes_are_errors() {
        assert_eq!(one(b"\x80\x02\x00\x01\x00\x00\x00\x00"), Err(FrameError::Version(2)));
        assert_eq!(one(b"\x80\x03\x00\x01\x00\x00\x00\x00"), Err(FrameError::TooShort(1)));
        assert_eq!(one(b"\x00\x00\x00\x01\x00\xff\xff\xff"), Err(FrameError::TooLong(0x00ff_ffff)));
        assert_eq!(one(b"GET / HTTP/1.1\r\n\r\n"), Err(FrameError::TooLong(0x0020_4854)));
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_in_any_cut_are_frames_or_an_error(
            mut bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(3), Just(0x80), any::<u8>()], 0..120),
            cut in 0_usize..120,
            plausible: bool,
        ) {
            if plausible && bytes.len() > 5 {
                (bytes[0], bytes[1], bytes[2], bytes[5]) = (0x80, 3, 0, 0);
                bytes[3] %= 10;
            }
            let take_all = |pieces: [&[u8]; 2]| {
                let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
                for piece in pieces {
                    buffer.extend_from_slice(piece);
                    loop {
                        match decode(&mut buffer) {
                            Ok(Some(frame)) => frames.push(frame),
                            Ok(None) => break,
                            Err(error) => return (frames, Err(error)),
                        }
                    }
                }
                (frames, Ok(buffer.len()))
            };
            let cut = cut.min(bytes.len());
            prop_assert_eq!(take_all([&bytes[..cut], &bytes[cut..]]), take_all([&bytes, &[]]));
        }

        #[test]
        fn what_is_written_is_read_back(stream in 1_u32..0x8000_0000, fin: bool, data in proptest::collection::vec(any::<u8>(), 0..300), number: u32) {
            let data = Bytes::from(data);
            for frame in [
                Frame::Data { stream, fin, data: data.clone() },
                Frame::SynStream { stream, fin, block: data.clone() },
                Frame::SynReply { stream, fin, block: data.clone() },
                Frame::Headers { stream, fin, block: data.clone() },
                Frame::RstStream { stream, status: number },
                Frame::Ping(number),
                Frame::GoAway { last: stream, status: number },
                Frame::WindowUpdate { stream, delta: number & STREAM_MASK },
            ] {
                let mut buffer = BytesMut::new();
                encode(&frame, &mut buffer);
                prop_assert_eq!(decode(&mut buffer), Ok(Some(frame)));
                prop_assert!(buffer.is_empty());
            }
        }
    }
}
