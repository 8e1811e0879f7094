//! Name/value blocks (section 2.6.10): zlib with SPDY/3's dictionary, one state per direction of a connection. Pure.

use std::sync::LazyLock;

use bytes::{Buf as _, BufMut as _, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Headers that stream types and ports need are a few dozen bytes.
pub(crate) const BLOCK_LIMIT_BYTES: usize = 16 * 1024;
const PAIR_LIMIT: u32 = 64;

const WORDS: [&str; 64] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
];
const LAST_WORD: &str = "origin";
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.iter().chain([&LAST_WORD]) {
        put_text(&mut dictionary, word);
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

/// Why a block cannot be read. The compression state is lost with it, so the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadersError {
    /// Not zlib, or cut off.
    #[error("a SPDY header block cannot be inflated")]
    Inflate,
    /// Inflates to more than [`BLOCK_LIMIT_BYTES`].
    #[error("a SPDY header block is too large")]
    TooLarge,
    /// Lengths that do not fit, or text that is not UTF-8.
    #[error("a SPDY header block is malformed")]
    Malformed,
}

/// Names in lower case, in the order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name (lower case).
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the peer's blocks in their order.
pub(crate) struct Inflater(Decompress);

/// Writes ours.
pub(crate) struct Deflater(Compress);

impl Inflater {
    /// A new connection's.
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads one block.
    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, HeadersError> {
        let mut plain = Vec::with_capacity(BLOCK_LIMIT_BYTES);
        let mut rest = block;
        loop {
            let (taken, made) = (self.0.total_in(), plain.len());
            let status = match self.0.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Ok(status) => status,
                Err(error) if error.needs_dictionary().is_some() => {
                    rest = self.remaining(rest, taken);
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| HeadersError::Inflate)?;
                    continue;
                }
                Err(_) => return Err(HeadersError::Inflate),
            };
            rest = self.remaining(rest, taken);
            if rest.is_empty() && plain.len() < plain.capacity() {
                return parse(&plain);
            }
            // The output is full, or nothing moved any more.
            if plain.len() == plain.capacity() {
                return Err(HeadersError::TooLarge);
            }
            if status == Status::StreamEnd || (self.0.total_in() == taken && plain.len() == made) {
                return Err(HeadersError::Inflate);
            }
        }
    }

    fn remaining<'a>(&self, rest: &'a [u8], before: u64) -> &'a [u8] {
        let taken = usize::try_from(self.0.total_in() - before).unwrap_or(rest.len());
        rest.get(taken..).unwrap_or_default()
    }
}

impl Deflater {
    /// A new connection's.
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&DICTIONARY).expect("a fresh zlib stream takes a dictionary");
        Self(compress)
    }

    /// Writes one block.
    pub(crate) fn write(&mut self, headers: &Headers) -> Bytes {
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(headers.0.len()).unwrap_or(0));
        for (name, value) in &headers.0 {
            put_text(&mut plain, name);
            put_text(&mut plain, value);
        }
        // Deflate adds a few bytes to what it cannot shrink; a sync flush adds five.
        let mut block = Vec::with_capacity(plain.len() + plain.len() / 8 + 128);
        let mut rest = plain.as_slice();
        loop {
            let before = self.0.total_in();
            block.reserve(64);
            let written = self.0.compress_vec(rest, &mut block, FlushCompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before).unwrap_or(rest.len());
            rest = rest.get(taken..).unwrap_or_default();
            // A flush is complete when it leaves room in the output (zlib.h, deflate()).
            if written.is_err() || (rest.is_empty() && block.len() < block.capacity()) {
                return block.into();
            }
        }
    }
}

fn put_text(buffer: &mut Vec<u8>, text: &str) {
    buffer.put_u32(u32::try_from(text.len()).unwrap_or(0));
    buffer.extend_from_slice(text.as_bytes());
}

