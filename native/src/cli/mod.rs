//! The command line. Verbs are thin: arguments become a checked plan, library calls do the work, output is printed.

pub mod io;
pub mod json;
pub mod options;
pub mod size;
