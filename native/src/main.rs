//! The program `qcowkit`.
fn main() {}