fn parse(mut plain: &[u8]) -> Result<Headers, HeadersError> {
    let count = plain.try_get_u32().map_err(|_| HeadersError::Malformed)?;
    if count > PAIR_LIMIT {
        return Err(HeadersError::Malformed);
    }
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = take_text(&mut plain)?.to_ascii_lowercase();
        // Several values of one name are separated by zero bytes.
        for value in take_text(&mut plain)?.split('\0') {
            if headers.len() >= PAIR_LIMIT as usize {
                return Err(HeadersError::Malformed);
            }
            headers.push((name.clone(), value.to_owned()));
        }
    }
    Ok(Headers(headers))
}

fn take_text(plain: &mut &[u8]) -> Result<String, HeadersError> {
    let length = plain.try_get_u32().map_err(|_| HeadersError::Malformed)? as usize;
    let text = plain.get(..length).ok_or(HeadersError::Malformed)?;
    *plain = plain.get(length..).unwrap_or_default();
    String::from_utf8(text.to_vec()).map_err(|_| HeadersError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// Made with another zlib implementation from the same dictionary: two blocks of one connection.
    const FIRST: &str = "78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff";
    const SECOND: &str = "02a5470c295029930829b08b40899bc9c20048721641a2371394ec190d00000000ffff";

    #[test]
    fn the_dictionary_is_the_drafts() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_of_another_implementation_are_read() {
        let mut inflater = Inflater::new();
        assert_eq!(inflater.read(&hex::decode(FIRST).unwrap()).unwrap(), headers(&[("streamtype", "error")]));
        let second = inflater.read(&hex::decode(SECOND).unwrap()).unwrap();
        assert_eq!(second, headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "0")]));
        assert_eq!(second.get("port"), Some("80"));
    }

    #[test]
    fn our_blocks_are_read_back() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let long = "x".repeat(5000);
        for pairs in [&[][..], &[("a", "b")], &[("streamtype", "stdin"), ("n", long.as_str())], &[]] {
            let block = deflater.write(&headers(pairs));
            assert_eq!(inflater.read(&block).unwrap(), headers(pairs));
        }
    }

    #[test]
    fn hostile_blocks_are_errors() {
        let mut bomb = Deflater::new();
        let block = bomb.write(&headers(&[("a", &"0".repeat(1 << 20))]));
        assert!(block.len() < 8192);
        assert_eq!(Inflater::new().read(&block), Err(HeadersError::TooLarge));
        assert!(Inflater::new().read(b"not zlib at all").is_err());
        assert!(Inflater::new().read(b"").is_err());
        assert_eq!(parse(b"\xff\xff\xff\xff"), Err(HeadersError::Malformed));
        assert_eq!(parse(b"\0\0\0\x01\xff\xff\xff\xff"), Err(HeadersError::Malformed));
        let good = hex::decode(FIRST).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            let _ = Inflater::new().read(&bad);
            let _ = Inflater::new().read(&good[..at]);
        }
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_blocks_never_panic_and_stay_small(
            block in proptest::collection::vec(any::<u8>(), 0..300),
            plain in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..300),
            at in 0_usize..30,
        ) {
            let _ = Inflater::new().read(&block);
            // A good beginning, then anything.
            let mut spoiled = hex::decode(FIRST).unwrap();
            spoiled.truncate(at);
            spoiled.extend_from_slice(&block);
            for headers in [Inflater::new().read(&spoiled), parse(&plain)].into_iter().flatten() {
                let values: usize = headers.0.iter().map(|(_, value)| value.len()).sum();
                prop_assert!(values <= BLOCK_LIMIT_BYTES);
            }
        }

        #[test]
        fn any_headers_come_back(pairs in proptest::collection::vec(("[a-z0-9-]{0,20}", "[^\0]{0,60}"), 0..20)) {
            let sent = Headers(pairs);
            let block = Deflater::new().write(&sent);
            prop_assert_eq!(Inflater::new().read(&block).unwrap(), sent);
        }
    }
}
