//! What one entry of the table of keys makes.
//!
//! `keys!` turns a section of `keys` into the struct that its part of the file is read
//! into, with ranges checked and unknown keys refused, and into the [`Key`]s that the complete file
//! and the tables of `config/KEYS.md` are written from.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::value::Value;

/// What is written about a key.
pub(crate) struct Key {
    /// Its name, after those of its tables: `http.drain`.
    pub(crate) path: String,
    /// What it means.
    pub(crate) text: &'static str,
    /// Its unit, or the kind of its value.
    pub(crate) unit: String,
    /// What holds without it.
    pub(crate) default: String,
    /// What is accepted.
    pub(crate) range: String,
    /// Its part of the complete file.
    pub(crate) lines: String,
}

/// What the entry says of itself.
pub(crate) struct Entry<B> {
    pub(crate) path: (&'static str, &'static str),
    pub(crate) text: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) default: &'static str,
    pub(crate) range: &'static str,
    pub(crate) bounds: Option<(B, B)>,
    pub(crate) note: &'static str,
    pub(crate) file: Option<&'static str>,
}

impl<B> Entry<B> {
    pub(crate) fn key<V: Value<Bound = B>>(self, default: &V::Out) -> Key {
        let or = |told: &str, own: String| if told.is_empty() { own } else { told.to_owned() };
        let (prefix, name) = self.path;
        let (toml, words) = (V::toml(default), V::words());
        let line = format!("{name} = {toml}");
        let line = match self.note {
            "" => format!("{line}\n"),
            note if line.len() < 40 => format!("{line:<39} # {note}\n"),
            note => format!("{line}   # {note}\n"),
        };
        let lines = match self.file {
            Some(file) => {
                let fill = |text: &str| if text == "{}\n" { line.clone() } else { text.replace("{}", &toml) };
                file.split_inclusive('\n').map(fill).collect()
            }
            None if toml.is_empty() => String::new(),
            None => line,
        };
        let shown = match toml.trim_matches('"') {
            // What is a number says so; what is a word is set as one.
            plain if plain.starts_with(|c: char| c.is_ascii_digit()) => plain.to_owned(),
            "" => String::new(),
            word => format!("`{word}`"),
        };
        let bounds = self.bounds.map(|(least, most)| format!("{} to {}", V::show(least), V::show(most)));
        let range = bounds
            .unwrap_or_else(|| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "));
        let range = match self.range.strip_prefix("{}") {
            Some(more) => grouped(&range) + more,
            None => or(self.range, grouped(&range)),
        };
        Key {
            path: format!("{prefix}{name}"),
            text: self.text.trim(),
            unit: or(self.unit, V::unit()),
            default: or(self.default, shown),
            range,
            lines,
        }
    }
}

/// Numbers of five digits and more, in groups of three.
fn grouped(text: &str) -> String {
    let group = |word: &str| {
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        let mut word = word.to_owned();
        for at in (1..digits).rev().filter(|at| digits > 4 && (digits - at) % 3 == 0) {
            word.insert(at, ',');
        }
        word
    };
    text.split(' ').map(group).collect::<Vec<_>>().join(" ")
}

/// A table of the file whose keys are known.
pub(crate) trait Section: Default {
    /// The keys.
    const NAMES: &'static [&'static str];
    /// What serde calls it in an error.
    const EXPECTED: &'static str;
    /// Reads the value of one of [`Section::NAMES`].
    fn put<'de, M: MapAccess<'de>>(&mut self, name: &'static str, map: &mut M) -> Result<(), M::Error>;
    /// What is written about each key.
    fn keys() -> Vec<Key>;
}

/// Reads a section from a table alone: a list is not taken for its values in their order.
pub(crate) fn read<'de, S: Section, D: Deserializer<'de>>(from: D) -> Result<S, D::Error> {
    struct Keys<S>(PhantomData<S>);
    impl<'de, S: Section> Visitor<'de> for Keys<S> {
        type Value = S;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(S::EXPECTED)
        }
        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<S, M::Error> {
            let mut section = S::default();
            while let Some(name) = map.next_key_seed(OneOf(S::NAMES))? {
                section.put(name, &mut map)?;
            }
            Ok(section)
        }
    }
    from.deserialize_map(Keys::<S>(PhantomData))
}

struct OneOf(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for OneOf {
    type Value = &'static str;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<&'static str, D::Error> {
        from.deserialize_identifier(self)
    }
}

impl Visitor<'_> for OneOf {
    type Value = &'static str;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: de::Error>(self, name: &str) -> Result<&'static str, E> {
        let known = self.0.iter().find(|known| **known == name);
        known.copied().ok_or_else(|| E::unknown_field(name, self.0))
    }
}

/// A field's name as a key: `r#for` is `for`.
pub(crate) const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Sections of keys. An entry is
/// `name: Kind = default, within(least, most), unit "..", default "..", range "..", note "..", file ".."`,
/// and all but the first two may be left out: `unit`, `default` and `range` say in words what kind,
/// value and bounds do not; `note` stands behind the line in the complete file, and `file` in
/// place of the line, with `{}` for it where that stands alone, and else for the default.
macro_rules! keys {
    ($(
        $(#[$meta:meta])*
        $section:ident at $prefix:literal {$(
            $(#[doc = $text:literal])+
            $name:ident: $value:ty
                $(= $default:expr)?
                $(, within($least:expr, $most:expr))?
                $(, unit $unit:literal)?
                $(, default $told:literal)?
                $(, range $range:literal)?
                $(, note $note:literal)?
                $(, file $file:literal)?;
        )*}
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Debug)]
        pub struct $section {$(
            $(#[doc = $text])+
            pub $name: <$value as Value>::Out,
        )*}

        impl Default for $section {
            fn default() -> Self {
                $section { $($name: keys!(@or (Default::default()) $(($default))?),)* }
            }
        }

        impl Section for $section {
            const NAMES: &'static [&'static str] = &[$(plain(stringify!($name))),*];
            const EXPECTED: &'static str = concat!("struct ", stringify!($section));
            fn put<'de, M: MapAccess<'de>>(&mut self, name: &'static str, map: &mut M) -> Result<(), M::Error> {
                $(if name == plain(stringify!($name)) {
                    self.$name = map.next_value_seed(ReadWithin::<$value> {
                        bounds: keys!(@or (None) $((Some(($least, $most))))?),
                        range: concat!("", $($range)?),
                        default: || <$value as Value>::toml(&Self::default().$name),
                    })?;
                })*
                Ok(())
            }
            fn keys() -> Vec<Key> {
                let shipped = Self::default();
                vec![$(Entry {
                    path: ($prefix, plain(stringify!($name))),
                    text: concat!($($text),+),
                    unit: concat!("", $($unit)?),
                    default: concat!("", $($told)?),
                    range: concat!("", $($range)?),
                    bounds: keys!(@or (None) $((Some(($least, $most))))?),
                    note: concat!("", $($note)?),
                    file: keys!(@or (None) $((Some($file)))?),
                }.key::<$value>(&shipped.$name)),*]
            }
        }

        impl Value for $section {
            type Out = Self;
            type Bound = ();
            fn unit() -> String {
                "table".into()
            }
            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                table::read(from)
            }
            fn toml(_: &Self) -> String {
                String::new()
            }
        }
    )*};
    (@or ($without:expr)) => { $without };
    (@or ($without:expr) ($given:expr)) => { $given };
}
pub(crate) use keys;
