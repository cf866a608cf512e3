//! The module's memory: 4 GiB at most, which many images can fill. What does not fit is refused here, before an allocation
//! fails, which would be the end of the call without an answer.

use qcowkit_core::{Error, ErrorKind};

/// Bytes that are left for tables and reports whatever edits there are.
const RESERVE: u64 = 64 << 20;

/// An empty array with room for so many bytes.
///
/// # Errors
/// `no_space` where memory has no such room.
pub(crate) fn room(length: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    match usize::try_from(length).map(|length| bytes.try_reserve_exact(length)) {
        Ok(Ok(())) => Ok(bytes),
        _ => Err(Error::new(ErrorKind::NoSpace(format!("the module's memory has no room for {length} bytes")))),
    }
}

/// So many zeros.
///
/// # Errors
/// As [`room`].
pub(crate) fn zeros(length: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = room(length)?;
    bytes.resize(length as usize, 0);
    Ok(bytes)
}

/// Whether edits may take so many bytes more. Asked before they are taken, so it must be quick where there is plenty.
pub(crate) fn has_room(length: u64) -> bool {
    length.saturating_add(size()) <= PLENTY || room(length.saturating_add(RESERVE)).is_ok()
}

/// A size of the memory at which nothing needs to be tried.
const PLENTY: u64 = 3 << 30;

/// How large the memory is now, used or not.
#[cfg(target_arch = "wasm32")]
fn size() -> u64 {
    core::arch::wasm32::memory_size::<0>() as u64 * 65536
}

#[cfg(not(target_arch = "wasm32"))]
fn size() -> u64 {
    0
}
