"""`featuremaps bench`: what the service answers a second and where the time goes, for a table and JSON."""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import click

from service.cli.load import (
    Arrivals,
    Closed,
    Open,
    Request,
    Requests,
    Sample,
    by_failure,
    by_status,
    cpu_seconds,
    running,
)
from service.cli.photographs import drawn_photograph, numbered
from service.cli.process import Memory, Process, watched
from service.cli.windows import Measured, Schedule, Window, measure, percentile
from service.errors import ServiceError

MB = 1e6
# The first request of a layer compiles its plan, and may even load the model.
PROBE_TIMEOUT_S = 120.0
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
# What the table puts together of the stages that `Server-Timing` tells.
PARTS = {
    "queue": ("queue",),
    "decode": ("decode", "preprocess"),
    "run": ("run",),
    "encode": ("reduce", "encode", "compress"),
}


class NoAnswer(ServiceError):
    """The service cannot be reached, or refuses what is to be measured."""

    code, title = "no-answer", "The service gives nothing to measure"


@dataclass(frozen=True)
class Bench:
    """What to measure: every layer set under every load; `caller` is the header with a key, told nowhere."""

    url: str
    model: str | None
    layer_sets: tuple[str, ...]
    image: bytes
    loads: tuple[Arrivals, ...]
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    identical: bool
    schedule: Schedule
    pid: int | None
    caller: Mapping[str, str] = field(repr=False)


async def run_bench(wanted: Bench, told: Callable[[str], None]) -> dict[str, Any]:
    """Measure all; `told` is given a line a window. The result is JSON: what was asked, and `rows`.

    Raises:
        NoAnswer: nothing listens there, or the first request of a layer set is refused.
        ConfigurationError: process `pid` cannot be looked at.
    """
    process = Process(wanted.pid) if wanted.pid is not None else None
    model = wanted.model or await _first_ready(wanted.url, wanted.caller)
    asked = {layers: partial(request_of, wanted, model, layers) for layers in wanted.layer_sets}
    for requests in asked.values():
        await _fetch(requests(0))
    rows = []
    for layers, requests in asked.items():
        for arrivals in wanted.loads:
            seen = partial(_glance, told, f"{layers}, {arrivals}")
            figures = await _measured(requests, arrivals, wanted.schedule, process, seen)
            rows.append({"layers": layers, **figures})
    return {**_asked(wanted, model), "rows": rows}


def _asked(wanted: Bench, model: str) -> dict[str, Any]:
    return {
        "url": wanted.url,
        "model": model,
        "query": dict(wanted.query),
        "image_bytes": len(wanted.image),
        "identical": wanted.identical,
        "image_sha256": hashlib.sha256(wanted.image).hexdigest(),
        "percentiles": "nearest rank",
    }


def request_of(wanted: Bench, model: str, layers: str, number: int) -> Request:
    """What is asked for layers. The service runs identical requests under way once, so the bytes differ."""
    query = urlencode([("layers", layers), *wanted.query])
    url = f"{wanted.url}/v1/models/{quote(model, safe='')}/features?{query}"
    image = wanted.image if wanted.identical else numbered(wanted.image, number)
    headers = {"Content-Type": "application/octet-stream", **wanted.headers, **wanted.caller}
    return Request("POST", url, image, headers)


async def _measured(
    requests: Requests,
    arrivals: Arrivals,
    schedule: Schedule,
    process: Process | None,
    seen: Callable[[Window], None],
) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        # Entered first and so left last: memory is read again when nothing is under way any more.
        memory = await stack.enter_async_context(watched(process)) if process else None
        load = await stack.enter_async_context(running(requests, arrivals))
        own, served = cpu_seconds(), process.cpu_seconds() if process else 0.0
        measured = await measure(load, schedule, seen)
        own, served = cpu_seconds() - own, process.cpu_seconds() - served if process else 0.0
    measured = replace(measured, late=tuple(load.take()))
    return {
        **row(arrivals, measured),
        "not_begun": load.not_begun,
        "generator_cpu_s": round(own, 3),
        **(_costs(memory, served, len(measured.whole.answers)) if memory else {}),
    }


