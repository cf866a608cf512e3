//! Images with an external data file: what the guest sees, and for raw files that the file shows the same, under every
//! policy. Power cuts are in `power_cuts.rs`.

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{MemoryStorage, ReadStorage};
use qcowkit_trial::Rng;
use qcowkit_trial::data_files::{SIZE, bytes_of, contents, open, scenario, step};
use qcowkit_trial::files::{Log, Logged, Survives, cut_files};

#[test]
fn the_guest_and_a_raw_file_show_the_same_under_every_policy() {
    for seed in 0..72 {
        let scenario = scenario(seed);
        let mut rng = Rng::new(seed);
        let log = Log::default();
        let (disk, data) = (Logged::new(0, &[], &log), Logged::new(1, &[], &log));
        let (create, size) = (&scenario.create, SIZE as u64);
        let options = scenario.open.clone();
        let mut image = Image::create_with_data_file(disk.clone(), data.clone(), size, create, options).unwrap();
        let mut model = vec![0u8; SIZE];
        for n in 0..60 {
            step(&mut image, &mut model, &mut rng, n % 100 + 1, create.cluster_size as usize);
            assert!(contents(&mut image) == model, "seed {seed}, step {n}: {scenario:?}");
            if scenario.raw {
                assert!(bytes_of(&data, SIZE) == model, "seed {seed}, step {n}: the raw file: {scenario:?}");
            }
            if rng.one_in(8) {
                image.close().unwrap();
                image = open(disk.clone(), data.clone(), &scenario.open);
            }
        }
        // Larger and smaller.
        image.resize(size * 2).unwrap();
        model.resize(SIZE * 2, 0);
        assert!(contents(&mut image) == model, "seed {seed}: larger");
        image.write_at(size, &[200; 5000]).unwrap();
        model[SIZE..SIZE + 5000].fill(200);
        image.resize(size / 2 / 512 * 512).unwrap();
        image.resize(size).unwrap();
        let kept = SIZE / 2 / 512 * 512;
        model.truncate(kept);
        model.resize(SIZE, 0);
        assert!(contents(&mut image) == model, "seed {seed}: smaller and larger");
        if scenario.raw {
            assert!(bytes_of(&data, SIZE) == model, "seed {seed}: the raw file after resizing");
        }
        image.close().unwrap();
        assert_eq!(data.len().unwrap(), size, "seed {seed}");
        let report = check(&disk, &HeaderArea::parse(&disk.bytes()).unwrap(), &mut |_| ()).unwrap();
        assert_eq!(report.corruptions + report.leaks + report.check_errors, 0, "seed {seed}: {report:?}");
    }
}

/// A cut while the size changes leaves the old disk or the new one, and a raw file that shows the same.
#[test]
fn a_cut_while_a_raw_disk_is_resized() {
    let mut states = 0;
    for seed in (0..24).step_by(2) {
        let scenario = scenario(seed);
        let log = Log::default();
        let (disk, data) = (Logged::new(0, &[], &log), Logged::new(1, &[], &log));
        let (create, open_options) = (&scenario.create, scenario.open.clone());
        let image = Image::create_with_data_file(disk.clone(), data.clone(), SIZE as u64, create, open_options);
        let mut image = image.unwrap();
        image.write_at(700, &vec![5; SIZE - 9000]).unwrap();
        image.write_zeroes(40_000, 9000, true).unwrap();
        image.close().unwrap();
        let before = contents(&mut open(disk.clone(), data.clone(), &scenario.open));
        for size in [SIZE / 3 / 512 * 512, SIZE * 2] {
            let files = vec![disk.bytes(), data.bytes()];
            let (a, b) = (Logged::new(0, &files[0], &log), Logged::new(1, &files[1], &log));
            let mut image = open(a, b, &scenario.open);
            log.borrow_mut().clear();
            image.resize(size as u64).unwrap();
            let events = log.borrow().clone();
            let mut rng = Rng::new(seed);
            for end in 0..=events.len() {
                for survives in Survives::EACH {
                    let cut = cut_files(&files, &events[..end], survives, &mut rng);
                    let what = format!("seed {seed}, to {size}, {end} of {} events, {survives:?}", events.len());
                    let view = bytes_of(&cut[1], SIZE * 2);
                    let area = HeaderArea::parse(&cut[0].to_vec().unwrap()).unwrap();
                    let report = check(&cut[0], &area, &mut |_| ()).unwrap();
                    assert_eq!(report.corruptions + report.check_errors, 0, "{what}: {report:?}");
                    let got = contents(&mut open(&cut[0], &cut[1], &scenario.open));
                    assert!([SIZE, size].contains(&got.len()), "{what}");
                    let shown = before.iter().copied().chain(std::iter::repeat(0));
                    assert!(got.iter().copied().eq(shown.take(got.len())), "{what}: the disk");
                    assert!(got == view[..got.len()], "{what}: the raw file");
                    states += 1;
                }
            }
        }
    }
    assert!(states > 500, "{states}");
}

#[test]
fn what_a_data_file_cannot_do_is_refused() {
    let create = CreateOptions { data_file: Some("data".into()), ..CreateOptions::default() };
    assert!(Image::create(MemoryStorage::new(), 1 << 20, &create).is_err());
    let plain = CreateOptions::default();
    let both = (MemoryStorage::new(), MemoryStorage::new());
    assert!(Image::create_with_data_file(both.0, both.1, 1 << 20, &plain, OpenOptions::default()).is_err());
    for (wrong, words) in [
        (CreateOptions { version: 2, ..create.clone() }, "external data files need compat=1.1"),
        (CreateOptions { data_file: None, data_file_raw: true, ..create.clone() }, "data-file-raw requires data-file"),
        (
            CreateOptions { data_file_raw: true, backing_file: Some("base".into()), ..create.clone() },
            "Backing file and data-file-raw",
        ),
    ] {
        let error = wrong.validate(1 << 20).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let (disk, data) = (MemoryStorage::new(), MemoryStorage::new());
    let mut image = Image::create_with_data_file(&disk, &data, 1 << 20, &create, OpenOptions::default()).unwrap();
    let error = image.write_compressed(0, &[1; 65536]).unwrap_err();
    assert!(error.to_string().contains("data file"), "{error}");
    image.close().unwrap();
    // Nothing that an image names is opened by itself.
    assert!(Image::open(&disk, OpenOptions::default()).is_err());
    // A device that is too small.
    let small = MemoryStorage::block_device(1 << 19);
    let made = Image::create_with_data_file(MemoryStorage::new(), small, 1 << 20, &create, OpenOptions::default());
    assert!(made.is_err());
}
