//! Reports as JSON text, which JavaScript parses: smaller and quicker than making objects one by one.
//!
//! Integers that a `number` does not hold exactly are objects of one key, `$int`, and so are the bits of table entries
//! (fields named `raw`, `raw_bitmap`), whatever their value; a text with such objects begins with `!`.

use std::fmt;

use serde::ser::{self, Serialize};

/// Field names whose values are bits of the file.
const BITS: [&str; 2] = ["raw", "raw_bitmap"];

/// Integers from here on are not all numbers of JavaScript.
pub(crate) const MAX_EXACT: u64 = 1 << 53;

/// The text of a report.
pub(crate) fn text(report: &impl Serialize) -> String {
    let mut writer = Writer { out: String::from("!"), bits: false, big: false };
    // Writing to a string cannot fail, and reports hold nothing that JSON has no form for.
    let _ = report.serialize(&mut writer);
    if !writer.big {
        writer.out.remove(0);
    }
    writer.out
}

struct Writer {
    out: String,
    /// The next integer is bits of the file.
    bits: bool,
    /// There are integers that are no numbers.
    big: bool,
}

impl Writer {
    #[inline(never)]
    fn unsigned(&mut self, value: u64) {
        let bits = std::mem::take(&mut self.bits);
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        let mut rest = value;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let digits = digits[at..].iter().map(|&digit| char::from(digit));
        if bits || value >= MAX_EXACT {
            self.big = true;
            self.out.push_str("{\"$int\":\"");
            self.out.extend(digits);
            self.out.push_str("\"}");
        } else {
            self.out.extend(digits);
        }
    }

    #[inline(never)]
    fn string(&mut self, value: &str) {
        // Bits are never texts.
        self.bits = false;
        self.out.push('"');
        for letter in value.chars() {
            match letter {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\0'..='\u{1f}' => {
                    let code = letter as u8;
                    self.out.push_str("\\u00");
                    for digit in [code >> 4, code & 15] {
                        self.out.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
                    }
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
    }

    // What is the same for all types stands apart from what there is one of for each.

    #[inline(never)]
    fn key(&mut self, key: &str) {
        self.comma(b'{');
        self.string(key);
        self.out.push(':');
        self.bits = BITS.contains(&key);
    }

    #[inline(never)]
    fn comma(&mut self, open: u8) {
        if self.out.as_bytes().last() != Some(&open) {
            self.out.push(',');
        }
    }

    #[inline(never)]
    fn literal(&mut self, text: &'static str) {
        self.out.push_str(text);
    }

    #[inline(always)]
    fn member<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Never> {
        self.key(key);
        value.serialize(&mut *self)
    }

    #[inline(always)]
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        self.comma(b'[');
        value.serialize(&mut *self)
    }

    fn variant(&mut self, name: &str, open: char) {
        self.out.push('{');
        self.string(name);
        self.out.push(':');
        self.out.push(open);
    }
}

/// The error that serde asks for. There is none, so that the compiler leaves out what would follow one after each field.
#[derive(Debug)]
pub(crate) enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
impl std::error::Error for Never {}
impl ser::Error for Never {
    fn custom<T: fmt::Display>(_: T) -> Self {
        unreachable!("no report refuses to be written")
    }
}

/// What closes a compound value.
pub(crate) struct Compound<'a> {
    writer: &'a mut Writer,
    close: &'static str,
}

impl<'a> ser::Serializer for &'a mut Writer {
    type Ok = ();
    type Error = Never;
    type SerializeSeq = Compound<'a>;
    type SerializeTuple = Compound<'a>;
    type SerializeTupleStruct = Compound<'a>;
    type SerializeTupleVariant = Compound<'a>;
    type SerializeMap = Compound<'a>;
    type SerializeStruct = Compound<'a>;
    type SerializeStructVariant = Compound<'a>;

