//! Clusters that are allocated and hold nothing but zeros: found, shown as a plan, and discarded.
//!
//! `discard_zeroes [--yes] [IMAGE]` changes an image that is named only when `--yes` is there too.

use std::error::Error;
use std::path::{Path, PathBuf};

use qcowkit::disk::Disk;
use qcowkit::open::{OpenRequest, open};
use qcowkit_core::image::{Content, Image};
use qcowkit_core::storage::Storage;
use qcowkit_examples::SampleImage;

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, paths): (Vec<_>, Vec<_>) = std::env::args_os().skip(1).partition(|argument| argument == "--yes");
    let mut sample = None;
    let path = match paths.first() {
        Some(path) => PathBuf::from(path),
        None => sample.insert(SampleImage::new("discard-zeroes")?).path().to_path_buf(),
    };
    let plan = match open(&path, &OpenRequest::default())? {
        Disk::Qcow2(mut image) => zero_clusters(&mut image)?,
        Disk::Raw(_) => return Err("a raw image: fallocate --dig-holes does that".into()),
    };
    let bytes: u64 = plan.iter().map(|(_, length)| length).sum();
    println!("plan: discard {bytes} bytes of zeros in {} ranges", plan.len());
    for (offset, length) in &plan {
        println!("  {offset:#x}+{length:#x}");
    }
    if sample.is_some() || !flags.is_empty() {
        carry_out(&path, &plan)?;
    } else if !plan.is_empty() {
        println!("nothing was changed; say --yes to do it");
    }
    Ok(())
}

/// Ranges of whole clusters that this layer holds as data, all of them zero.
fn zero_clusters<S: Storage>(image: &mut Image<S>) -> Result<Vec<(u64, u64)>, qcowkit_core::Error> {
    let (size, cluster) = (image.virtual_size(), image.geometry().cluster_size());
    let mut plan: Vec<(u64, u64)> = Vec::new();
    let mut buffer = vec![0; image.geometry().cluster_len()];
    let mut at = 0;
    while at < size {
        let extent = image.next_local_extent(at, size - at)?;
        let end = (at + extent.length).next_multiple_of(cluster).min(size);
        if matches!(extent.content, Content::Data { .. } | Content::Compressed { .. }) {
            for start in (at / cluster * cluster..end).step_by(buffer.len()) {
                let length = cluster.min(size - start);
                let bytes = &mut buffer[..usize::try_from(length).unwrap_or(0)];
                image.read_at(start, bytes)?;
                if bytes.iter().any(|&byte| byte != 0) {
                    continue;
                }
                match plan.last_mut() {
                    Some((first, known)) if *first + *known == start => *known += length,
                    _ => plan.push((start, length)),
                }
            }
        }
        at = end;
    }
    Ok(plan)
}

fn carry_out(path: &Path, plan: &[(u64, u64)]) -> Result<(), Box<dyn Error>> {
    let mut request = OpenRequest::default();
    request.options.read_only = false;
    let Disk::Qcow2(mut image) = open(path, &request)? else {
        return Err("the image has changed meanwhile".into());
    };
    let before = image.storage().allocated_bytes()?;
    for &(offset, length) in plan {
        image.discard(offset, length)?;
    }
    let storage = image.close()?;
    println!("done: the file takes {} bytes of disk, {before} before", storage.allocated_bytes()?);
    Ok(())
}
