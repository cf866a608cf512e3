// Compiled, never run: the published types allow what the documentation shows, and refuse what is wrong.
import { connect, type RemoteImage } from "qcowkit/client";
import {
  type ByteSource, type CheckReport, type ErrorCode, FileSource, Image, type ImageInfo, isQcowError, type LabReport, type MapRun,
  type QcowError, Replay, replay, Trace, version,
} from "qcowkit";
import init, { Image as WebImage } from "qcowkit/web";
import { BlobSource, serve } from "qcowkit/worker";

export async function uses(bytes: Uint8Array): Promise<number> {
  await init();
  using image = Image.open(bytes);
  const info: ImageInfo = image.info();
  const first: string | undefined = info.snapshots?.[0]?.name;
  // @ts-expect-error: sizes are numbers
  const wrong: string = info["virtual-size"];
  using web = WebImage.create(2 ** 40, { extended_l2: true, cluster_size: 131072 });
  // @ts-expect-error: an option that does not exist
  WebImage.create(1, { clustersize: 512 });
  web.write(0, new TextEncoder().encode("hello"));
  // @ts-expect-error: guest bytes are bytes
  web.write(0, "hello");
  web.discard({ offset: 0, length: 65536 }, { unref: "retain_unshared" });
  // @ts-expect-error: a policy that does not exist
  web.planDiscard([], { unref: "sometimes" });
  const runs: MapRun[] = web.map();
  const header = web.inspect("header");
  const raw: bigint | undefined = "value" in header ? header.value.fields[0]?.raw : undefined;
  const l2 = web.inspect("l2:0", { first: 1, count: 2 });
  const kinds = "value" in l2 ? l2.value.entries.map(({ kind }) => kind) : [l2.error];
  // @ts-expect-error: no such structure
  web.inspect("l3");
  const report: CheckReport = web.check({ progress: (done) => done.toFixed() });
  return info["virtual-size"] + version().length + (first ?? wrong).length + runs.length + Number(raw) + kinds.length + report.leaks;
}

export function sources(blob: Blob): ByteSource[] {
  using file = new FileSource("disk.qcow2");
  // @ts-expect-error: a source tells its size
  const wrong: ByteSource = { readAt: () => 0 };
  serve();
  return [new BlobSource(blob), file, wrong];
}

export function lab(): LabReport {
  using trace = Trace.churn({ trim: { every: 100 } });
  using steps = new Replay(trace, { size: 2 ** 30 }, { base: "no-unref" });
  steps.frame({ cells: 100 }).host.fill(0);
  // @ts-expect-error: a trim that does not exist
  Trace.churn({ trim: "always" });
  return replay(trace, { size: 2 ** 30 }, { configs: [{}, { allocation: "fill-holes" }] });
}

export async function remote(worker: Worker, file: File): Promise<number> {
  const qcowkit = connect(worker);
  const image: RemoteImage = await qcowkit.open(file, { tolerant: true });
  const size: number = await image.virtualSize;
  const bytes: Uint8Array = await image.read(0, 512);
  const view: RemoteImage = await image.openSnapshot("before");
  const trace = await qcowkit.churn({ operations: 10 });
  const report: LabReport = await qcowkit.replay(trace, view);
  // @ts-expect-error: results are promises
  const wrong: number = image.virtualSize;
  await image.close();
  return size + bytes.length + report.runs.length + wrong;
}

export function told(error: unknown): ErrorCode | undefined {
  const place = (found: QcowError): string => `${found.structure} ${found.host_offset}`;
  return isQcowError(error) && place(error) ? error.code : undefined;
}
