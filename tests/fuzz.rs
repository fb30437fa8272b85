//! Fuzz targets of `fuzz/` as deterministic tests: mutations of `fuzz/seeds`, always the same ones.
//!
//! A failure prints its seed; `OSC_TEST_SEED` runs that input again, in the target that is selected by the name of its
//! test. cargo-fuzz goes further with the same targets, see `docs/checks.md`.
#![allow(unsafe_code, reason = "a global allocator is unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

#[allow(unreachable_pub, reason = "the modules are those of a crate that exports them")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Mutations per target. Targets that are fast per input get a multiple.
const CASES_COUNT: u64 = 4000;
/// Maximum number of changes to an input.
const MUTATIONS_COUNT_MAX: usize = 6;
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// Maximum live memory for an input of `len` bytes: the targets themselves hold some twenty copies of it.
fn memory_bytes_max(len: usize) -> isize {
    (256 * 1024 + 96 * len).cast_signed()
}

struct Measuring;

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn live(change: isize) {
    // Threads that exit may free memory after their thread-local variables are destroyed.
    LIVE_BYTES
        .try_with(|live| {
            live.set(live.get() + change);
            PEAK_BYTES.try_with(|peak| peak.set(peak.get().max(live.get()))).ok();
        })
        .ok();
}

// SAFETY: every call is forwarded to the system allocator; counting does not touch the memory.
unsafe impl GlobalAlloc for Measuring {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        live(layout.size().cast_signed());
        // SAFETY: upheld by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        live(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: upheld by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        live(-layout.size().cast_signed());
        // SAFETY: upheld by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Measuring = Measuring;

/// A generator of pseudo-random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits fit") % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        // Mostly bytes that have a meaning in some grammar.
        const MEANINGFUL: &[u8] = b"\0\t\n\r \"#$%&'*+,-./0159:;<=>?@AEZ[\\]_aefuxz{|}~\x7F\x80\xC3\xED\xFF";
        match self.below(4) {
            0 => self.next().to_le_bytes()[0],
            _ => MEANINGFUL[self.below(MEANINGFUL.len())],
        }
    }

    /// A range of at most `len_max` bytes within `len`.
    fn range(&mut self, len: usize, len_max: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..start + self.below((len - start).min(len_max) + 1)
    }
}

/// Returns one of the inputs with random changes.
fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(MUTATIONS_COUNT_MAX + 1) {
        let other = &seeds[random.below(seeds.len())];
        match random.below(8) {
            0 if !input.is_empty() => {
                let at = random.below(input.len());
                input[at] ^= 1 << random.below(8);
            }
            1 if !input.is_empty() => {
                let at = random.below(input.len());
                input[at] = random.byte();
            }
            2 => input.insert(random.below(input.len() + 1), random.byte()),
            3 => drop(input.drain(random.range(input.len(), 16))),
            // Repeats a part elsewhere, perhaps many times.
            4 => {
                let part = input[random.range(input.len(), 64)].to_vec();
                let at = random.below(input.len() + 1);
                let count = if random.below(8) == 0 { random.below(200) } else { 1 };
                input.splice(at..at, part.repeat(count));
            }
            5 => {
                let part = other[random.range(other.len(), 256)].to_vec();
                let at = random.range(input.len(), 64);
                input.splice(at, part);
            }
            6 => input.truncate(random.below(input.len() + 1)),
            _ => {
                let from = random.below(other.len() + 1);
                input.truncate(random.below(input.len() + 1));
                input.extend_from_slice(&other[from..]);
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(&directory).expect("seeds").map(|entry| entry.expect("readable").path()).collect();
    // Sorted, so that a seed means the same on every machine.
    paths.sort();
    assert!(paths.len() >= 3, "{target}: {} seeds", paths.len());
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

/// Returns why a target fails for this input, if it does.
fn failure(run: fn(&[u8]), input: &[u8]) -> Option<String> {
    let before = LIVE_BYTES.get();
    PEAK_BYTES.set(before);
    if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(input))) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        return Some(text.unwrap_or("a panic without a message").to_owned());
    }
    let bytes = PEAK_BYTES.get() - before;
    (bytes > memory_bytes_max(input.len()))
        .then(|| format!("{bytes} bytes of memory for {} bytes", input.len()))
}

/// Runs a target on its seeds, and on mutations of them.
fn check(target: &str, run: fn(&[u8]), cases_count: u64) {
    let seeds = seeds(target);
    for (index, seed) in seeds.iter().enumerate() {
        let failure = failure(run, seed);
        assert_eq!(failure, None, "{target}: seed file {index}: \"{}\"", seed.escape_ascii());
    }
    let chosen = std::env::var("OSC_TEST_SEED").ok().map(|text| text.parse().expect("a number"));
    let cases = chosen.map_or(0..cases_count, |seed: u64| seed..seed + 1);
    for case in cases {
        let input = mutate(&seeds, &mut Random(case));
        if let Some(failure) = failure(run, &input) {
            panic!("{target}, OSC_TEST_SEED={case} reproduces it: \"{}\": {failure}", input.escape_ascii());
        }
    }
}

#[test]
fn requests() {
    check("requests", targets::requests::run, CASES_COUNT);
}

#[test]
fn chunked() {
    check("chunked", targets::chunked::run, CASES_COUNT);
}

#[test]
fn responses() {
    check("responses", targets::responses::run, CASES_COUNT);
}

#[test]
fn json() {
    check("json", targets::json::run, 4 * CASES_COUNT);
}

#[test]
fn fernet() {
    check("fernet", targets::fernet::run, CASES_COUNT);
}

#[test]
fn proxy_header() {
    check("proxy_header", targets::proxy_header::run, CASES_COUNT);
}

#[test]
fn dotenv() {
    check("dotenv", targets::dotenv::run, 2 * CASES_COUNT);
}

#[test]
fn replication() {
    check("replication", targets::replication::run, 4 * CASES_COUNT);
}

#[test]
fn federation() {
    check("federation", targets::federation::run, 4 * CASES_COUNT);
}
