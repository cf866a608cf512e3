//! Repair beside `qemu-img check -r all`, on every damage of `cases.rs` and on damage by chance: QEMU finds the result
//! clean, nothing that could be read is lost, and no cluster that QEMU brings back is missing.
//!
//! What an image should say is known: it was sound before it was damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use qcowkit_core::ErrorKind;
use qcowkit_core::image::{Found, Image, LayerFormat, OpenOptions, Opener, Reference, SnapshotSelector};
use qcowkit_core::operations::check::{Finding, FindingKind, Severity};
use qcowkit_core::operations::repair::{
    RepairAction, RepairFinding, RepairLevel, RepairOptions, RepairPlan, UndoLog, apply, plan,
};
use qcowkit_core::operations::{read_header, read_snapshots};
use qcowkit_core::storage::MemoryStorage;

use super::image::{BASES, Bases, Damaged};
use super::{cases, random};

/// Guest clusters by disk (`""` is the active one, others are snapshots by ID): their bytes, or `None` where a read
/// fails.
type Contents = BTreeMap<String, Vec<Option<Vec<u8>>>>;

struct DataFile<'a>(Option<&'a MemoryStorage>);

impl<'a> Opener<&'a MemoryStorage> for DataFile<'a> {
    fn open(&mut self, _: &Reference<'_>) -> qcowkit_core::Result<Found<&'a MemoryStorage>> {
        match self.0 {
            Some(storage) => Ok(Found { storage, format: LayerFormat::Raw, identity: None }),
            None => Err(ErrorKind::Denied("no data file".into()).into()),
        }
    }
}

/// Reads what can be read, cluster by cluster.
fn contents(storage: &MemoryStorage, data_file: Option<&MemoryStorage>) -> Contents {
    let mut all = BTreeMap::new();
    let Ok(area) = read_header(storage) else { return all };
    let ids = read_snapshots(&area.header, storage).unwrap_or_default();
    let ids = ids.iter().filter_map(|snapshot| snapshot.id.as_str().map(str::to_owned));
    for id in std::iter::once(String::new()).chain(ids) {
        let options = OpenOptions::default().read_only();
        let options = match id.as_str() {
            "" => options,
            id => options.of_snapshot(SnapshotSelector::Id(id.into())),
        };
        let Ok(mut image) = Image::open_with(storage, None, options, &mut DataFile(data_file)) else { continue };
        let size = image.geometry().cluster_size();
        // Of large disks, where the bases have data and some of what lies between.
        let clusters = image.virtual_size().div_ceil(size);
        let chosen = (0..clusters).filter(|&n| size * clusters <= 32 << 20 || n < 64 || n % 1024 == 0);
        let read = chosen.map(|cluster| {
            let start = cluster * size;
            let mut bytes = vec![0; size.min(image.virtual_size() - start) as usize];
            image.read_at(start, &mut bytes).ok().map(|()| bytes)
        });
        let read = read.collect();
        all.insert(id, read);
    }
    all
}

/// What one program made of a damaged image.
struct Result {
    /// Guest clusters that say what they said before the damage, by disk.
    right: BTreeMap<String, Vec<bool>>,
    /// `qemu-img check` found nothing wrong.
    clean: bool,
}

impl Result {
    fn of(contents: &Contents, truth: &Contents, clean: bool) -> Self {
        let right = truth.iter().map(|(disk, clusters)| {
            let got = contents.get(disk);
            let right = clusters.iter().enumerate().map(|(n, truth)| {
                let got = got.and_then(|clusters| clusters.get(n)).and_then(Option::as_ref);
                got.is_some() && got == truth.as_ref()
            });
            (disk.clone(), right.collect())
        });
        Self { right: right.collect(), clean }
    }

    fn count(&self) -> usize {
        self.right.values().flatten().filter(|right| **right).count()
    }

    /// A cluster that the other has right and this one not.
    fn lacks(&self, other: &Self) -> Option<String> {
        other.right.iter().find_map(|(disk, theirs)| {
            let ours = &self.right[disk];
            let lost = ours.iter().zip(theirs).position(|(ours, theirs)| *theirs && !ours)?;
            Some(format!("guest cluster {lost} of '{disk}'"))
        })
    }
}

/// One line of the table.
struct Row {
    before: usize,
    theirs: Option<Result>,
    ours: Option<Result>,
    total: usize,
    actions: Vec<RepairAction>,
}

