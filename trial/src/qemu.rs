//! QEMU
