/** Runs in the worker: the package's own server, with the module beside it. */

import init from "qcowkit/web";
import { serve } from "qcowkit/worker";

// Images can be opened as soon as the first module is there; its parts follow by themselves.
serve(() => init({ parts: "later" }));
