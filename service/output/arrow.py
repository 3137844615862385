"""Arrow IPC streams: a row an image, a column a layer, as fixed-shape tensors. Needs the extra `arrow`."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.errors import NotCombinable
from service.parameters import Compress
from service.values import Array, Chunk

METADATA_KEY = "featuremaps"


class Arrow:
    """https://arrow.apache.org/docs/format/CanonicalExtensions.html#fixed-shape-tensor."""

    name, media_type, extension, carries_metadata = (
        "arrow",
        "application/vnd.apache.arrow.stream",
        "arrows",
        True,
    )

    @property
    def available(self) -> bool:
        """Whether the extra is installed."""
        return importlib.util.find_spec("pyarrow") is not None

    def check(self, layers: Sequence[str], compress: Compress) -> None:
        """Members have no compression of their own.

        Raises:
            NotCombinable
        """
        if compress != "none":
            raise NotCombinable(
                "compress is for format=npz; arrow is smaller on the wire with Accept-Encoding"
            )

    def encode(
        self, arrays: Mapping[str, Array], metadata: Mapping[str, Any], compress: Compress
    ) -> tuple[Chunk, ...]:
        """One record batch; a layer without a batch axis, so of one image, stands whole in its row."""
        import pyarrow as pa

        images = int(metadata["images"]) if "images" in metadata else 1
        columns = [_column(pa, values, images) for values in arrays.values()]
        schema = pa.schema(
            [pa.field(name, column.type) for name, column in zip(arrays, columns, strict=True)],
            metadata={METADATA_KEY: json.dumps(metadata)},
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        return (memoryview(sink.getvalue()),)


def _column(pa: Any, values: Array, images: int) -> Any:
    """(images, ...) as a tensor a row; Arrow's tensors hold no booleans, so those become uint8."""
    shape = values.shape if values.ndim > 1 and len(values) == images else (images, -1)
    if values.ndim > 1 and len(values) != images:
        shape = (1, *values.shape)
    numbers = values.astype(np.uint8) if values.dtype == bool else np.ascontiguousarray(values)
    tensors = numbers.reshape(shape)
    if tensors.size:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)
    # pyarrow makes tensors without values of nothing but lists.
    kind = pa.from_numpy_dtype(tensors.dtype)
    lists = pa.array([[]] * len(tensors), pa.list_(kind, 0))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, tensors.shape[1:]), lists)
