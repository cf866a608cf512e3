//! What is done with whole images.
//!
//! | module | what it does |
//! |---|---|
//! | [`walk`](mod@walk) | visits every reference to a host range; the one walk that the others stand on |

pub mod walk;

pub use walk::{Walk, walk};

pub use crate::image::read_header;
