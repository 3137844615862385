"""A body under a content coding, undone within a bound: what would unpack to more is refused on the way."""

from collections.abc import Callable, Iterator

from isal import isal_zlib

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
    pieces, total = [], 0
    for piece in _pieces(body):
        total += len(piece)
        take(len(piece))
        if total > max_bytes:
            raise BodyTooLarge(
                f"the body unpacks to more than {max_bytes} bytes, the most that are taken", limit=max_bytes
            )
        pieces.append(piece)
    return b"".join(pieces)


def _pieces(body: bytes) -> Iterator[bytes]:
    """What comes out, piece by piece; what goes in goes in pieces too, since the decoder copies the rest."""
    decoder = isal_zlib.decompressobj(EITHER_FORMAT)
    try:
        for start in range(0, len(body), PIECE_BYTES):
            rest: bytes = body[start : start + PIECE_BYTES]
            while rest and not decoder.eof:
                yield decoder.decompress(rest, PIECE_BYTES)
                rest = decoder.unconsumed_tail
            if decoder.eof and (decoder.unused_data or start + PIECE_BYTES < len(body)):
                raise MalformedRequest("something follows the compressed body")
        yield decoder.flush()
    except isal_zlib.error as error:  # type: ignore[misc]  # The stub takes the class for an instance.
        raise MalformedRequest("the body is not compressed as its Content-Encoding says") from error
    if not decoder.eof:
        raise MalformedRequest("the compressed body is cut off")