fn qemu(arguments: &[&str], path: &Path) -> (i32, String) {
    let output = Command::new("qemu-img").args(arguments).arg(path).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The data file that a base has.
fn data_file(bases: &Bases, base: &str) -> Option<MemoryStorage> {
    let path = bases.path(&format!("{}.raw", base.replace(", ", "-")));
    std::fs::read(path).ok().map(|bytes| MemoryStorage::from_bytes(&bytes))
}

/// Repairs with both; what is wrong with our result goes to `wrong`.
fn compare(bases: &mut Bases, base: &str, damaged: &Damaged, wrong: &mut Vec<String>) -> Row {
    let sound = bases.image(base);
    let data = data_file(bases, base);
    let truth = contents(&MemoryStorage::from_bytes(&sound.bytes), data.as_ref());
    let total = truth.values().map(Vec::len).sum();
    let storage = MemoryStorage::from_bytes(&damaged.bytes);
    let readable = contents(&storage, data.as_ref());
    let before = Result::of(&readable, &truth, false);
    let theirs = repair_with_qemu(bases, damaged, &truth, data.as_ref());
    let planned = plan(&storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ());
    let mut row = Row { before: before.count(), theirs, ours: None, total, actions: Vec::new() };
    let planned = match planned {
        Ok(planned) => planned,
        Err(error) => {
            // What QEMU opens, we repair.
            if row.theirs.as_ref().is_some_and(|theirs| theirs.clean) {
                wrong.push(format!("refused: {error}"));
            }
            return row;
        }
    };
    row.actions = planned.findings.iter().map(|finding| finding.action).collect();
    row.actions.sort_unstable();
    row.actions.dedup();
    let log = UndoLog::of(&planned, &storage).unwrap();
    assert_eq!(storage.to_vec().unwrap(), damaged.bytes, "planning changed the image");
    apply(&planned, &storage, false).unwrap();
    let path = bases.path("ours.qcow2");
    std::fs::write(&path, storage.to_vec().unwrap()).unwrap();
    let (code, words) = qemu(&["check", "-q", "-f", "qcow2"], &path);
    let after = contents(&storage, data.as_ref());
    let ours = Result::of(&after, &truth, code == 0);
    // Damage can make an image claim a data file or a key that it never had.
    let claims = words.contains("data-file") || words.contains("encrypt");
    if !ours.clean && !claims {
        wrong.push(format!("not clean: {words} {}", told(&planned)));
    }
    // Nobody can say what belongs into a data file that never was: its snapshots are told, and stay.
    let unsaid =
        |finding: &Finding| finding.kind == FindingKind::SnapshotsWithDataFile || finding.severity == Severity::Warning;
    let understood = planned.after.is_clean() || claims && planned.after.findings.iter().all(unsaid);
    if !understood {
        wrong.push(format!("the plan promises {:?}", planned.after.findings));
    }
    if let Some(lost) = ours.lacks(&before) {
        wrong.push(format!("lost what could be read: {lost} {}", told(&planned)));
    }
    if let Some(lost) = row.theirs.as_ref().and_then(|theirs| ours.lacks(theirs)) {
        wrong.push(format!("QEMU has, we have not: {lost} {}", told(&planned)));
    }
    // A table that lies on another table maps nothing of the guest's.
    let on_tables = |f: &&RepairFinding| f.action == RepairAction::DropEntry && f.kind == FindingKind::Overlap;
    if planned.findings.iter().find(on_tables).is_none() {
        wrong.extend(changed_readable(&readable, &after).map(|what| format!("{what} {}", told(&planned))));
    }
    row.ours = Some(ours);
    let again = plan(&storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ()).unwrap();
    if !again.is_empty() {
        wrong.push(format!("a second repair finds work: {}", told(&again)));
    }
    // An offset in a data file that is not the guest's is read by QEMU, and stays; it is not written.
    if planned.after.warnings == 0 && !claims {
        wrong.extend(write_to(&storage, data.as_ref()));
    }
    // Writing changed it: the log is tried on a copy of what the repair left.
    let repaired = MemoryStorage::from_bytes(&std::fs::read(&path).unwrap());
    UndoLog::from_bytes(&log.to_bytes()).unwrap().restore(&repaired).unwrap();
    if repaired.to_vec().unwrap() != damaged.bytes {
        wrong.push("undone, the image is another".into());
    }
    row
}

fn told(plan: &RepairPlan) -> String {
    let told = plan.findings.iter().take(12).map(|finding| format!("{:?}: {finding}", finding.action));
    told.collect::<Vec<_>>().join("\n      ")
}

/// A cluster of the active disk that could be read and says something else now.
fn changed_readable(before: &Contents, after: &Contents) -> Option<String> {
    let (before, after) = (before.get("")?, after.get("")?);
    let changed = before.iter().zip(after).position(|(before, after)| before.is_some() && before != after)?;
    Some(format!("guest cluster {changed} could be read and says something else now"))
}

/// A repaired image can be written, and is sound afterwards.
fn write_to(storage: &MemoryStorage, data_file: Option<&MemoryStorage>) -> Option<String> {
    let written = || -> qcowkit_core::Result<()> {
        let mut image = Image::open_with(storage, None, OpenOptions::default(), &mut DataFile(data_file))?;
        let cluster = vec![1; image.geometry().cluster_size() as usize];
        // Whole clusters: what cannot be unpacked cannot be filled up.
        for at in (0..image.virtual_size()).step_by(cluster.len()).take(16) {
            let length = cluster.len().min((image.virtual_size() - at) as usize);
            image.write_at(at, &cluster[..length])?;
        }
        image.close()?;
        let report = qcowkit_core::operations::check(storage, &read_header(storage)?, &mut |_| ())?;
        // Of a table that was named twice, the other name has it alone now: its flag may be set, but need not.
        let flags = |finding: &Finding| finding.kind == FindingKind::CopiedFlag && finding.message.contains("is clear");
        if report.findings.iter().all(flags) {
            Ok(())
        } else {
            Err(ErrorKind::Corrupt(format!("{:?}", report.findings)).into())
        }
    };
    written().err().map(|error| format!("writing to it: {error}"))
}

fn repair_with_qemu(
    bases: &Bases,
    damaged: &Damaged,
    truth: &Contents,
    data_file: Option<&MemoryStorage>,
) -> Option<Result> {
    let path: PathBuf = bases.path("theirs.qcow2");
    std::fs::write(&path, &damaged.bytes).unwrap();
    let (code, _) = qemu(&["check", "-q", "-r", "all", "-f", "qcow2"], &path);
    // A file that QEMU made huge is not worth the memory.
    if std::fs::metadata(&path).unwrap().len() > 64 << 20 {
        return None;
    }
    let repaired = MemoryStorage::from_bytes(&std::fs::read(&path).unwrap());
    Some(Result::of(&contents(&repaired, data_file), truth, code == 0))
}

#[test]
fn every_damage_is_repaired_and_qemu_recovers_no_more() {
    let Some(mut bases) = Bases::new() else { return };
    let mut failures = Vec::new();
    let mut table = String::new();
    for (base, cases) in cases::ALL {
        for (name, damage) in *cases {
            let mut image = bases.image(base);
            damage(&mut image);
            let mut wrong = Vec::new();
            let row = compare(&mut bases, base, &image, &mut wrong);
            let words = |result: &Option<Result>| match result {
                None => "refused".to_owned(),
                Some(result) => format!("{}, {}", if result.clean { "clean" } else { "**not clean**" }, result.count()),
            };
            let actions: Vec<_> = row.actions.iter().map(|action| action.words()).collect();
            let (theirs, ours) = (words(&row.theirs), words(&row.ours));
            table += &format!(
                "| {base} | {name} | {} of {} | {theirs} | {ours} | {} |\n",
                row.before,
                row.total,
                actions.join("; ")
            );
            failures.extend(wrong.into_iter().map(|wrong| format!("{base}, {name}: {wrong}")));
        }
    }
    if let Some(path) = std::env::var_os("QCOWKIT_REPAIR_TABLE") {
        std::fs::write(path, &table).unwrap();
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// `QCOWKIT_CHECK_ROUNDS` makes it longer, `QCOWKIT_CHECK_SEED` makes it another, and what fails is kept in the folder
/// `QCOWKIT_CHECK_KEEP`.
#[test]
fn damage_by_chance_is_repaired() {
    let Some(mut bases) = Bases::new() else { return };
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = variable("QCOWKIT_CHECK_ROUNDS").unwrap_or(120);
    let seed = variable("QCOWKIT_CHECK_SEED").unwrap_or(2027);
    let mut chance = random::Chance::new(seed);
    let mut failures = Vec::new();
    for round in 0..rounds {
        let base = chance.pick(&BASES.map(|base| base.name));
        let mut image = bases.image(base);
        for _ in 0..chance.pick(&[1, 1, 1, 2, 3, 5]) {
            random::damage(&mut image, &mut chance);
        }
        let mut wrong = Vec::new();
        compare(&mut bases, base, &image, &mut wrong);
        if let Some(folder) = std::env::var_os("QCOWKIT_CHECK_KEEP").filter(|_| !wrong.is_empty()) {
            std::fs::write(Path::new(&folder).join(format!("{seed}-{round}.qcow2")), &image.bytes).unwrap();
        }
        failures.extend(wrong.into_iter().map(|wrong| format!("seed {seed}, round {round}, {base}: {wrong}")));
    }
    assert!(failures.is_empty(), "{} failures in {rounds} rounds:\n{}", failures.len(), failures.join("\n"));
}
