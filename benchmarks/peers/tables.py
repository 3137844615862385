"""Rows to Markdown, and the ratios that matter: plain functions of what was measured."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.peers.entrants import OURSELVES, POSITIONS
from benchmarks.peers.load import Load

# Times as many answers a second as a peer that exposes every layer; against the best cut, ahead.
AGAINST_EXPOSED = {"early": 9.0, "middle": 2.3, "deep": 1.0}
AGAINST_CUT = 1.0
# When bare itself moved more than this from before a row to after it, the machine was not quiet enough.
QUIET = 0.15
UNQUIET = " *"


@dataclass
class Row:
    """A configuration at a layer; `bare_*` is the limit, the mean of right before and right after."""

    peer: str
    kind: str
    layer: str
    loads: list[Load] = field(default_factory=list)
    bytes: int = 0
    rss_mb: float = 0.0
    pss_mb: float = 0.0
    first_s: float = 0.0
    bare_p50_ms: float = 0.0
    bare_rate: float = 0.0
    bare_drift: float = 0.0
    starts: int = 1
    failed: str = ""

    @property
    def rate(self) -> float:
        """Answers a second with most clients."""
        return self.loads[-1].rate if self.loads else 0.0

    @property
    def share(self) -> float:
        return self.rate / self.bare_rate if self.bare_rate else 0.0


def table(rows: Iterable[Row]) -> list[str]:
    rows = list(rows)
    counts = next(([each.concurrency for each in row.loads] for row in rows if row.loads), [1])
    head = ["layer", "", "graph", f"ms at {counts[0]}", f"a second at {counts[-1]}", "of bare", "CPU ms"]
    head += ["RSS / PSS MB", "first answer s", "bytes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + [_line(row) for layer in POSITIONS for row in rows if row.layer == layer]


def _line(row: Row) -> str:
    cells = [row.layer, row.peer + (f" ({row.starts} starts)" if row.starts > 1 else ""), row.kind]
    if row.failed:
        return "| " + " | ".join([*cells, f"failed: {row.failed.splitlines()[0]}", *"------"]) + " |"
    cells += [f"{row.loads[0].p50_ms:.1f}", _rate(row.rate)]
    cells += [
        f"{row.share:.2f}{UNQUIET if row.bare_drift > QUIET else ''}",
        f"{row.loads[-1].server_cpu_ms:.1f}",
    ]
    cells += [f"{row.rss_mb:.0f} / {row.pss_mb:.0f}", f"{row.first_s:.1f}" if row.first_s else "-"]
    return "| " + " | ".join([*cells, f"{row.bytes:,}"]) + " |"


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def ratios(rows: Iterable[Row]) -> list[str]:
    """featuremaps against each peer with every layer exposed, and against the best that is cut by hand."""
    rows = [row for row in rows if row.loads]
    lines = [
        "| layer | featuremaps against | answers a second | by what bare did then | target |",
        "|---|---|---|---|---|",
    ]
    for layer in POSITIONS:
        ours = next((row for row in rows if row.layer == layer and row.peer == OURSELVES), None)
        if ours is None:
            continue
        peers = [row for row in rows if row.layer == layer and row.peer not in (OURSELVES, "bare")]
        target = AGAINST_EXPOSED[layer]
        lines += [_ratio(ours, row, target) for row in peers if row.kind == "exposed"]
        if cut := [row for row in peers if row.kind == "cut"]:
            lines.append(_ratio(ours, max(cut, key=lambda row: row.share), AGAINST_CUT, "best cut: "))
    return lines


def _ratio(ours: Row, row: Row, target: float, prefix: str = "") -> str:
    """Side by side as it was, and each by the limit measured around it, which a noisy machine moves."""
    plain, fair = ours.rate / row.rate, ours.share / row.share
    verdict = ("met" if fair >= target else "missed") + (
        UNQUIET if max(ours.bare_drift, row.bare_drift) > QUIET else ""
    )
    name = f"{prefix}{row.peer}, {row.kind}"
    return f"| {row.layer} | {name} | {plain:.2f} | {fair:.2f} | {target:g}, {verdict} |"
