"""Has model files checked by a process of its own before this one touches them."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.engine.extent import ModelLimits
from service.errors import ModelFailed

PACKAGES = Path(__file__).parents[2]
# Nothing else of the environment, which may hold secrets.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "VIRTUAL_ENV", "PYTHONHOME")
START_S = 120.0
# By the clock, where others use the processor too.
CLOCK_FACTOR = 4
PATIENCE_S = 5.0
LONGEST_ANSWER = 1 << 16
ENDED_BY_ITSELF = 0
Process = subprocess.Popen[bytes]
log = logging.getLogger("featuremaps.inspector")


class Inspector:
    """A process checks file after file, and ends when none has come for a while or one was too much.

    As many as ask at one time have one each.
    """

    def __init__(self, limits: ModelLimits, optimization: str) -> None:
        self.limits = limits
        self._given = json.dumps({"limits": asdict(limits), "optimization": optimization})
        self.processes: set[Process] = set()
        self._idle: list[Process] = []
        self._is_closed = False
        weakref.finalize(self, _end, self.processes)

    def check(self, name: str, version: str, file: Path, folder: Path) -> str:
        """Check one file as a version of a model; the SHA-256 of what was checked.

        Raises:
            ModelFailed: with the reason.
        """
        answer = self._answer({"name": name, "version": version, "file": str(file), "folder": str(folder)})
        if "reason" in answer:
            raise ModelFailed(answer["reason"])
        return str(answer["digest"])

    def close(self) -> None:
        """End every process; a check that runs fails, and none begins any more."""
        self._is_closed = True
        self._idle.clear()
        _end(self.processes)

    def _answer(self, asked: Mapping[str, str]) -> Mapping[str, Any]:
        longest = CLOCK_FACTOR * self.limits.check_seconds
        while True:
            process = self._process()
            start = time.monotonic()
            answer = _exchange(process, asked, longest)
            if answer is not None:
                self._idle.append(process)
                return answer
            self.processes.discard(process)
            if (status := _close(process)) != ENDED_BY_ITSELF:
                return {"reason": self._reason(status, is_late=time.monotonic() - start >= longest)}

    def _process(self) -> Process:
        """One that nobody uses, else a new one."""
        if self._is_closed:
            raise ModelFailed("the service ends, and checks no model any more")
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        process = _start(self._given)
        self.processes.add(process)
        if _exchange(process, None, START_S) is None:
            self.processes.discard(process)
            _close(process)
            raise ModelFailed("the process that checks models does not start")
        return process

    def _reason(self, status: int, *, is_late: bool) -> str:
        if is_late or status == -signal.SIGXCPU:
            return f"checking the model took longer than check_seconds, {self.limits.check_seconds:g} s"
        if status == -signal.SIGKILL:
            return "the system ended the check of the model, most likely for want of memory"
        log.warning("the process that checks models ended with status %d", status)
        return "the model crashes the process that checks it"


def _start(given: str) -> Process:
    """In a session of its own: a signal to the service's group is the service's to handle."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    process = subprocess.Popen(  # noqa: S603  # This very program, with our own numbers.
        [sys.executable, "-P", "-m", "service.engine.inspection", given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**environment, "PYTHONPATH": str(PACKAGES), "ORT_DISABLE_TELEMETRY": "1"},
        start_new_session=True,
    )
    # It ends by itself when it has nothing to do, and is to be gone then.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def _exchange(process: Process, asked: Mapping[str, str] | None, seconds: float) -> Mapping[str, Any] | None:
    """The process's next answer; None where it ended, or had to be ended after so many seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        if asked is not None:
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        line = process.stdout.readline(LONGEST_ANSWER)
        return json.loads(line) if line.endswith(b"\n") else None
    except BrokenPipeError:
        return None
    finally:
        timer.cancel()


def _close(process: Process) -> int:
    """Wait for a process that has ended or is about to; how it ended."""
    with process:
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _end(processes: set[Process]) -> None:
    for process in tuple(processes):
        process.kill()
        _close(process)
    processes.clear()
