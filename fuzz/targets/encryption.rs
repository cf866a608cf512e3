#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qcowkit_fuzz::encryption(data));
