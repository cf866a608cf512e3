// The discard lab: traces, replays and the steps between, as the command line does them.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Image, Replay, replay, Trace } from "qcowkit";
import { made } from "../images.mjs";
import { bytesOf, folder, qcowkit, qcowkitText } from "../qcowkit.mjs";

const GIB = 1 << 30;
const CHURN = { size: GIB / 4, operations: 3000, seed: 3, trim: { every: 500 }, mark_every: 1000 };

test("churn is that of the command line, and goes through text", (t) => {
  const cwd = folder(t);
  const words = "churn --size=256M --operations=3000 --seed=3 --trim=500 --mark-every=1000";
  const trace = Trace.churn(CHURN);
  assert.equal(trace.text("csv"), qcowkitText(cwd, `${words} --format=csv`));
  assert.equal(trace.text("qemu-io"), qcowkitText(cwd, `${words} --format=qemu-io`));
  for (const format of ["csv", "qemu-io"]) {
    const again = Trace.parse(trace.text(format), format);
    // What a format says besides operations, such as its first line, is counted.
    // QEMU's own program knows no marks.
    const { marks, operations, ...rest } = trace.summary();
    const all = format === "csv" ? { marks, operations } : { marks: 0, operations: operations - marks };
    assert.deepEqual({ ...again.summary(), ignored: 0 }, { ...rest, ...all });
    const guessed = Trace.parse(new TextEncoder().encode(trace.text(format)));
    assert.equal(guessed.length, again.length);
  }
  assert.throws(() => trace.text("fio"), { code: "invalid_argument" });
  assert.equal(trace.operations(0, trace.length + 10).length, trace.length);
  assert.deepEqual(Object.keys(trace.operations(0, 1)[0]), ["write"]);
  assert.ok(trace.end <= GIB / 4);
});

test("replays are those of the command line", (t) => {
  const cwd = made(t, "snapshots");
  const text = Trace.churn(CHURN).text("csv");
  const trace = Trace.parse(text);
  writeFileSync(join(cwd, "trace.csv"), text);
  const printed = qcowkit(cwd, "replay --advise --samples=20 --policy=ignore --policy=unmap --policy=no-unref " +
    "--policy=unmap,cluster_size=128k,extended_l2=on,allocator=near,name=mine trace.csv --size=256M --output=json");
  const configs = [{ base: "ignore" }, {}, { base: "no-unref" },
    { cluster_size: 131072, extended_l2: true, allocation: "near", name: "mine" }];
  const told = [];
  const report = replay(trace, { size: GIB / 4 },
    { configs, samples: 20, advise: true, name: "trace.csv", progress: (config, done) => told.push([config, done]) });
  assert.deepEqual(report, printed);
  assert.deepEqual(told.at(-1), [3, trace.length]);
  assert.deepEqual(replay(trace, { size: GIB / 4 }, { samples: 20, name: "trace.csv" }).runs, printed.runs.slice(0, 3));

  const smallText = Trace.churn({ ...CHURN, size: 16 << 20, operations: 500, file_median: 65536, file_max: 1 << 20 }).text("csv");
  const small = Trace.parse(smallText);
  writeFileSync(join(cwd, "small.csv"), smallText);
  const onImage = qcowkit(cwd, "replay --image=disk.qcow2 --policy=unmap small.csv --output=json");
  const image = Image.open(bytesOf(cwd, "disk.qcow2"));
  // Which bytes of the image are holes, only a file system can tell.
  const withoutHost = (report) => JSON.parse(JSON.stringify(report, (key, found) => (key === "host_bytes" ? 0 : found)));
  assert.deepEqual(withoutHost(replay(small, image, { configs: [{}], name: "small.csv" })), withoutHost(onImage));
  assert.throws(() => replay(trace, image), { code: "invalid_argument", message: /beyond the disk/ });
  assert.throws(() => replay(trace, { size: GIB }, { configs: [{ policy: { pass: { requests: true } } }] }), { message: /requests/ });
});

test("a replay goes step by step to the same end, and its frames add up", () => {
  const trace = Trace.churn(CHURN);
  for (const config of [{}, { base: "no-unref" }, { extended_l2: true, cluster_size: 32768 }]) {
    const steps = new Replay(trace, { size: GIB / 4 }, config);
    assert.equal(steps.length, trace.length);
    while (steps.done < trace.length) {
      assert.ok(steps.step(700) > 0);
      const sample = steps.sample();
      assert.equal(sample.operation, steps.done);
      const frame = steps.frame({ cells: 512 });
      assert.equal(frame.file_length, sample.file_length);
      assert.equal(frame.guest.length, 4 * Math.ceil((GIB / 4) / frame.cell_bytes));
      const bytes = (cells, kind) => {
        let sum = 0;
        for (let at = kind; at < cells.length; at += 4) {
          sum += cells[at];
        }
        return (sum / 255) * frame.cell_bytes;
      };
      // Shares are rounded to 1/255 of a cell.
      const slack = (512 * frame.cell_bytes) / 255;
      assert.ok(Math.abs(bytes(frame.guest, 0) - sample.live_bytes) <= slack, `${bytes(frame.guest, 0)} ${sample.live_bytes} ${slack}`);
      assert.ok(Math.abs(bytes(frame.guest, 1) - sample.retained_bytes) <= slack, `${bytes(frame.guest, 1)} ${sample.retained_bytes} ${slack}`);
    }
    assert.equal(steps.step(1), 0);
    assert.deepEqual(steps.finish(), replay(trace, { size: GIB / 4 }, { configs: [config] }).runs[0]);
    assert.throws(() => steps.sample(), { code: "closed" });
  }
});