def row(arrivals: Arrivals, measured: Measured) -> dict[str, Any]:
    """One load's figures: rates of the windows kept, latencies of what began in them, refusals of all.

    Times are milliseconds, null where nothing was answered; medians are over answers, percentiles by
    nearest rank.
    """
    kept, whole = measured.kept, measured.whole
    samples = (*whole.samples, *measured.late)
    refused = by_status(samples)
    return {
        "load": str(arrivals),
        "concurrency": arrivals.concurrency if isinstance(arrivals, Closed) else None,
        "rate": arrivals.rate if isinstance(arrivals, Open) else None,
        "stable": measured.stable,
        "seconds": round(whole.seconds, 3),
        "seconds_kept": round(kept.seconds, 3),
        "answers": len(whole.answers),
        "answers_kept": len(kept.answers),
        "answers_per_s": round(kept.rate, 3),
        **_latencies([sample for sample in measured.begun if sample.answered]),
        "bytes": _figure([s.size for s in kept.answers], 50),
        "refused": {str(status): len(those) for status, those in refused.items()},
        "refused_p99_ms": {
            str(status): _figure([s.seconds * 1000 for s in those], 99) for status, those in refused.items()
        },
        "failed": by_failure(samples),
    }


def _latencies(answers: Sequence[Sample]) -> dict[str, Any]:
    whole = [s.seconds * 1000 for s in answers]
    parts = {
        f"{part}_ms": _figure([sum(s.stages.get(stage, 0.0) for stage in stages) for s in answers], 50)
        for part, stages in PARTS.items()
    }
    # All that the server did not count: reading and writing HTTP at both ends, and the bytes under way.
    network = [(s.seconds - s.late_s) * 1000 - sum(s.stages.values()) for s in answers]
    return {
        **{f"{name}_ms": _figure(whole, percent) for name, percent in PERCENTILES.items()},
        "first_byte_ms": _figure([(s.first_byte_s or 0.0) * 1000 for s in answers], 50),
        **parts,
        "network_ms": _figure(network, 50),
        "late_p99_ms": _figure([s.late_s * 1000 for s in answers], 99),
    }


def _figure(values: Sequence[float], percent: int) -> float | None:
    return round(percentile(values, percent), 3) if values else None


def _costs(memory: Memory, cpu_s: float, answers: int) -> dict[str, Any]:
    return {
        "rss_before_mb": round(memory.before / MB, 1),
        "rss_peak_mb": round(memory.peak / MB, 1),
        "rss_after_mb": round(memory.after / MB, 1),
        "cpu_ms": round(cpu_s * 1000 / answers, 3) if answers else None,
    }


def _glance(told: Callable[[str], None], name: str, window: Window) -> None:
    others = len(window.samples) - len(window.answers)
    told(
        f"{name}: {window.rate:.1f} answers/s, median {window.median_s * 1000:.1f} ms"
        + (f", {others} not answered" if others else "")
    )


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells; memory and CPU only where a process was watched, what was not begun only if any."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "layers": lambda r: str(r["layers"]),
        "load": lambda r: str(r["load"]),
        "answers/s": lambda r: f"{r['answers_per_s']:.1f}",
        **{name: partial(_milliseconds, f"{name}_ms") for name in (*PERCENTILES, *PARTS, "network")},
        "bytes": lambda r: "-" if r["bytes"] is None else f"{r['bytes']:,}",
        "refused": lambda r: _counts(r["refused"]),
        "failed": lambda r: _counts(r["failed"]),
    }
    if any(r["not_begun"] for r in rows):
        columns["not begun"] = lambda r: str(r["not_begun"])
    if any("cpu_ms" in r for r in rows):
        columns["RSS MB"] = lambda r: "/".join(
            f"{r[f'rss_{at}_mb']:.0f}" for at in ("before", "peak", "after")
        )
        columns["CPU ms"] = partial(_milliseconds, "cpu_ms")
    columns["stable"] = lambda r: "yes" if r["stable"] else "no"
    return list(columns), [[cell(r) for cell in columns.values()] for r in rows]


