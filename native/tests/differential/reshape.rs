//! The images of a trial in another shape: another size, another backing file, and what an overlay holds put into them.

use std::ops::ControlFlow;
use std::path::Path;

use qcowkit::commit::{CommitOptions, commit};
use qcowkit_core::image::{Content, Layer, NewBacking, OpenOptions, Preallocation, SnapshotSelector};

use crate::common::{
    assert_same, assert_same_map, check_clean, open, our_map, qemu_create, qemu_io, qemu_map, qemu_read, qemu_source,
    read_all, succeed,
};
use crate::operations::{Disk, Operation};
use crate::scenario::{Backing, Scenario};
use crate::{Trial, options};

/// Who does it: one image is QEMU's, one ours, of the third chance decides.
fn by_us(trial: &mut Trial) -> [bool; 3] {
    [false, true, trial.rng.one_in(2)]
}

/// `words` are the verb and its options; the format, or the key, comes from the image.
fn qemu_img(words: &[&str], path: &Path, last: &[&str]) {
    let (options, source) = qemu_source(path);
    let mut arguments: Vec<String> = words.iter().map(|&word| word.into()).collect();
    arguments.extend(options);
    arguments.push(source);
    arguments.extend(last.iter().map(|&word| word.into()));
    succeed("qemu-img", &arguments);
}

impl Trial {
    /// After all batches.
    pub(crate) fn reshape(&mut self) {
        self.resize();
        self.sound("resized");
        // An overlay would have to name the key of its backing file, which QEMU takes from a json: name alone.
        if self.scenario.create.encryption.is_none() {
            self.commit_overlay();
            self.sound("an overlay committed");
        }
        // QEMU 10.0.2 leaves the zeros of an image of version 2 without backing file unallocated, so that the new one shows.
        let loses = self.scenario.create.version < 3 && self.scenario.backing == Backing::None;
        if self.scenario.data_file != Some(true) && !loses {
            self.rebase();
            self.sound("rebased");
        }
    }

    /// Both read what they must, and QEMU finds no fault.
    fn sound(&mut self, when: &str) {
        for (who, subject) in [("qemu", &self.qemu), ("ours", &self.ours), ("turn", &self.turn)] {
            let what = format!("{when}, {who}");
            check_clean(&subject.path, &what);
            let mut image = open(&subject.path, options().read_only());
            assert_same(&read_all(&mut image), &subject.model, &format!("{what}, read by us"));
            assert_same(&qemu_read(&subject.path, None), &subject.model, &format!("{what}, read by QEMU"));
            assert_same_map(&our_map(&mut image), &qemu_map(&subject.path), false, &format!("{what}, our map of it"));
            for (name, model) in &subject.snapshots {
                if who == "ours" || !self.scenario.no_unref {
                    // QEMU reads a snapshot with the size that the disk has now.
                    let shown = qemu_read(&subject.path, Some(name));
                    let both = shown.len().min(model.len());
                    assert_same(&shown[..both], &model[..both], &format!("{what}, snapshot {name}"));
                    let options = options().of_snapshot(SnapshotSelector::Name(name.as_str().into()));
                    let view = read_all(&mut open(&subject.path, options.read_only()));
                    assert_same(&view, model, &format!("{what}, snapshot {name}, read by us"));
                }
            }
        }
    }

    /// Whether QEMU can let the image grow: not in version 2 beside snapshots, nor over a backing file.
    fn may_grow(scenario: &Scenario, snapshots: bool) -> bool {
        scenario.create.version > 2 || scenario.backing == Backing::None && !snapshots
    }

    fn resize(&mut self) {
        let old = self.qemu.model.len() as u64;
        let cluster = self.scenario.create.cluster_size;
        let snapshots = !self.qemu.snapshots.is_empty();
        if snapshots && self.scenario.create.version < 3 {
            return;
        }
        let grows = Self::may_grow(&self.scenario, snapshots) && self.rng.one_in(2);
        // QEMU shows what it cut off inside a cluster when the disk grows again; so it is cut at clusters.
        let size = match grows {
            true => old + (1 + self.rng.below(old.max(1024) / 512)) * 512,
            false => (1 + self.rng.below(old)).next_multiple_of(cluster).min(old),
        };
        let modes = [
            (Preallocation::Off, "off"),
            (Preallocation::Off, "off"),
            (Preallocation::Metadata, "metadata"),
            (Preallocation::Falloc, "falloc"),
            (Preallocation::Full, "full"),
        ];
        // What QEMU preallocates in an encrypted image reads as garbage.
        let plain = self.scenario.create.encryption.is_none();
        let (mode, word) = if grows && plain { self.rng.choose(&modes) } else { modes[0] };
        let by_us = by_us(self);
        let options = self.scenario.our_options(true);
        for (subject, by_us) in [&mut self.qemu, &mut self.ours, &mut self.turn].into_iter().zip(by_us) {
            if by_us {
                let mut image = open(&subject.path, options.clone());
                image.resize_with(size, mode).unwrap();
                image.close().unwrap();
            } else {
                let option = format!("--preallocation={word}");
                let words = ["resize", "-q", "--shrink", &option];
                qemu_img(&words, &subject.path, &[&size.to_string()]);
            }
            subject.model.resize(size as usize, 0);
        }
        self.disk.size = size;
    }

