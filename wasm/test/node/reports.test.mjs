// What the package reports is what the command line prints, and what QEMU says.

import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import { FileSource, Image } from "qcowkit";
import { IMAGES, made } from "../images.mjs";
import { bytesOf, qcowkit, run } from "../qcowkit.mjs";

const OPEN = { tolerant: true, read_only: true };

// Every image, from its bytes and as a file that is read where it is.
function forms(cwd) {
  const path = join(cwd, "disk.qcow2");
  return [["bytes", bytesOf(path)], ["file", new FileSource(path)], ["uncached", Object.assign(new FileSource(path), { cached: false })]];
}

for (const name of Object.keys(IMAGES)) {
  test(`${name}: reports are those of the command line`, (t) => {
    const cwd = made(t, name);
    const said = JSON.parse(run(cwd, "qemu-img info --output=json disk.qcow2"));
    for (const key of ["children", "filename", "actual-size", "full-backing-filename"]) {
      delete said[key];
    }
    const check = qcowkit(cwd, "check --output=json disk.qcow2");
    const analysis = qcowkit(cwd, "analyze --no-extents --output=json disk.qcow2");
    const audit = qcowkit(cwd, "audit --deep --output=json disk.qcow2");
    const resolver = ({ role, name }) => (role === "data_file" ? { input: new FileSource(join(cwd, name)) } : undefined);
    for (const [form, input] of forms(cwd)) {
      const image = Image.open(input, { ...OPEN, resolver });
      assert.deepEqual(image.info(), said, form);
      checkAgrees(image.check(), check);
      assert.deepEqual(withoutHost(image.analyze()), withoutHost(analysis), form);
      assert.deepEqual(image.audit({ deep: true }), audit, form);
      input.close?.();
    }
  });

  test(`${name}: structures are those of the command line`, (t) => {
    const cwd = made(t, name);
    const all = qcowkit(cwd, "inspect --show=all --guest=0 --guest=1M --host=0x20000 --output=json disk.qcow2");
    const image = Image.open(bytesOf(cwd, "disk.qcow2"), OPEN);
    assert.deepEqual(image.inspect("header"), all.header);
    assert.deepEqual(image.inspect("l1"), all.l1[0]);
    assert.deepEqual(image.inspect("refcount-table"), all.refcount_table);
    assert.deepEqual(image.inspect("snapshots"), all.snapshots);
    assert.deepEqual(image.inspect("bitmaps"), all.bitmaps);
    assert.deepEqual([image.inspectGuest(0), image.inspectGuest(1 << 20)], all.guest.map(({ layers }) => layers));
    const host = image.inspectHost(0x20000);
    assert.deepEqual({ ...host.value, host: 0 }, { ...all.host[0].value, host: 0 });
    const block = qcowkit(cwd, "inspect --show=refcount-block:0 --show=l2:0 --output=json disk.qcow2");
    assert.deepEqual(image.inspect("refcount-block:0"), block.refcount_blocks[0]);
    assert.deepEqual(image.inspect("l2:0"), block.l2[0]);
    assert.equal(typeof image.inspect("header").value.fields[0].raw, "bigint");
    assert.equal(Object.getPrototypeOf(image.info()), Object.prototype);
  });

  test(`${name}: cluster runs cover the file and add up to the ledger`, (t) => {
    const cwd = made(t, name);
    const image = Image.open(bytesOf(cwd, "disk.qcow2"), OPEN);
    const rows = image.clusterRuns();
    const map = image.clusters();
    assert.equal(map.next, null);
    assert.equal(map.file_length, image.fileLength);
    let at = 0;
    for (const [index, row] of rows.entries()) {
      assert.equal(row.host_offset, at);
      at += row.length;
      assert.deepEqual(
        [map.host_offset[index], map.length[index], map.classes[map.class[index]], map.refcount[index], map.references[index]],
        [row.host_offset, row.length, row.class, row.refcount ?? -1, row.references],
      );
      assert.equal(map.guest_offset[index], row.guest_offset ?? -1);
      assert.equal(map.structures[map.structure[index]] ?? null, row.structure);
      assert.equal(map.owners[index], Number(row.active) + 2 * Number(row.in_snapshots));
    }
    assert.equal(at, image.fileLength);
    assert.equal(map.length.length, rows.length);
    const sum = (wanted) => rows.filter((row) => row.class === wanted).reduce((bytes, row) => bytes + row.length, 0);
    const { classes } = image.analyze().ledger;
    // The runs tell whole clusters: what lies within one is of the first class that applies.
    const whole = classes.filter((line) => !line.class.startsWith("compressed") &&
      !(name === "subclusters" && ["live_data", "zero_retained"].includes(line.class)));
    for (const line of whole) {
      assert.equal(sum(line.class), line.bytes, line.class);
    }
  });
}

