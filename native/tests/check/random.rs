//! Damage by chance, mostly where it hurts.

use crate::image::{COMPRESSED_FLAG, COPIED, Damaged};

/// Numbers by chance, the same for a seed everywhere (xorshift).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end.max(1)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One more thing wrong.
pub(crate) fn damage(image: &mut Damaged, chance: &mut Chance) {
    let cluster = image.cluster_size();
    let clusters = image.len().div_ceil(cluster);
    match chance.below(100) {
        0..35 => l2_entry(image, chance),
        35..47 => {
            let index = chance.below(image.l1_size().min(8));
            entry(image, image.l1(index), chance);
        }
        47..57 => {
            let index = chance.below(4);
            entry(image, image.refcount_table(index), chance);
        }
        57..80 => {
            let block = image.get64(image.refcount_table(0)) & !511;
            if block != 0 && block + cluster <= image.len() {
                let at = block + chance.below(cluster.min(clusters.max(2)));
                let old = image.bytes[at as usize];
                let value = [0, 1, 2, 3, chance.next() as u8, old ^ 1 << chance.below(8)];
                image.put8(at, chance.pick(&value));
            }
        }
        80..86 => snapshot(image, chance),
        86..92 => header(image, chance),
        92..95 => {
            let length = cluster * 2 + chance.below(image.len().saturating_sub(cluster).max(1));
            image.bytes.resize(length as usize, 0);
        }
        _ => {
            let at = chance.below(clusters) * cluster + chance.below(64);
            if at < image.len() {
                let old = image.bytes[at as usize];
                image.put8(at, old ^ 1 << chance.below(8));
            }
        }
    }
}

fn offset(image: &Damaged, chance: &mut Chance) -> u64 {
    let cluster = image.cluster_size();
    let clusters = image.len().div_ceil(cluster);
    match chance.below(12) {
        0..7 => chance.below(clusters + 2) * cluster,
        7 => chance.below(clusters + 2) * cluster + chance.below(cluster / 512) * 512,
        8 => (clusters + chance.below(100)) * cluster,
        9 => chance.below(1 << 47) * 512,
        10 => 0,
        _ => chance.pick(&[1 << 40, 1 << 55, (1 << 56) - cluster, image.len() & !511]),
    }
}

fn entry(image: &mut Damaged, at: u64, chance: &mut Chance) {
    if at + 8 > image.len() {
        return;
    }
    let old = image.get64(at);
    let cluster = image.cluster_size();
    let value = match chance.below(10) {
        0..2 => old ^ 1 << chance.below(64),
        2 => 0,
        3 => old ^ COPIED,
        4 => offset(image, chance),
        5..7 => offset(image, chance) | COPIED,
        7 => old & !0x00ff_ffff_ffff_ff00 | offset(image, chance) | chance.below(3),
        8 => COMPRESSED_FLAG | chance.below(image.len()) | chance.below(4) << (70 - image.cluster_bits),
        _ => {
            let any = chance.next();
            chance.pick(&[1, COPIED | 1, old.wrapping_add(cluster), old.wrapping_sub(cluster), any])
        }
    };
    image.put64(at, value);
}

fn l2_entry(image: &mut Damaged, chance: &mut Chance) {
    let size = image.l2_entry_size();
    let mut tables: Vec<u64> = (0..image.l1_size().min(64)).map(|index| image.get64(image.l1(index))).collect();
    if image.get32(60) > 0 {
        tables.push(image.get64(image.get64(image.snapshots())));
    }
    let tables: Vec<_> =
        tables.into_iter().map(|table| table & 0x00ff_ffff_ffff_fe00).filter(|&table| table != 0).collect();
    if tables.is_empty() {
        return;
    }
    let entries = image.cluster_size() / size;
    let most = if chance.below(5) == 0 { entries } else { entries.min(24) };
    let at = chance.pick(&tables) + size * chance.below(most);
    let bitmap = if size == 16 && chance.below(5) < 2 { 8 } else { 0 };
    entry(image, at + bitmap, chance);
}

fn snapshot(image: &mut Damaged, chance: &mut Chance) {
    let at = image.snapshots();
    if image.get32(60) == 0 || at + 48 > image.len() {
        return;
    }
    match chance.below(4) {
        0 => {
            let place = at + chance.below(48);
            let old = image.bytes[place as usize];
            image.put8(place, old ^ 1 << chance.below(8));
        }
        1 => {
            let value = offset(image, chance);
            image.put64(at, value);
        }
        2 => image.put32(at + 8, chance.pick(&[0, 1, 2, 3, 64, 1000])),
        _ => image.put32(at + 36, chance.pick(&[0, 8, 15, 16, 23, 24, 25])),
    }
}

fn header(image: &mut Damaged, chance: &mut Chance) {
    let at = chance.pick(&[8u64, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 80, 88, 96, 100]);
    if image.version() == 2 && at >= 72 {
        return;
    }
    match at {
        72 | 80 | 88 => {
            let bit = chance.below(6);
            image.change(at, |old| old ^ 1 << bit);
        }
        24 => {
            let old = image.get64(24);
            let sizes = [0, 1000, 512, 1 << 20, (1 << 20) + 1, 1 << 30, old.wrapping_sub(1), old.wrapping_add(100)];
            image.put64(24, chance.pick(&sizes));
        }
        8 | 40 | 48 | 64 => {
            let value = offset(image, chance);
            image.put64(at, value);
        }
        _ => {
            let old = image.get32(at);
            image.put32(at, chance.pick(&[0, 1, 2, 3, old.wrapping_add(1), old.wrapping_sub(1), 9, 16, 128]));
        }
    }
}
