"""A body under a content coding, undone within a bound: what would unpack to more is refused on the way."""

import zlib
from collections.abc import Callable

from service.errors import BodyTooLarge, MalformedRequest

CODINGS = ("gzip", "deflate")
# zlib tells its own format (HTTP's deflate) and gzip's apart by their first bytes.
EITHER_FORMAT = 47
PIECE_BYTES = 1 << 18


def inflate(body: bytes, *, max_bytes: int, take: Callable[[int], None]) -> bytes:
    """Undo gzip or deflate; `take` is told of each piece's bytes before the next one is unpacked.

    Raises:
        BodyTooLarge: more than `max_bytes` come out.
        MalformedRequest: damaged, cut off, or followed by something else.
        Whatever `take` raises.
    """
    decoder = zlib.decompressobj(EITHER_FORMAT)
    pieces, total, rest = [], 0, body
    try:
        while not decoder.eof:
            piece = decoder.decompress(rest, PIECE_BYTES)
            rest = decoder.unconsumed_tail
            if not (piece or rest or decoder.eof):
                raise MalformedRequest("the compressed body is cut off")
            take(len(piece))
            pieces.append(piece)
            total += len(piece)
            if total > max_bytes:
                raise BodyTooLarge(
                    f"the body unpacks to more than {max_bytes} bytes, the most that are taken",
                    limit=max_bytes,
                )
    except zlib.error as error:
        raise MalformedRequest("the body is not compressed as its Content-Encoding says") from error
    if decoder.unused_data:
        raise MalformedRequest("something follows the compressed body")
    return b"".join(pieces)
