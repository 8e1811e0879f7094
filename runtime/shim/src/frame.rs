//! Framing: length and JSON; channel, length and data.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::{FRAME_LIMIT_BYTES, STREAM_FRAME_LIMIT_BYTES};

/// A frame in bytes.
pub fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - 4;
    if length > FRAME_LIMIT_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes is too long"),
        ));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Writes one JSON frame.
pub fn write_frame(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    writer.write_all(&encode(value)?)
}

/// Reads one JSON frame.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = check_length(length, FRAME_LIMIT_BYTES)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes one stream frame.
pub fn write_stream_frame(writer: &mut impl Write, channel: u8, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    writer.write_all(&[channel])?;
    writer.write_all(&length.to_be_bytes())?;
    writer.write_all(data)
}

/// Reads one stream frame.
pub fn read_stream_frame(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    reader.read_exact(&mut head)?;
    let length = check_length([head[1], head[2], head[3], head[4]], STREAM_FRAME_LIMIT_BYTES)?;
    let mut data = vec![0; length];
    reader.read_exact(&mut data)?;
    Ok((head[0], data))
}

fn check_length(bytes: [u8; 4], limit: usize) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(bytes)).map_err(io::Error::other)?;
    if length > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes is too long"),
        ));
    }
    Ok(length)
}

/// Takes the body of the first whole JSON frame out of what has arrived.
pub(crate) fn take_frame(input: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let Some(head) = input.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = check_length(*head, FRAME_LIMIT_BYTES)?;
    if input.len() < 4 + length {
        return Ok(None);
    }
    let body = input[4..4 + length].to_vec();
    input.drain(..4 + length);
    Ok(Some(body))
}

/// Takes the first whole stream frame out of what has arrived.
pub(crate) fn take_stream_frame(input: &mut Vec<u8>) -> io::Result<Option<(u8, Vec<u8>)>> {
    let Some(head) = input.first_chunk::<5>() else {
        return Ok(None);
    };
    let channel = head[0];
    let length = check_length([head[1], head[2], head[3], head[4]], STREAM_FRAME_LIMIT_BYTES)?;
    if input.len() < 5 + length {
        return Ok(None);
    }
    let data = input[5..5 + length].to_vec();
    input.drain(..5 + length);
    Ok(Some((channel, data)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Request;

    #[test]
    fn frames_come_back_in_any_pieces() {
        let mut bytes = encode(&Request::State).unwrap();
        bytes.extend(encode(&Request::Hello { version: 7 }).unwrap());
        let mut input = Vec::new();
        let mut seen = Vec::new();
        for byte in bytes {
            input.push(byte);
            while let Some(body) = take_frame(&mut input).unwrap() {
                seen.push(serde_json::from_slice::<Request>(&body).unwrap());
            }
        }
        assert!(matches!(seen[..], [Request::State, Request::Hello { version: 7 }]));
        assert!(input.is_empty());
    }

    #[test]
    fn stream_frames_too() {
        let mut bytes = Vec::new();
        write_stream_frame(&mut bytes, 1, b"hello").unwrap();
        write_stream_frame(&mut bytes, 2, b"").unwrap();
        assert_eq!(read_stream_frame(&mut &bytes[..]).unwrap(), (1, b"hello".to_vec()));
        assert_eq!(take_stream_frame(&mut bytes).unwrap(), Some((1, b"hello".to_vec())));
        assert_eq!(take_stream_frame(&mut bytes).unwrap(), Some((2, Vec::new())));
        assert_eq!(take_stream_frame(&mut bytes).unwrap(), None);
    }

    #[test]
    fn long_frames_are_refused_before_they_arrive() {
        assert!(take_frame(&mut vec![0xff; 8]).is_err());
        assert!(take_stream_frame(&mut vec![1, 0, 1, 0, 1]).is_err());
        assert!(read_frame::<Request>(&mut &[0xff_u8; 8][..]).is_err());
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_in_any_cut_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
            // Whole or in two pieces: the same frames, nothing kept that is not a frame's beginning.
            let take_all = |pieces: [&[u8]; 2]| {
                let (mut input, mut frames) = (Vec::new(), Vec::new());
                for piece in pieces {
                    input.extend_from_slice(piece);
                    loop {
                        match take_frame(&mut input) {
                            Ok(Some(body)) => frames.push(body),
                            Ok(None) => break,
                            Err(_) => return (frames, None),
                        }
                    }
                }
                (frames, Some(input))
            };
            let cut = cut.min(bytes.len());
            let whole = take_all([&bytes, &[]]);
            prop_assert_eq!(&take_all([&bytes[..cut], &bytes[cut..]]), &whole);
            let taken: usize = whole.0.iter().map(|body| body.len() + 4).sum();
            if let Some(rest) = whole.1 {
                prop_assert_eq!(&bytes[taken..], &rest[..]);
            }
            let _ = read_frame::<Request>(&mut &bytes[..]);
        }

        #[test]
        fn stream_frames_come_back_in_any_cut(
            frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..8),
            cuts in proptest::collection::vec(0_usize..400, 0..6),
        ) {
            let mut bytes = Vec::new();
            for (channel, data) in &frames {
                write_stream_frame(&mut bytes, *channel, data).unwrap();
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut input, mut seen, mut from) = (Vec::new(), Vec::new(), 0);
            for cut in cuts {
                input.extend_from_slice(&bytes[from..cut]);
                from = cut;
                while let Some(frame) = take_stream_frame(&mut input).unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(input.is_empty());
        }
    }
}
