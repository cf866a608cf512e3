//! The handle of an open image.

use js_sys::Uint8Array;
use qcowkit_core::image::OpenOptions;
use qcowkit_core::operations::info::ImageInfo;
use qcowkit_core::storage::MemoryStorage;
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::error;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
/** What an image says of itself, with the names of `qemu-img info --output=json`. Sizes are in bytes. */
export interface ImageInfo {
  "format": "qcow2";
  "virtual-size": number;
  "cluster-size": number;
  "dirty-flag": boolean;
  "encrypted"?: true;
  "backing-filename"?: string;
  "backing-filename-format"?: string;
  "snapshots"?: SnapshotInfo[];
  "format-specific": { "type": "qcow2"; "data": Qcow2Info };
}

/** What only qcow2 images have. */
export interface Qcow2Info {
  "compat": "0.10" | "1.1";
  "compression-type": string;
  "refcount-bits": number;
  "lazy-refcounts"?: boolean;
  "corrupt"?: boolean;
  "extended-l2"?: boolean;
  "data-file"?: string;
  "data-file-raw"?: boolean;
  "encrypt"?: {
    "format": "aes" | "luks";
    "cipher-alg"?: string;
    "cipher-mode"?: string;
    "ivgen-alg"?: string;
    "ivgen-hash-alg"?: string;
    "hash-alg"?: string;
    "detached-header"?: boolean;
    "uuid"?: string;
    "payload-offset"?: number;
    "master-key-iters"?: number;
    "slots"?: { "active": boolean; "key-offset": number; "iters"?: number; "stripes"?: number }[];
  };
  "bitmaps"?: BitmapInfo[];
}

/** An internal snapshot. */
export interface SnapshotInfo {
  "id": string;
  "name": string;
  "vm-state-size": number;
  "date-sec": number;
  "date-nsec": number;
  "vm-clock-sec": number;
  "vm-clock-nsec": number;
  "icount"?: number;
}

/** A persistent bitmap. */
export interface BitmapInfo {
  "name": string;
  "granularity": number;
  "flags": ("in-use" | "auto")[];
}
"#;

/// An open image. It holds memory until `close()`, or `free()`, or the end of a `using` block.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Image {
    /// Empty once it is closed.
    image: Option<qcowkit_core::image::Image<MemoryStorage>>,
}

#[wasm_bindgen]
impl Image {
    /// Opens the image that these bytes are, to look at it. The bytes are copied; no file that the image names is
    /// opened.
    ///
    /// # Errors
    /// A `QcowError`: `not_qcow2`, `corrupt`, `unsupported` (the features are named), `limit`.
    pub fn open(bytes: &Uint8Array) -> Result<Image, JsValue> {
        let storage = MemoryStorage::from_bytes(&bytes.to_vec());
        let options = OpenOptions::default().read_only().metadata_only();
        let image = qcowkit_core::image::Image::open(storage, options).map_err(|why| error::thrown(&why))?;
        Ok(Self { image: Some(image) })
    }

    /// What the image says of itself.
    ///
    /// # Errors
    /// A `QcowError`: `closed`; `corrupt` when a table that has to be read makes no sense; `limit` when a number is
    /// beyond 2^53.
    #[wasm_bindgen(unchecked_return_type = "ImageInfo")]
    pub fn info(&self) -> Result<JsValue, JsValue> {
        let image = self.image.as_ref().ok_or_else(error::closed)?;
        let info = ImageInfo::read(image.header(), image.storage()).map_err(|why| error::thrown(&why))?;
        // Numbers beyond 2^53 are refused by the serializer: a wrong size is worse than none.
        info.serialize(&serde_wasm_bindgen::Serializer::json_compatible()).map_err(|why| error::limit(&why.to_string()))
    }

    /// Whether the image is closed.
    #[wasm_bindgen(getter)]
    #[must_use]
    pub fn closed(&self) -> bool {
        self.image.is_none()
    }

    /// Gives the memory back; closing again does nothing.
    pub fn close(&mut self) {
        self.image = None;
    }
}
