//! Working-set files: what is recorded is what is read, in the bytes of yesterday's version, too.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;

use proptest::prelude::*;
use vhive_api::Digest;
use vhive_pager::working_set::{self, CreateError, WorkingSet, WorkingSetError};
use vhive_pager::{FaultTrace, pages};

const PAGE: usize = 4096;

/// A file whose page `n` is zero where `n` is a multiple of 5, else full of `n`.
fn memory(directory: &Path, pages: u8) -> File {
    let path = directory.join("memory");
    let content = |page: u8| if page.is_multiple_of(5) { 0 } else { page };
    let bytes: Vec<u8> = (0..pages).flat_map(|page| vec![content(page); PAGE]).collect();
    std::fs::write(&path, bytes).expect("written");
    File::open(path).expect("opened")
}

fn trace(bound: u32, pages: &[u32]) -> FaultTrace {
    let mut trace = FaultTrace::below(bound);
    for page in pages {
        trace.record(*page);
    }
    trace
}

#[test]
fn the_golden_file_of_version_1_is_read_and_still_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = memory(directory.path(), 40);
    let bytes = working_set::create(
        &trace(40, &[12, 3, 11, 10, 39, 14, 0, 1, 5, 20]),
        &memory,
        Digest::of(b"golden"),
    )
    .expect("created");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/working-set-v1");
    if std::env::var_os("VHIVE_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &bytes).expect("written");
    }
    assert!(std::fs::read(&golden).expect("there") == bytes, "the same bytes as ever");
    let set = WorkingSet::open(&golden).expect("read");
    set.verify(&File::open(&golden).expect("opened")).expect("whole");
    assert_eq!(set.memory, Digest::of(b"golden"));
    let extents: Vec<(u32, u32, bool)> =
        set.extents.iter().map(|e| (e.run.first, e.run.pages, e.is_zero)).collect();
    // 11, 12 and 14 are one run in spite of 13; 1 and 3 in spite of 2; 10, 0, 5 and 20 are zero.
    let expected = [
        (11, 4, false),
        (1, 3, false),
        (10, 1, true),
        (39, 1, false),
        (0, 1, true),
        (5, 1, true),
        (20, 1, true),
    ];
    assert_eq!(extents, expected);
}

#[test]
fn any_byte_that_matters_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/working-set-v1");
    let good = std::fs::read(golden).expect("there");
    let copy = directory.path().join("copy");
    let tables_end = 128 + 8 * 7 + 8;
    for at in (0..88).chain(128..tables_end).chain((PAGE..good.len()).step_by(97)) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&copy, &bad).expect("written");
        let file = File::open(&copy).expect("opened");
        let outcome = WorkingSet::open(&copy).and_then(|set| set.verify(&file));
        assert!(outcome.is_err(), "byte {at}");
    }
    for length in [0, 1, 127, 128, PAGE, good.len() - 1] {
        std::fs::write(&copy, &good[..length]).expect("written");
        let error = WorkingSet::open(&copy).expect_err("cut");
        let is_named = matches!(error, WorkingSetError::Length { .. } | WorkingSetError::Magic);
        assert!(is_named, "{length}: {error}");
    }
}

#[test]
fn recorders_at_the_same_time_get_different_numbers_and_the_newest_valid_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = memory(directory.path(), 40);
    let digest = Digest::of(b"this");
    let bytes = |pages: &[u32], digest| {
        working_set::create(&trace(40, pages), &memory, digest).expect("created")
    };
    assert!(working_set::newest_valid(directory.path(), digest).expect("listed").is_none());
    let ours = bytes(&[1, 2], digest);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| working_set::publish(directory.path(), &ours).expect("published"));
        }
    });
    let names = || -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory.path()).expect("listed");
        let names = entries.map(|entry| entry.expect("read").file_name().into_string());
        names.map(|name| name.expect("UTF-8")).filter(|name| name != "memory").collect()
    };
    let expected: BTreeSet<String> = (1..=8).map(|n| format!("working-set.{n}")).collect();
    assert_eq!(names(), expected, "eight, and no draft");
    working_set::publish(directory.path(), &bytes(&[7], Digest::of(b"other"))).expect("published");
    std::fs::write(directory.path().join("working-set.10"), b"VHIVEWS\n").expect("written");
    std::fs::write(directory.path().join("working-set.11.draft-7"), &ours).expect("written");
    let (path, set) =
        working_set::newest_valid(directory.path(), digest).expect("listed").expect("one");
    assert_eq!(path, directory.path().join("working-set.8"));
    assert_eq!(set.trace().pages(), [1, 2]);
    let next = working_set::publish(directory.path(), &ours).expect("published");
    assert_eq!(next, directory.path().join("working-set.11"));
}

#[test]
fn a_memory_of_another_size_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = memory(directory.path(), 40);
    let refused = working_set::create(&trace(41, &[1]), &memory, Digest::of(b"m"));
    assert!(matches!(refused, Err(CreateError::OtherSize { trace: 41, memory: 40 })));
}

#[test]
fn an_empty_trace_makes_an_empty_working_set() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = memory(directory.path(), 40);
    let bytes = working_set::create(&trace(40, &[]), &memory, Digest::of(b"m")).expect("created");
    let path = working_set::publish(directory.path(), &bytes).expect("published");
    assert_eq!(WorkingSet::open(&path).expect("read").pages(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn trace_to_extents_to_trace(order in proptest::collection::vec(0u32..200, 0..150)) {
        let directory = tempfile::tempdir().expect("a directory");
        let memory = memory(directory.path(), 200);
        let trace = trace(200, &order);
        let bytes = working_set::create(&trace, &memory, Digest::of(b"m")).expect("created");
        let path = working_set::publish(directory.path(), &bytes).expect("published");
        let set = WorkingSet::open(&path).expect("read");
        let file = File::open(&path).expect("opened");
        set.verify(&file).expect("whole");
        // Every traced page is there, and no page that is not within two of a traced one.
        let held = set.trace();
        prop_assert!(order.iter().all(|page| held.holds(*page)));
        for page in held.pages() {
            prop_assert!(order.iter().any(|traced| traced.abs_diff(*page) <= 2));
        }
        // Runs come in the order of their first touches.
        let first = |run: pages::Run| trace.pages().iter().position(|page| run.iter().any(|p| p == *page));
        let firsts: Vec<_> = set.extents.iter().map(|extent| first(extent.run)).collect();
        prop_assert!(firsts.is_sorted() && firsts.iter().all(Option::is_some));
        // The data is the memory's.
        let mut at = bytes.len() - usize::try_from(set.data_bytes()).expect("small");
        for extent in &set.extents {
            let mut content = vec![0; extent.run.bytes()];
            memory.read_exact_at(&mut content, extent.run.offset()).expect("there");
            if extent.is_zero {
                prop_assert!(pages::all_zero(&content));
            } else {
                prop_assert!(bytes[at..at + content.len()] == content);
                at += content.len();
            }
        }
        prop_assert_eq!(at, bytes.len());
    }
}