    fn commit_overlay(&mut self) {
        let old = self.qemu.model.len() as u64;
        let grows = Self::may_grow(&self.scenario, !self.qemu.snapshots.is_empty());
        let sizes = [old, (old / 2).next_multiple_of(512), old + 70_656];
        let size = self.rng.choose(&sizes[..if grows { 3 } else { 2 }]);
        let cluster = self.rng.choose(&[4096, 65_536]);
        // Not compressed: QEMU 10.0.2 corrupts its own image when it mixes that with discards (see `through_qemu`).
        let disk = Disk { size, cluster, no_discard: false, may_compress: false };
        let operations: Vec<Operation> = (0..12).map(|_| Operation::random(&mut self.rng, &disk)).collect();
        let wide = if cluster == 65_536 && self.rng.one_in(2) { ",extended_l2=on" } else { "" };
        let create = format!("cluster_size={cluster}{wide}");
        let by_us = by_us(self);
        let options = OpenOptions { writable_backing: Some(1), ..self.scenario.our_options(true) };
        for (subject, by_us) in [&mut self.qemu, &mut self.ours, &mut self.turn].into_iter().zip(by_us) {
            let overlay = subject.path.with_extension("overlay");
            let base = subject.path.file_name().unwrap().to_str().unwrap();
            qemu_create(&overlay, &["-o", &create, "-b", base, "-F", "qcow2"], size);
            let mut model = subject.model.clone();
            model.resize(size as usize, 0);
            let commands: Vec<String> = operations.iter().map(|one| one.command(&self.patterns)).collect();
            for (operation, done) in operations.iter().zip(qemu_io(&overlay, "", &commands)) {
                if done {
                    operation.apply_to_model(&mut model, &disk, &self.patterns);
                }
            }
            if by_us {
                let mut image = open(&overlay, options.clone());
                let go_on = &mut |_, _| ControlFlow::Continue(());
                commit(&mut image, 1, &CommitOptions::default(), go_on).unwrap();
                image.empty().unwrap();
                image.close().unwrap();
            } else {
                qemu_img(&["commit", "-q"], &overlay, &[]);
            }
            check_clean(&overlay, "the overlay that was committed");
            let mut image = open(&overlay, OpenOptions::default().read_only());
            assert_same(&read_all(&mut image), &model, "the overlay that was committed");
            let local = image.next_local_extent(0, size).unwrap();
            assert_eq!((local.length, local.content), (size, Content::Unallocated), "the overlay holds something");
            let kept = subject.model.get(size as usize..).unwrap_or_default().to_vec();
            subject.model = model;
            subject.model.extend(kept);
            drop(image);
            std::fs::remove_file(&overlay).unwrap();
        }
        self.disk.size = self.qemu.model.len() as u64;
    }

    fn rebase(&mut self) {
        let size = self.disk.size;
        let other = self.qemu.path.with_file_name("other.qcow2");
        // With a key, QEMU opens by a description, beside which no relative name means anything.
        let full = other.display().to_string();
        let shown = if self.scenario.create.encryption.is_some() { &full } else { "other.qcow2" };
        let name = if self.rng.one_in(3) { None } else { Some(shown) };
        let other_size = self.rng.choose(&[size / 2, size, size * 2]).next_multiple_of(512).max(512);
        qemu_create(&other, &["-o", "cluster_size=4k"], other_size);
        let disk = Disk { size: other_size, cluster: 4096, no_discard: false, may_compress: false };
        let commands: Vec<String> =
            (0..10).map(|_| Operation::random(&mut self.rng, &disk).command(&self.patterns)).collect();
        qemu_io(&other, "", &commands);
        // QEMU 10.0.2 fails an assertion when it compresses clusters of which subclusters are there.
        let compress = self.disk.may_compress && !self.scenario.create.extended_l2 && self.rng.one_in(3);
        let by_us = by_us(self);
        let options = self.scenario.our_options(true);
        for (subject, by_us) in [&mut self.qemu, &mut self.ours, &mut self.turn].into_iter().zip(by_us) {
            if by_us {
                let mut image = open(&subject.path, options.clone());
                let new = match name {
                    None => NewBacking::none(),
                    Some(name) => NewBacking {
                        name: name.into(),
                        format: Some("qcow2".into()),
                        layer: Some(Layer::from(open(&other, OpenOptions::default().read_only()))),
                        shared_depth: None,
                    },
                };
                image.rebase(new, compress, &mut |_, _| ControlFlow::Continue(())).unwrap();
                image.close().unwrap();
            } else {
                let mut words = vec!["rebase", "-q", "-b", name.unwrap_or("")];
                words.extend(name.iter().flat_map(|_| ["-F", "qcow2"]));
                words.extend(compress.then_some("-c"));
                qemu_img(&words, &subject.path, &[]);
            }
            // What snapshots leave to the backing file comes from the new one.
            subject.snapshots.clear();
        }
    }
}
