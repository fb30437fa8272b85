#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opensecureconf_fuzz::dotenv::run(data));
