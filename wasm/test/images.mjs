// Images made by QEMU, the reference for what the format means.

import { folder, run } from "./qcowkit.mjs";

// One image a feature; each is `disk.qcow2` in a folder of its own.
export const IMAGES = {
  empty: ["qemu-img create -f qcow2 disk.qcow2 64M"],
  plain: [
    "qemu-img create -f qcow2 disk.qcow2 64M",
    "qemu-io -c 'write -P 7 0 3M' -c 'write -z 8M 1M' -c 'write -P 5 40M 300k' -c 'discard 1M 64k' disk.qcow2",
  ],
  version_2: [
    "qemu-img create -f qcow2 -o compat=0.10 disk.qcow2 8M",
    "qemu-io -c 'write -P 3 1M 2M' -c 'discard 1M 128k' disk.qcow2",
  ],
  small_clusters: [
    "qemu-img create -f qcow2 -o cluster_size=512,refcount_bits=1 disk.qcow2 2M",
    "qemu-io -c 'write -P 1 0 100k' -c 'write -P 2 300k 5000' -c 'discard 4k 8k' disk.qcow2",
  ],
  wide_refcounts: [
    "qemu-img create -f qcow2 -o cluster_size=4k,refcount_bits=64 disk.qcow2 4M",
    "qemu-io -c 'write -P 1 0 1M' disk.qcow2",
  ],
  subclusters: [
    "qemu-img create -f qcow2 -o extended_l2=on,cluster_size=128k disk.qcow2 16M",
    "qemu-io -c 'write -P 1 0 4k' -c 'write -P 2 200k 900k' -c 'write -z 2M 64k' -c 'discard 256k 128k' disk.qcow2",
  ],
  zlib: [
    "qemu-img create -f qcow2 plain.qcow2 4M",
    "qemu-io -c 'write -P 9 0 1M' -c 'write -P 4 2M 1M' plain.qcow2",
    "qemu-img convert -c -O qcow2 plain.qcow2 disk.qcow2",
  ],
  zstd: [
    "qemu-img create -f qcow2 plain.qcow2 4M",
    "qemu-io -c 'write -P 9 0 1M' -c 'write -P 4 2M 1M' plain.qcow2",
    "qemu-img convert -c -O qcow2 -o compression_type=zstd plain.qcow2 disk.qcow2",
  ],
  snapshots: [
    "qemu-img create -f qcow2 disk.qcow2 16M",
    "qemu-io -c 'write -P 1 0 2M' disk.qcow2",
    "qemu-img snapshot -c before disk.qcow2",
    "qemu-io -c 'write -P 2 1M 2M' disk.qcow2",
    "qemu-img bitmap --add disk.qcow2 dirty",
    "qemu-io -c 'write -P 3 0 64k' -c 'discard 2M 64k' disk.qcow2",
  ],
  terabyte: [
    "qemu-img create -f qcow2 -o lazy_refcounts=on disk.qcow2 1T",
    "qemu-io -c 'write -P 1 512G 1M' disk.qcow2",
  ],
  names_a_data_file: ["qemu-img create -f qcow2 -o data_file=data.raw,data_file_raw=on disk.qcow2 1M"],
  names_a_backing_file: ["qemu-img create -f qcow2 -u -b gone.qcow2 -F qcow2 disk.qcow2 1M"],
  encrypted: [
    "qemu-img create -f qcow2 --object secret,id=s,data=abc " +
      "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1 disk.qcow2 1M",
    "qemu-io --object secret,id=s,data=abc --image-opts -c 'write -P 7 64k 100k' " +
      "driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=s",
  ],
  leaking: [
    "qemu-img create -f qcow2 disk.qcow2 8M",
    "qemu-io -c 'write -P 1 0 1M' disk.qcow2",
    // Ends as a crash would.
    "qemu-io -c 'write -P 1 4M 64k' -c abort disk.qcow2 2>/dev/null || true",
  ],
  // A refcount of 0 under data, and an entry that leads beyond the end of the file.
  corrupt: [
    "qemu-img create -f qcow2 disk.qcow2 8M",
    "qemu-io -c 'write -P 1 0 1M' disk.qcow2",
    "printf '\\000\\000' | dd of=disk.qcow2 bs=1 seek=$((0x20000 + 2*5)) conv=notrunc 2>/dev/null",
    "printf '\\200\\000\\000\\000\\100\\000\\000\\000' | dd of=disk.qcow2 bs=1 seek=$((0x40000 + 8*3)) conv=notrunc 2>/dev/null",
  ],
};

// Makes one of them; gives its folder.
export function made(t, name) {
  const cwd = folder(t);
  for (const line of IMAGES[name]) {
    run(cwd, line);
  }
  return cwd;
}

// The same bytes with some of them changed.
export function edited(bytes, offset, change) {
  const copy = bytes.slice();
  copy.set(change, offset);
  return copy;
}
