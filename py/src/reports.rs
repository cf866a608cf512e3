//! Reports and tables of images: each as the core makes it, handed over as the JSON that the command line prints.

mod again;
mod checks;
mod delta;
mod discard;
mod look;
mod tables;

use crate::convert::report;

pub(crate) use checks::RepairPlan;
pub(crate) use discard::ranges_of_table;
pub(crate) use look::{apply_repair, audit, check, measure, plan_repair, undo_repair};
