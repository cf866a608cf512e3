//! Wrappers pass on what they do not change.

/// Writes methods of [`ReadStorage`](crate::storage::ReadStorage) or [`Storage`](crate::storage::Storage) that do what
/// the store below does: for a wrapper, inside its `impl`.
///
/// ```
/// use qcowkit_core::forward_storage;
/// use qcowkit_core::storage::{Capabilities, MemoryStorage, ReadStorage};
///
/// /// Says that it cannot become longer.
/// struct Fixed<S>(S);
///
/// impl<S: ReadStorage> ReadStorage for Fixed<S> {
///     forward_storage!(this => this.0; len, read_at, next_extent);
///
///     fn capabilities(&self) -> Capabilities {
///         Capabilities { grows: false, ..self.0.capabilities() }
///     }
/// }
///
/// assert_eq!(Fixed(MemoryStorage::with_len(512)).len()?, 512);
/// # Ok::<(), qcowkit_core::storage::StorageError>(())
/// ```
#[macro_export]
macro_rules! forward_storage {
    ($this:ident => $below:expr; $($method:ident),+ $(,)?) => {
        $($crate::forward_storage!(@$method $this => $below);)+
    };
    (@len $this:ident => $below:expr) => {
        fn len(&self) -> ::core::result::Result<u64, $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::ReadStorage::len(&$below)
        }
    };
    (@read_at $this:ident => $below:expr) => {
        fn read_at(
            &self,
            offset: u64,
            into: &mut [u8],
        ) -> ::core::result::Result<(), $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::ReadStorage::read_at(&$below, offset, into)
        }
    };
    (@capabilities $this:ident => $below:expr) => {
        fn capabilities(&self) -> $crate::storage::Capabilities {
            let $this = self;
            $crate::storage::ReadStorage::capabilities(&$below)
        }
    };
    (@next_extent $this:ident => $below:expr) => {
        fn next_extent(
            &self,
            offset: u64,
        ) -> ::core::result::Result<$crate::storage::StorageExtent, $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::ReadStorage::next_extent(&$below, offset)
        }
    };
    (@write_at $this:ident => $below:expr) => {
        fn write_at(&self, offset: u64, from: &[u8]) -> ::core::result::Result<(), $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::Storage::write_at(&$below, offset, from)
        }
    };
    (@write_zeroes $this:ident => $below:expr) => {
        fn write_zeroes(
            &self,
            offset: u64,
            length: u64,
            mode: $crate::storage::ZeroMode,
        ) -> ::core::result::Result<(), $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::Storage::write_zeroes(&$below, offset, length, mode)
        }
    };
    (@discard $this:ident => $below:expr) => {
        fn discard(&self, offset: u64, length: u64) -> ::core::result::Result<(), $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::Storage::discard(&$below, offset, length)
        }
    };
    (@set_len $this:ident => $below:expr) => {
        fn set_len(&self, length: u64) -> ::core::result::Result<(), $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::Storage::set_len(&$below, length)
        }
    };
    (@allocate $this:ident => $below:expr) => {
        fn allocate(&self, offset: u64, length: u64) -> ::core::result::Result<(), $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::Storage::allocate(&$below, offset, length)
        }
    };
    (@barrier $this:ident => $below:expr) => {
        fn barrier(&self) -> ::core::result::Result<(), $crate::storage::StorageError> {
            let $this = self;
            $crate::storage::Storage::barrier(&$below)
        }
    };
}

/// A pointer to a store is that store.
macro_rules! pointers {
    ($($pointer:ty),+) => {$(
        impl<T: super::ReadStorage + ?Sized> super::ReadStorage for $pointer {
            forward_storage!(this => **this; len, read_at, capabilities, next_extent);
        }
        impl<T: super::Storage + ?Sized> super::Storage for $pointer {
            forward_storage!(this => **this; write_at, write_zeroes, discard, set_len, allocate, barrier);
        }
    )+};
}
pointers!(&T, alloc::boxed::Box<T>, alloc::rc::Rc<T>, alloc::sync::Arc<T>);
