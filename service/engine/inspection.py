"""Checks model files in a process of its own: `python -m service.engine.inspection`.

Reads one line of JSON for each file and answers with one: the file's digest, or the reason of a refusal. A
check does all that serving a model does: it reads, describes, compiles and runs it once. Whatever a file
does to that process ends with it.
"""

import contextlib
import functools
import json
import math
import os
import resource
import select
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from service.engine.extent import ModelLimits
from service.engine.graph import read
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.engine.runtime_errors import is_of_memory
from service.errors import ServiceError

IDLE_S = 2.0
NICENESS = 5
MOST_FILES = 256
TOO_MUCH_MEMORY = "the model needs more memory than check_memory_bytes allows"
STATE_OF_MEMORY = Path("/proc/self/statm")


def main() -> None:
    """Answer until nobody asks for a while."""
    given = json.loads(sys.argv[1])
    limits = ModelLimits(**given["limits"])
    runtime = Runtime(optimization=given["optimization"])
    answers = _take_standard_output()
    _tell(answers, {"ready": True})
    _confine(limits)
    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.readline()):
        _allow_seconds(limits.check_seconds)
        _tell(answers, _inspect(json.loads(line), limits, runtime))


def _inspect(asked: Mapping[str, str], limits: ModelLimits, runtime: Runtime) -> Mapping[str, str]:
    file, folder = Path(asked["file"]), Path(asked["folder"])
    plans = PlanCache(limits.check_memory_bytes)
    reading = functools.partial(read, limits=limits)
    try:
        model = load(asked["name"], asked["version"], file, folder, runtime, plans, reading)
    except ServiceError as error:
        return {"reason": TOO_MUCH_MEMORY if is_of_memory(error) else error.detail}
    except MemoryError:
        return {"reason": TOO_MUCH_MEMORY}
    except RecursionError:
        return {"reason": "the graph is nested too deeply"}
    except Exception as error:  # A bug of ours, which a file from outside must not hide as a crash.
        return {"reason": _internal_error(error)}
    return {"digest": model.identity.digest}


def _internal_error(error: Exception) -> str:
    """What to report of a bug of ours: the kind of error and the line where it arose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"internal error in {place}, please report it: {type(error).__name__}: {str(error)[:200]}"


def _take_standard_output() -> TextIO:
    """Keep it for answers alone: whatever libraries print of a hostile file goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answers


def _tell(answers: TextIO, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _confine(limits: ModelLimits) -> None:
    """So much memory beside what the libraries take, no file written, first to go where memory is short."""
    _limit(resource.RLIMIT_AS, _taken_bytes() + limits.check_memory_bytes)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, MOST_FILES)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(NICENESS)


def _allow_seconds(seconds: float) -> None:
    """Of CPU time: a check on a busy machine takes as much as on any other."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))


def _limit(kind: int, value: int) -> None:
    """Only the soft limit, which a later check has to raise; never above the hard one."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _taken_bytes() -> int:
    """Address space that is taken already; where the system does not tell, it is not limited exactly."""
    if not STATE_OF_MEMORY.exists():
        return 0
    return int(STATE_OF_MEMORY.read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
