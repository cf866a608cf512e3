//! Sets of bits with a name each, as headers and directory entries hold them; unknown bits are kept.

/// Makes a set of bits of one integer type: constants, accessors, and the arithmetic of sets.
macro_rules! bit_set {
    ($(#[$doc:meta])* $name:ident($integer:ty), { $($(#[$bit_doc:meta])* $constant:ident, $accessor:ident = $bit:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[cfg_attr(feature = "serde", serde(transparent))]
        pub struct $name($integer);

        impl $name {
            $($(#[$bit_doc])* pub const $constant: Self = Self(1 << $bit);)*

            /// The bits as they stand in the file, unknown ones included.
            #[must_use]
            pub const fn from_bits(bits: $integer) -> Self {
                Self(bits)
            }

            /// The bits for the file.
            #[must_use]
            pub const fn bits(self) -> $integer {
                self.0
            }

            $($(#[$bit_doc])*
            #[must_use]
            pub const fn $accessor(self) -> bool {
                self.contains(Self::$constant)
            })*

            /// Whether all bits of `other` are set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The same with the bits of `other` set.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The same with the bits of `other` cleared.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The bits that the specification of this version does not name.
            #[must_use]
            pub const fn unknown(self) -> Self {
                Self(self.0 & !(0 $(| (1 << $bit))*))
            }

            /// Whether no bit is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }
    };
}

pub(super) use bit_set;
