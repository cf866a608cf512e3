//! What the numbers speak for.

use alloc::string::String;
use alloc::vec::Vec;

/// A recommendation, and the numbers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Advice {
    /// The name of the configuration that comes out best.
    pub best: String,
    /// Why, one sentence each.
    pub reasons: Vec<String>,
}
