//! The largest free gaps of an image: where a write of many clusters could go without the file growing.
//!
//! `largest_gaps [IMAGE]`

use std::error::Error;
use std::path::PathBuf;

use qcowkit::disk::Disk;
use qcowkit::open::{OpenRequest, open};
use qcowkit_core::format::HostCluster;
use qcowkit_core::storage::ReadStorage;
use qcowkit_examples::SampleImage;

fn main() -> Result<(), Box<dyn Error>> {
    let mut sample = None;
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => sample.insert(SampleImage::new("largest-gaps")?).path().to_path_buf(),
    };
    // Refcounts are all in the image itself; its chain is not needed.
    let request = OpenRequest { alone: true, ..OpenRequest::default() };
    let Disk::Qcow2(mut image) = open(path, &request)? else {
        return Err("a raw image has no free clusters".into());
    };
    let geometry = *image.geometry();
    let clusters = geometry.clusters_for(image.storage().len()?);

    // Runs of clusters with refcount 0 that end before a cluster in use.
    let mut gaps: Vec<(u64, u64)> = Vec::new();
    let mut start = None;
    for cluster in 0..clusters {
        match (image.refcount(HostCluster::new(cluster))?, start) {
            (0, None) => start = Some(cluster),
            (1.., Some(first)) => {
                gaps.push((cluster - first, first));
                start = None;
            }
            _ => {}
        }
    }
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let free: u64 = gaps.iter().map(|(length, _)| length * geometry.cluster_size()).sum();
    println!("{} gaps, {free} bytes", gaps.len());
    for (length, first) in gaps.iter().take(10) {
        println!("{:>12} bytes at {:#x}", length * geometry.cluster_size(), first * geometry.cluster_size());
    }
    Ok(())
}
