//! Messages of D-Bus, as far as systemd's manager is asked (D-Bus Specification, "Message Protocol"). Pure; little endian alone.

/// Kinds of messages.
pub(super) const CALL: u8 = 1;
pub(super) const RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;
/// Before the header's fields.
pub(super) const FIXED_BYTES: usize = 16;

/// The value of a unit's property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// `b`
    Flag(bool),
    /// `s`
    Text(String),
    /// `t`; `u64::MAX` is infinity.
    Number(u64),
    /// `au`
    Pids(Vec<u32>),
    /// `ay`: a set of bits, lowest first.
    Bits(Vec<u8>),
}

/// A name and its value.
pub(crate) type Property = (&'static str, Value);

/// Values one after the other, each aligned from the beginning.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        while !self.0.len().is_multiple_of(to) {
            self.0.push(0);
        }
    }

    pub(super) fn number(&mut self, number: u32) -> &mut Self {
        self.align(4);
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.number(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }

    pub(super) fn flag(&mut self, flag: bool) -> &mut Self {
        self.number(flag.into())
    }

    fn signature(&mut self, signature: &str) -> &mut Self {
        self.0.push(u8::try_from(signature.len()).expect("signatures of ours are short"));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
        self
    }

    /// An array whose elements begin at multiples of `align`: its length does not count what is before the first.
    fn array(&mut self, align: usize, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.number(0);
        let place = self.0.len() - 4;
        self.align(align);
        let start = self.0.len();
        fill(self);
        let bytes = length(self.0.len() - start).to_le_bytes();
        self.0[place..place + 4].copy_from_slice(&bytes);
        self
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, properties: &[Property]) -> &mut Self {
        self.array(8, |array| {
            for (name, value) in properties {
                array.align(8);
                array.text(name).value(value);
            }
        })
    }

    /// `a(sa(sv))`, empty: other units to make along.
    pub(super) fn no_more_units(&mut self) -> &mut Self {
        self.array(8, |_| {})
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Flag(flag) => self.signature("b").flag(*flag),
            Value::Text(text) => self.signature("s").text(text),
            Value::Number(number) => {
                self.signature("t").align(8);
                self.0.extend(number.to_le_bytes());
                self
            }
            Value::Pids(pids) => self.signature("au").array(4, |array| {
                for pid in pids {
                    array.number(*pid);
                }
            }),
            Value::Bits(bits) => self.signature("ay").array(1, |array| array.0.extend(bits)),
        };
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("built in memory from a configuration of bounded size")
}

/// A method call.
pub(super) struct Call<'c> {
    pub(super) destination: &'c str,
    pub(super) path: &'c str,
    pub(super) interface: &'c str,
    pub(super) member: &'c str,
    /// Of the body; empty for none.
    pub(super) signature: &'c str,
}

impl Call<'_> {
    /// The whole message.
    pub(super) fn encode(&self, serial: u32, body: &Writer) -> Vec<u8> {
        let mut message = Writer(vec![b'l', CALL, 0, 1]);
        message.number(length(body.0.len())).number(serial);
        message.array(8, |fields| {
            for (code, kind, text) in [
                (1, "o", self.path),
                (2, "s", self.interface),
                (3, "s", self.member),
                (6, "s", self.destination),
            ] {
                fields.align(8);
                fields.0.push(code);
                fields.signature(kind).text(text);
            }
            if !self.signature.is_empty() {
                fields.align(8);
                fields.0.push(8);
                fields.signature("g").signature(self.signature);
            }
        });
        message.align(8);
        message.0.extend(&body.0);
        message.0
    }
}

/// A message that came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: u32,
    pub(super) member: String,
    pub(super) error: String,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// How many bytes follow the fixed part; nothing for what is no message of this protocol, or a longer one than `limit`.
