/** Runs in the worker: the package's own server, with the module beside it. */

import init from "qcowkit/web";
import { serve } from "qcowkit/worker";

serve(init());
