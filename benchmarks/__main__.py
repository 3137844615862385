"""`make bench`: every measurement whose figures stand in benchmarks/README.md."""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks import early, encodings, fifty
from tests.servers import serving

POSITIONS = {"early (2nd ReLU)": 1, "middle (21st ReLU)": 20, "deep (last ReLU)": -1}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, position in POSITIONS.items():
            row = early.measure(Path(scratch), position)
            print(name, "  ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
        for key, value in fifty.measure(Path(scratch)).items():
            print(f"fifty layers: {key} {value:.3f}", flush=True)
        for line in encodings.measure(Path(scratch)):
            print(line, flush=True)
    start = time.perf_counter()
    with serving(wait=True):
        print(f"ready {time.perf_counter() - start:.2f} s after start", flush=True)


if __name__ == "__main__":
    sys.exit(main())
