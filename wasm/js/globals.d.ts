/** What only workers have, beside the library of pages: the two libraries of TypeScript exclude each other. */

/** https://w3c.github.io/FileAPI/#FileReaderSync */
declare class FileReaderSync {
  readAsArrayBuffer(blob: Blob): ArrayBuffer;
}

/** https://fs.spec.whatwg.org/#api-filesystemsyncaccesshandle */
interface FileSystemSyncAccessHandle {
  getSize(): number;
  read(into: Uint8Array<ArrayBuffer>, options: { at: number }): number;
  close(): void;
}

interface FileSystemFileHandle {
  createSyncAccessHandle(): Promise<FileSystemSyncAccessHandle>;
}
