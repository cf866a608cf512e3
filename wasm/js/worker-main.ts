/** A worker as it is: `new Worker(url, { type: "module" })`. It fetches parts of the module when they are needed. @module */

import init from "./web.js";
import { serve } from "./worker.js";

serve(() => init({ parts: "demand" }));
