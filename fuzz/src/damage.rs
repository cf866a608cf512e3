//! Sound images with a few things wrong in the places that matter: a fuzzer that knows nothing of tables takes long to
//! hit two of them at once.

use std::sync::OnceLock;

use super::bytes::Bytes;
use super::image;

const COPIED: u64 = 1 << 63;
/// The bits of an offset in a table entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Fields of the header: offset and bytes.
const FIELDS: [(u64, u64); 20] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 4),
    (108, 4),
    (112, 8),
];

/// One of the sound images, with some damage.
pub(crate) fn damaged(choices: &mut Bytes<'_>) -> Vec<u8> {
    static SOUND: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let sound = SOUND.get_or_init(image::sound);
    let mut image = sound[choices.below(sound.len() as u64) as usize].clone();
    for _ in 0..=choices.below(6) {
        harm(&mut image, choices);
    }
    image
}

fn harm(image: &mut Vec<u8>, choices: &mut Bytes<'_>) {
    let cluster = 1u64 << (get(image, 20, 4) & 31).clamp(9, 21);
    let clusters = (image.len() as u64).div_ceil(cluster);
    let (l1, refcounts) = (get(image, 40, 8), get(image, 48, 8));
    let at = match choices.byte() % 12 {
        0..4 => {
            let table = get(image, l1.saturating_add(8 * choices.below(16)), 8) & OFFSET;
            table.saturating_add(8 * choices.below((cluster / 8).min(64)))
        }
        4 => l1.saturating_add(8 * choices.below(16)),
        5 | 6 => {
            let block = get(image, refcounts.saturating_add(8 * choices.below(4)), 8) & OFFSET;
            return put(image, block.saturating_add(choices.below(cluster.min(512))), 1, choices.below(256));
        }
        7 => refcounts.saturating_add(8 * choices.below(4)),
        8 => {
            let (at, width) = choices.choose(FIELDS);
            let value = new_value(get(image, at, width), width, cluster, clusters, choices);
            return put(image, at, width, value);
        }
        9 => {
            // The snapshot table, the header extensions, and whatever they lead to.
            let start = choices.choose([get(image, 64, 8), 104, get(image, 120, 8), get(image, 136, 8)]);
            return put(image, start.saturating_add(choices.below(160)), 1, choices.below(256));
        }
        10 => {
            let length = (clusters * cluster).saturating_sub(choices.below(4 * cluster)) + choices.below(2) * cluster;
            return image.resize(length as usize, 0);
        }
        _ => {
            // A cluster on another.
            let [from, to] = [choices.below(clusters), choices.below(clusters)].map(|n| (n * cluster) as usize);
            let length = (image.len() - from.max(to)).min(cluster as usize);
            return image.copy_within(from..from + length, to);
        }
    };
    let value = new_value(get(image, at, 8), 8, cluster, clusters, choices);
    put(image, at, 8, value);
}

/// What stands in a field of `width` bytes instead of `old`.
fn new_value(old: u64, width: u64, cluster: u64, clusters: u64, choices: &mut Bytes<'_>) -> u64 {
    match choices.byte() % 8 {
        0 => 0,
        1 | 2 => old ^ 1 << choices.below(width * 8),
        3 => choices.below(clusters + 3) * cluster,
        4 => (choices.below(clusters + 3) * cluster) | COPIED,
        5 => old.wrapping_add(choices.choose([1, u64::MAX, cluster, cluster.wrapping_neg(), 512])),
        6 => choices.below(u64::MAX),
        _ => choices.below(256),
    }
}

/// A big-endian field; 0 where the file has ended.
fn get(image: &[u8], at: u64, width: u64) -> u64 {
    let field = usize::try_from(at).ok().and_then(|at| image.get(at..at.checked_add(width as usize)?));
    field.map_or(0, |field| field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn put(image: &mut [u8], at: u64, width: u64, value: u64) {
    let field = usize::try_from(at).ok().and_then(|at| image.get_mut(at..at.checked_add(width as usize)?));
    if let Some(field) = field {
        field.copy_from_slice(&value.to_be_bytes()[8 - width as usize..]);
    }
}
