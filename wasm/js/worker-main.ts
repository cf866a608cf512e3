/** A worker as it is: `new Worker(url, { type: "module" })`. @module */

import init from "./web.js";
import { serve } from "./worker.js";

serve(init());