pub(super) fn rest_of(fixed: &[u8; FIXED_BYTES], limit: usize) -> Option<usize> {
    let number = |at: usize| {
        let bytes = fixed.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let (body, fields) = (number(4)?, number(12)?);
    let rest = fields.checked_next_multiple_of(8)?.checked_add(body)?;
    (fixed[0] == b'l' && fixed[3] == 1 && rest <= limit).then_some(rest)
}

impl Message {
    /// From a whole message.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes, at: 4 };
        let (body_bytes, _serial, fields_bytes) = (reader.number()?, reader.number()?, reader.number()?);
        let end = reader.at.checked_add(usize::try_from(fields_bytes).ok()?)?;
        let mut message = Self { kind: *bytes.get(1)?, ..Self::default() };
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, kind.as_str()) {
                (3, "s") => message.member = reader.text()?,
                (4, "s") => message.error = reader.text()?,
                (5, "u") => message.reply_to = reader.number()?,
                (8, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.number()?),
                (_, "g") => drop(reader.signature()?),
                _ => return None,
            }
        }
        reader.align(8);
        let body_end = reader.at.checked_add(usize::try_from(body_bytes).ok()?)?;
        message.body = bytes.get(reader.at..body_end)?.to_vec();
        Some(message)
    }

    /// Every text and number of the body from its beginning, until something else comes.
    pub(super) fn texts(&self) -> Vec<String> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for kind in self.signature.chars() {
            let text = match kind {
                's' | 'o' => reader.text(),
                'u' => reader.number().map(|number| number.to_string()),
                _ => None,
            };
            match text {
                Some(text) => texts.push(text),
                None => break,
            }
        }
        texts
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.bytes.get(self.at..self.at.checked_add(4)?)?;
        self.at += 4;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn string(&mut self, length: usize) -> Option<String> {
        let end = self.at.checked_add(length)?;
        let text = std::str::from_utf8(self.bytes.get(self.at..end)?).ok()?.to_owned();
        self.at = end.checked_add(1)?;
        Some(text)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()?;
        self.string(usize::try_from(length).ok()?)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.byte()?;
        self.string(length.into())
    }
}

/// What a bus sends, for tests: an answer to `reply_to`, or a signal.
#[cfg(test)]
pub(super) fn encode_answer(kind: u8, reply_to: u32, name: &str, signature: &str, body: &Writer) -> Vec<u8> {
    let mut message = Writer(vec![b'l', kind, 0, 1]);
    message.number(length(body.0.len())).number(9);
    message.array(8, |fields| {
        let named = match kind {
            SIGNAL => Some(3),
            ERROR => Some(4),
            _ => None,
        };
        if let Some(code) = named {
            fields.align(8);
            fields.0.push(code);
            fields.signature("s").text(name);
        }
        fields.align(8);
        fields.0.push(5);
        fields.signature("u").number(reply_to);
        fields.align(8);
        fields.0.push(8);
        fields.signature("g").signature(signature);
    });
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

/// Serial of a call, for tests.
#[cfg(test)]
pub(super) fn serial(message: &[u8]) -> u32 {
    u32::from_le_bytes(message[8..12].try_into().unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_comes_back() {
        let call = Call {
            destination: "d.e",
            path: "/p",
            interface: "i.f",
            member: "M",
            signature: "ssa(sv)a(sa(sv))",
        };
        let mut body = Writer::default();
        let properties = [
            ("A", Value::Flag(true)),
            ("Pids", Value::Pids(vec![7])),
            ("N", Value::Number(u64::MAX)),
            ("B", Value::Bits(vec![3])),
        ];
        body.text("unit").text("replace").properties(&properties).no_more_units();
        let bytes = call.encode(5, &body);
        let fixed: [u8; FIXED_BYTES] = bytes[..FIXED_BYTES].try_into().unwrap();
        assert_eq!(rest_of(&fixed, 4096), Some(bytes.len() - FIXED_BYTES));
        assert_eq!(rest_of(&fixed, 8), None);
        let message = Message::decode(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (CALL, "M"));
        assert_eq!(message.texts(), ["unit", "replace"]);
        for cut in 0..bytes.len() {
            assert!(Message::decode(&bytes[..cut]).is_none(), "{cut}");
        }
    }
}
