//! The verbs, each thin: a checked plan, a call, output.

pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod info;
pub(crate) mod io;
pub(crate) mod map;
