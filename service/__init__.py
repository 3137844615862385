"""featuremaps: any layer's feature maps of any ONNX CNN over HTTP."""

import os

# onnxruntime reports to its maker at session start unless this stands in the environment before it
# is imported; its own `disable_telemetry_events()` comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# numpy's linear algebra starts a thread a core for matrices of a few hundred rows; beside busy
# cores they wait for each other forty times as long as one of them works.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