// The members of `qemu-img check`, where 0 is left out, and those that are the command line's own.
function checkAgrees(report, printed) {
  for (const key of ["corruptions", "leaks", "check-errors", "image-end-offset", "total-clusters", "allocated-clusters",
    "fragmented-clusters", "compressed-clusters"]) {
    assert.equal(report[key.replaceAll("-", "_")], printed[key] ?? 0, key);
  }
  const { findings, findings_omitted, warnings, incomplete } = printed.qcowkit;
  assert.deepEqual(
    { findings: report.findings, findings_omitted: report.findings_omitted, warnings: report.warnings, incomplete: report.incomplete },
    { findings, findings_omitted, warnings, incomplete },
  );
}

// Which bytes are holes, and what giving them back returns, only a file system can tell.
function withoutHost(analysis) {
  const bytes = ({ bytes }) => bytes;
  const ledger = (found) => found && {
    ...found, held_outside_file: 0, total: bytes(found.total),
    classes: found.classes.map((line) => [line.class, line.bytes]),
  };
  const gains = Object.fromEntries(Object.entries(analysis.reclaim).map(([key, gain]) => [key, gain?.file_bytes]));
  return {
    ...analysis, ledger: ledger(analysis.ledger), data_file: null, reclaim: gains,
    layout: { ...analysis.layout, file: null, host: null },
  };
}

for (const name of ["plain", "version_2", "small_clusters", "subclusters", "zlib", "zstd", "snapshots", "terabyte"]) {
  test(`${name}: the map is QEMU's, and so are the bytes`, (t) => {
    const cwd = made(t, name);
    const map = JSON.parse(run(cwd, "qemu-img map --output=json disk.qcow2"));
    for (const [form, input] of forms(cwd)) {
      const image = Image.open(input, OPEN);
      assert.deepEqual(image.map(), map, form);
      assert.deepEqual(image.map({ offset: 1 << 20, length: 65536 }), qcowkit(cwd, "map --output=json -s 1M -l 64k disk.qcow2"));
      if (name !== "terabyte") {
        run(cwd, "qemu-img convert -O raw disk.qcow2 guest.raw");
        assert.deepEqual(image.read(0, image.virtualSize), bytesOf(cwd, "guest.raw"), form);
      }
      input.close?.();
    }
  });
}

test("snapshots and bitmaps are listed as the command line lists them", (t) => {
  const cwd = made(t, "snapshots");
  const image = Image.open(bytesOf(cwd, "disk.qcow2"));
  assert.deepEqual(image.snapshots(), qcowkit(cwd, "snapshot -l --output=json disk.qcow2"));
  assert.deepEqual(image.bitmaps(), qcowkit(cwd, "bitmap --list --output=json disk.qcow2").bitmaps);
  const marked = image.bitmapRanges("dirty").reduce((sum, { length }) => sum + length, 0);
  assert.equal(marked, image.bitmaps()[0].dirty_bytes);
});

for (const name of ["leaking", "corrupt"]) {
  test(`${name}: a repair is planned as the command line plans it, and leaves what QEMU finds clean`, (t) => {
    const cwd = made(t, name);
    const printed = qcowkit(cwd, "check -r all --dry-run --output=json disk.qcow2").qcowkit.repair_plan;
    const image = Image.open(bytesOf(cwd, "disk.qcow2"));
    const before = image.save();
    const plan = image.planRepair();
    assert.deepEqual(plan, printed);
    assert.deepEqual(image.save(), before, "planning changes nothing");
    const checkpoint = image.checkpoint();
    assert.deepEqual(image.repair(), plan);
    const after = image.check();
    assert.deepEqual([after.corruptions, after.leaks], [0, 0]);
    qcowkit(cwd, "check -r all --output=json disk.qcow2");
    assert.deepEqual(image.save(), bytesOf(cwd, "disk.qcow2"), "the same bytes as the command line writes");
    image.rollback(checkpoint);
    assert.deepEqual(image.save(), before);
  });
}
