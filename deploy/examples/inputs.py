"""Print random tensors for perf_analyzer's --input-data: the service computes equal requests once.

Usage: python inputs.py NAME CxHxW >inputs.json
"""

import array
import base64
import json
import math
import random
import sys

COUNT = 64


def main(name: str, shape: list[int]) -> None:
    rows = []
    for _ in range(COUNT):
        values = array.array("f", (random.random() for _ in range(math.prod(shape))))
        content = {"b64": base64.b64encode(values.tobytes()).decode()}
        rows.append({name: {"content": content, "shape": shape}})
    json.dump({"data": rows}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], [int(side) for side in sys.argv[2].split("x")])
