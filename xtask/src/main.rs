//! Every routine in one place.
fn main() {}
