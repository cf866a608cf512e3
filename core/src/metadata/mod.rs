//! Tables in memory, and the decisions about their entries.

pub mod decide;
