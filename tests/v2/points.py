"""The thirty points that a server of the Open Inference Protocol v2 is held against."""

import pytest

POINTS = {
    1: "infer without Content-Type",
    2: "infer as application/octet-stream",
    3: "infer as application/json",
    4: "binary in and JSON out, and the reverse",
    5: "binary and JSON outputs in one answer",
    6: "outputs omitted",
    7: "an inner layer whose name holds a slash",
    8: "an unknown output",
    9: "every datatype as bytes; FP16 and BF16 not as JSON",
    10: "an empty batch, and an empty output",
    11: "compressed requests, with a header length; a bomb",
    12: "compressed answers by q-values, and what no client here undoes",
    13: "header lengths: missing, negative, no number, beyond the body, 2^63, 0",
    14: "bytes left over, and too few",
    15: "data, binary_data_size and shared memory exclude each other",
    16: "shapes that do not fit, negative and overflowing",
    17: "deep JSON and huge numbers",
    18: "NaN and Infinity both ways",
    19: "the id comes back",
    20: "classification of 1, 5 and more than there are",
    21: "not ready is not 200",
    22: "unknown models and versions have an error",
    23: "a wrong method is 405",
    24: "the repository's index without a body",
    25: "loading and unloading",
    26: "triton_ and reserved parameters",
    27: "a body in chunks of a byte",
    28: "a client that leaves gives its place back",
    29: "256 requests at once",
    30: "the timeout parameter",
}
point = pytest.mark.point
