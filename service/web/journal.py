"""The logs of requests: a line for each at its end, and one for each change of what is served.

No query, no content of images; what clients wrote is quoted.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from starlette.requests import Request

from service.errors import ServiceError
from service.web.context import RequestContext, context_of

log = logging.getLogger("featuremaps.access")
audit_log = logging.getLogger("featuremaps.audit")
LONGEST_PATH = 200


def write(context: RequestContext) -> None:
    """Write the line; `extra` makes the same as fields, for who writes JSON."""
    if not log.isEnabledFor(logging.INFO):
        return
    left = f" the client left while {context.left_while}" if context.left_while else ""
    log.info(
        "%s %r %d %.4fs %s%s",
        context.method,
        context.scope["path"][:LONGEST_PATH],
        context.status,
        context.seconds,
        context.request_id,
        left,
        extra={"fields": partial(_fields, context)},
    )


def _fields(context: RequestContext) -> Mapping[str, object]:
    fields = {
        "request_id": context.request_id,
        "method": context.method,
        "path": context.scope["path"][:LONGEST_PATH],
        "route": context.route,
        "status": context.status,
        "seconds": round(context.seconds, 6),
        "received_bytes": context.received_bytes,
        "sent_bytes": context.sent_bytes,
        "model": context.model,
        "caller": context.caller.name or None,
        "code": context.code,
        "left_while": context.left_while,
        "stages": {stage: round(seconds, 6) for stage, seconds in context.stages.items()},
    }
    return {name: value for name, value in fields.items() if value is not None}


@asynccontextmanager
async def audited(request: Request, action: str, subject: str) -> AsyncIterator[dict[str, str]]:
    """Log who changed what, and how it ended; what is put into the record stands in the line."""
    context = context_of(request.scope)
    record = {
        "action": action,
        "subject": subject,
        "caller": context.caller.name,
        "address": request.client.host if request.client else "",
        "result": "failed",
        "request_id": context.request_id,
    }
    try:
        yield record
        record["result"] = "done"
    except ServiceError as error:
        record |= {"result": error.code, "reason": error.detail}
        raise
    finally:
        text = " ".join(f"{name}={value!r}" for name, value in record.items())
        audit_log.info("%s", text, extra={"fields": lambda: record})
