//! Parts of messages whose fields have different names in the versions of the protocol.

use serde::Serialize;

use super::codec::{DecodeError, id_of};
use super::protocol::Protocol;
use crate::model::EntryId;

/// Field of a part.
pub(super) trait Field: Serialize {
    /// Returns whether the field is left out.
    fn is_absent(&self) -> bool {
        false
    }
}

impl Field for String {}
impl Field for i64 {}

impl<T: Serialize> Field for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

/// Defines a part of messages: each field with its name in version 1. From version 2 on, its Rust name is used.
///
/// A part is encoded in the version in its field `protocol`. Decoding accepts both names, since no part uses a name for
/// two fields; a field that is present under both names is a duplicate and refused.
macro_rules! part {
    ($(#[$attribute:meta])* $part:ident { $($(#[$documented:meta])* $field:ident $short:literal: $type:ty,)+ }) => {
        $(#[$attribute])*
        #[derive(serde::Deserialize)]
        pub(super) struct $part {
            #[serde(skip)]
            pub(super) protocol: $crate::wire::Protocol,
            $($(#[$documented])* #[serde(alias = $short)] pub(super) $field: $type,)+
        }

        impl serde::Serialize for $part {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct as _;
                let mut fields = serializer.serialize_struct(stringify!($part), [$($short),+].len())?;
                $(if !$crate::wire::part::Field::is_absent(&self.$field) {
                    let name = match self.protocol {
                        $crate::wire::Protocol::V1 => $short,
                        $crate::wire::Protocol::V2 => stringify!($field),
                    };
                    fields.serialize_field(name, &self.$field)?;
                })+
                fields.end()
            }
        }
    };
}

pub(super) use part;

part! {
    /// Name of an entry.
    NameText {
        key "k": String,
        environment "e": Option<String>,
    }
}

impl NameText {
    /// Returns the name of this entry, to be encoded in a version.
    pub(super) fn new(protocol: Protocol, id: &EntryId) -> Self {
        Self { protocol, key: id.key.clone(), environment: id.environment.clone() }
    }

    /// Validates the name.
    pub(super) fn into_id(self) -> Result<EntryId, DecodeError> {
        id_of(self.key, self.environment)
    }
}
