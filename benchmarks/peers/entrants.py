"""Who is measured, and how each is started: one line a configuration."""

from dataclasses import dataclass, field

HERE = "benchmarks.peers"
POSITIONS = {"early": 1, "middle": 20, "deep": -1}
OURSELVES = "featuremaps"
# Ray's documented way to high throughput: HAProxy in front, replicas that answer HTTP themselves.
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


@dataclass(frozen=True)
class Peer:
    """A configuration: `b` is one process with two job threads, `c` two processes with one each."""

    name: str
    venv: str
    command: tuple[str, ...]
    workers: int = 1
    jobs: int = 1
    kinds: tuple[str, ...] = ("exposed", "cut")
    layers: tuple[str, ...] = tuple(POSITIONS)
    # Workers behind one socket can find all connections on one of them: the best of so many starts counts.
    starts: int = 1
    # Listens on every interface, so runs only where loopback is the only one.
    alone: bool = False
    environment: dict[str, str] = field(default_factory=dict)


BENTOML = ("-m", "bentoml", "serve", f"{HERE}.with_bentoml:Maps", "--host", "127.0.0.1", "--port", "{port}")
FASTAPI, LITSERVE, RAY = (("-m", f"{HERE}.with_{name}") for name in ("fastapi", "litserve", "ray"))
PEERS = (
    Peer("afternoon", "fastapi", ("-m", f"{HERE}.afternoon"), kinds=("exposed",)),
    Peer("fastapi-b", "fastapi", FASTAPI, jobs=2),
    Peer("fastapi-c", "fastapi", FASTAPI, workers=2, kinds=("cut",), layers=("early",), starts=3),
    Peer("litserve-c", "litserve", LITSERVE, workers=2, starts=2),
    Peer("bentoml-b", "bentoml", BENTOML, jobs=2),
    Peer("bentoml-c", "bentoml", BENTOML, workers=2, starts=2),
    Peer("ray-c", "ray", RAY, workers=2, alone=True),
    Peer("ray-haproxy-c", "ray", RAY, workers=2, alone=True, environment=HAPROXY),
)


def chosen(only: list[str]) -> list[Peer]:
    """Those whose name begins with one that is asked for; all when none is."""
    return [peer for peer in PEERS if not only or any(peer.name.startswith(name) for name in only)]