    fn serialize_bool(self, value: bool) -> Result<(), Never> {
        self.literal(if value { "true" } else { "false" });
        Ok(())
    }
    fn serialize_i8(self, value: i8) -> Result<(), Never> {
        self.serialize_i64(value.into())
    }
    fn serialize_i16(self, value: i16) -> Result<(), Never> {
        self.serialize_i64(value.into())
    }
    fn serialize_i32(self, value: i32) -> Result<(), Never> {
        self.serialize_i64(value.into())
    }
    fn serialize_i64(self, value: i64) -> Result<(), Never> {
        if value < 0 {
            self.out.push('-');
        }
        self.unsigned(value.unsigned_abs());
        Ok(())
    }
    fn serialize_u8(self, value: u8) -> Result<(), Never> {
        self.serialize_u64(value.into())
    }
    fn serialize_u16(self, value: u16) -> Result<(), Never> {
        self.serialize_u64(value.into())
    }
    fn serialize_u32(self, value: u32) -> Result<(), Never> {
        self.serialize_u64(value.into())
    }
    fn serialize_u64(self, value: u64) -> Result<(), Never> {
        self.unsigned(value);
        Ok(())
    }
    fn serialize_f32(self, _: f32) -> Result<(), Never> {
        unreachable!("no report has fractions")
    }
    fn serialize_f64(self, _: f64) -> Result<(), Never> {
        unreachable!("no report has fractions")
    }
    fn serialize_char(self, value: char) -> Result<(), Never> {
        self.string(value.encode_utf8(&mut [0; 4]));
        Ok(())
    }
    fn serialize_str(self, value: &str) -> Result<(), Never> {
        self.string(value);
        Ok(())
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Never> {
        value.serialize(self)
    }
    fn serialize_none(self) -> Result<(), Never> {
        self.serialize_unit()
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Never> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Never> {
        self.bits = false;
        self.literal("null");
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Never> {
        self.serialize_unit()
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Never> {
        self.string(variant);
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Never> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Never> {
        self.out.push('{');
        self.string(variant);
        self.out.push(':');
        value.serialize(&mut *self)?;
        self.out.push('}');
        Ok(())
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Compound<'a>, Never> {
        self.out.push('[');
        Ok(Compound { writer: self, close: "]" })
    }
    fn serialize_tuple(self, length: usize) -> Result<Compound<'a>, Never> {
        self.serialize_seq(Some(length))
    }
    fn serialize_tuple_struct(self, _: &'static str, length: usize) -> Result<Compound<'a>, Never> {
        self.serialize_seq(Some(length))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Never> {
        self.variant(variant, '[');
        Ok(Compound { writer: self, close: "]}" })
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'a>, Never> {
        self.out.push('{');
        Ok(Compound { writer: self, close: "}" })
    }
    fn serialize_struct(self, _: &'static str, length: usize) -> Result<Compound<'a>, Never> {
        self.serialize_map(Some(length))
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Never> {
        self.variant(variant, '{');
        Ok(Compound { writer: self, close: "}}" })
    }
}

macro_rules! items {
    ($($name:ident $method:ident),*) => {
        $(impl ser::$name for Compound<'_> {
            type Ok = ();
            type Error = Never;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
                self.writer.item(value)
            }
            fn end(self) -> Result<(), Never> {
                self.writer.literal(self.close);
                Ok(())
            }
        })*
    };
}
items!(SerializeSeq serialize_element, SerializeTuple serialize_element, SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field);

macro_rules! members {
    ($($name:ident),*) => {
        $(impl ser::$name for Compound<'_> {
            type Ok = ();
            type Error = Never;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Never> {
                self.writer.member(key, value)
            }
            fn end(self) -> Result<(), Never> {
                self.writer.literal(self.close);
                Ok(())
            }
        })*
    };
}
members!(SerializeStruct, SerializeStructVariant);

/// Maps come from flattened structures: their keys are texts.
impl ser::SerializeMap for Compound<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Never> {
        self.writer.comma(b'{');
        key.serialize(&mut *self.writer)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        self.writer.out.push(':');
        value.serialize(&mut *self.writer)
    }
    fn end(self) -> Result<(), Never> {
        self.writer.literal(self.close);
        Ok(())
    }
}
