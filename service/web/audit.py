"""Who changed what is served, and how it ended: one line of the log each."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from service.errors import ServiceError
from service.web.access import caller_of

log = logging.getLogger("featuremaps.audit")


@asynccontextmanager
async def audited(request: Request, action: str, subject: str) -> AsyncIterator[dict[str, str]]:
    """What is put into the record stands in the line, such as a digest."""
    record = {
        "action": action,
        "subject": subject,
        "caller": caller_of(request).name,
        "address": _address(request),
    }
    result = "failed"
    try:
        yield record
        result = "done"
    except ServiceError as error:
        result = error.code
        record["reason"] = error.detail
        raise
    finally:
        tell(record | {"result": result, "request_id": request.scope["featuremaps.request_id"]})


def tell(record: dict[str, str]) -> None:
    """Quoted, so that nobody's name makes a line of its own."""
    text = " ".join(f"{name}={value!r}" for name, value in record.items())
    log.info("%s", text, extra={"fields": lambda: record})


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