def _milliseconds(key: str, figures: Mapping[str, Any]) -> str:
    return "-" if figures[key] is None else f"{figures[key]:.1f}"


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counted.items()) or "0"


async def _first_ready(url: str, caller: Mapping[str, str]) -> str:
    body = await _fetch(Request("GET", f"{url}/v1/models", headers=caller))
    try:
        ready = [str(model["name"]) for model in json.loads(body)["models"] if model["state"] == "ready"]
    except (ValueError, KeyError, TypeError) as error:
        raise NoAnswer(f"{url} is no featuremaps service: it answers, but lists no models") from error
    if not ready:
        raise NoAnswer(f"no model of {url} is ready; name one with --model to have it loaded")
    return ready[0]


async def _fetch(request: Request) -> bytes:
    """One answer's body.

    Raises:
        NoAnswer: as the service's problem document says, or why there is none.
    """
    timeout, body = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S), io.BytesIO(request.body)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.request(request.method, request.url, data=body, headers=request.headers) as answer,
        ):
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NoAnswer(f"{request.url} gives no answer: {error or type(error).__name__}") from error
    if answer.status != 200:
        raise NoAnswer(_reason(request.url, answer.status, content))
    return content


def _reason(url: str, status: int, content: bytes) -> str:
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{url} answers {status} without saying why: is it a featuremaps service?"


def read_bench(url: str, asked: Mapping[str, Any]) -> Bench:
    """What the command's words ask for.

    Raises:
        click.BadParameter
    """
    encoding = asked["accept_encoding"]
    return Bench(
        url=read_url(url),
        model=asked["model"],
        layer_sets=tuple(asked["layer_sets"]),
        image=asked["image"].read_bytes() if asked["image"] else drawn_photograph(),
        loads=read_loads(asked["concurrency"], asked["rate"]),
        query=(("format", asked["kind"]), *read_query(asked["query"])),
        headers={"Accept-Encoding": encoding} if encoding else {},
        identical=asked["identical"],
        schedule=Schedule(
            window_s=asked["window"],
            max_s=asked["seconds"] or asked["max_seconds"],
            tolerance=asked["tolerance"] / 100,
            until_stable=asked["seconds"] is None,
        ),
        pid=asked["pid"],
        caller=read_key(asked["key"]),
    )


def read_key(token: str | None) -> Mapping[str, str]:
    """The header that sends a key, if any.

    Raises:
        click.BadParameter: it is no token (RFC 6750, 2.1); it is not repeated, since it may hold one.
    """
    if not token:
        return {}
    if not TOKEN.fullmatch(token):
        raise click.BadParameter("the key is not the token that `featuremaps key` shows", param_hint="--key")
    return {"Authorization": f"Bearer {token}"}


def read_url(text: str) -> str:
    """The service's address without a slash at its end.

    Raises:
        click.BadParameter
    """
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no address: {error}", param_hint="URL") from error
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise click.BadParameter(f"{text!r} is not http://HOST:PORT", param_hint="URL")
    return text.rstrip("/")


def read_loads(concurrency: str, rate: str | None) -> tuple[Arrivals, ...]:
    """`1,8` clients or, where given, `10,20` requests a second.

    Raises:
        click.BadParameter
    """
    if rate is not None:
        return tuple(Open(number) for number in _numbers(rate, float, "--rate"))
    return tuple(Closed(int(number)) for number in _numbers(concurrency, int, "--concurrency"))


def _numbers(text: str, kind: Callable[[str], float], hint: str) -> list[float]:
    try:
        numbers = [kind(word) for word in text.split(",")]
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ValueError(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers above zero, such as 1,8", param_hint=hint
        ) from error
    return numbers


def read_query(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`name=value`, each a parameter of the request.

    Raises:
        click.BadParameter
    """
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise click.BadParameter(f"{name!r} is not name=value", param_hint="--query")
    return tuple((name, value) for name, _, value in pairs)
