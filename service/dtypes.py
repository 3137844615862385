"""Names of element types: numpy's, the v2 protocol's, and the types that numpy does not have."""

# The v2 protocol's names of numpy's; text, and an encoded image, is an object of Python's.
DATATYPES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "str",
}
# Types that numpy has no name for, and the wider one that holds each of their values exactly.
WIDENED = {
    "bfloat16": "float32",
    **{f"float8_{kind}": "float32" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")},
    **{f"{sign}int{bits}": f"{sign}int8" for sign in ("", "u") for bits in (2, 4)},
}
# The runtime cannot convert these to numpy arrays; bfloat16 comes through its own values.
NOT_HANDED_OUT = WIDENED.keys() - {"bfloat16"}
DATATYPE_OF = {dtype: datatype for datatype, dtype in DATATYPES.items()}
