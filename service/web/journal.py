"""One line of the log for each request that is over: no query, no content of images, no client's text raw."""

import logging
from collections.abc import Mapping
from functools import partial

from service.web.exchange import Exchange

log = logging.getLogger("featuremaps.access")
LONGEST_PATH = 200


def write(exchange: Exchange) -> None:
    """Write the line; `extra` makes the same as fields, for who writes JSON."""
    if not log.isEnabledFor(logging.INFO):
        return
    left = f" the client left while {exchange.left_while}" if exchange.left_while else ""
    log.info(
        "%s %r %d %.4fs %s%s",
        exchange.method,
        exchange.scope["path"][:LONGEST_PATH],
        exchange.status,
        exchange.seconds,
        exchange.request_id,
        left,
        extra={"fields": partial(_fields, exchange)},
    )


def _fields(exchange: Exchange) -> Mapping[str, object]:
    fields = {
        "request_id": exchange.request_id,
        "method": exchange.method,
        "path": exchange.scope["path"][:LONGEST_PATH],
        "route": exchange.route,
        "status": exchange.status,
        "seconds": round(exchange.seconds, 6),
        "received_bytes": exchange.received_bytes,
        "sent_bytes": exchange.sent_bytes,
        "model": exchange.model,
        "caller": exchange.caller,
        "code": exchange.code,
        "left_while": exchange.left_while,
        "stages": {stage: round(seconds, 6) for stage, seconds in exchange.stages.items()},
    }
    return {name: value for name, value in fields.items() if value is not None}
