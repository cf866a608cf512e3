//! `cargo xtask bench`
use crate::run::Failure;
pub(crate) fn run(_: &[String]) -> Result<(), Failure> {
    Err(Failure::new("not yet"))
}
