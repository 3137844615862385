"""Several worker processes behind one socket: they are started, fed, replaced and ended here.

This process accepts and hands each connection to the worker with the fewest: workers that accept for
themselves were measured to leave one idle while eight kept-alive clients sat on the other. It holds no model,
and a connection that was handed over does not pass through it.
"""

import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead

from service.cli.arrivals import BACKLOG, hold_off, listen
from service.cli.channel import Report, Reports
from service.cli.connection import allow_connections
from service.cli.statuses import BAD_USAGE, FAILED
from service.settings import Settings

TICK_S = 0.1
MOST_A_TURN = 64
# When no worker has room for one more handed over, or no file can be opened, connections wait so long.
REST_S = 0.05
# One that ends sooner than this after its start did not serve: the next one is started after a while, which
# doubles.
SHORT_LIFE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 0.5, 30.0
# Beside the grace and the longest request.
ENDING_S = 10.0
# The system closes a process's files a moment before it can be reaped.
REAP_S = 5.0
log = logging.getLogger("featuremaps.workers")


class Worker:
    """One worker as the supervisor sees it; a process that ended is started again."""

    def __init__(self, number: int, settings: Settings, folder: Path) -> None:
        self.number = number
        self.starts = 0
        self.due = 0.0
        self.report = Report()
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = settings.model_dump_json().encode()
        self._folder = folder
        self._pause_s = FIRST_PAUSE_S

    @property
    def load(self) -> int:
        """Connections that it has open or has not taken yet."""
        return self.report.open + self._handed - self.report.taken

    @property
    def takes(self) -> bool:
        """Whether connections may be handed to it."""
        return self.process is not None and not self._is_told

    def start(self) -> socket.socket:
        """Start the process; what it reports comes through the channel."""
        self.starts += 1
        self._handed, self._is_told = 0, False
        self.report, self._reports = Report(), Reports()
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        given = (theirs.fileno(), self.number)
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - this program itself, with numbers and a folder
                [sys.executable, "-m", "service.cli.worker", *map(str, given)],
                stdin=subprocess.PIPE,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder)},
                pass_fds=[theirs.fileno()],
                # Ctrl+C reaches the supervisor alone, which then ends the workers.
                process_group=0,
            )
        assert self.process.stdin is not None
        # One that is gone already is reaped soon.
        with suppress(BrokenPipeError), self.process.stdin as settings:
            settings.write(self._settings)
        self._started = time.monotonic()
        return self.channel

    def hand(self, connection: socket.socket) -> bool:
        """Hand a connection over; False where too many wait in the channel already, or it is gone."""
        try:
            socket.send_fds(self.channel, [b"c"], [connection.fileno()])
        except OSError:
            # Beside a full channel ETOOMANYREFS: the system bounds what is under way between all processes.
            return False
        self._handed += 1
        return True

    def hear(self) -> bool:
        """Read what it reports; False when it has ended."""
        try:
            self.report = self._reports.read(self.channel) or self.report
        except EOFError:
            return False
        return True

    def let_end(self) -> None:
        """Say that no more connections will come."""
        self._is_told = True
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def bury(self) -> int:
        """Reap the process that has ended, and say when the next one is due."""
        assert self.process is not None
        self.channel.close()
        try:
            status = self.process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        mark_process_dead(self.process.pid, str(self._folder))  # type: ignore[no-untyped-call]
        lived_s, self.process = time.monotonic() - self._started, None
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if lived_s < SHORT_LIFE_S else FIRST_PAUSE_S
        self.due = time.monotonic() + (self._pause_s if lived_s < SHORT_LIFE_S else 0)
        return status


class Supervisor:
    """Accepts, hands over, replaces; ends when all workers have."""

    def __init__(self, settings: Settings, listening: socket.socket, folder: Path) -> None:
        self._settings = settings
        self._listening = listening
        self._workers = [Worker(number, settings, folder) for number in range(settings.workers)]
        self._selector = selectors.DefaultSelector()
        self._unhanded: socket.socket | None = None
        self._rests_until = 0.0
        self._accepts_until = self._waits_until = math.inf
        self._status = 0

    def run(self) -> int:
        """Until a signal ends it; the status to exit with."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._on_signal)
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ, self._accept)
        self._start_due()
        while any(worker.process for worker in self._workers) or not self._is_ending:
            for key, _ in self._selector.select(TICK_S):
                key.data()
            self._start_due()
            self._look_at_clock()
        return self._status

    @property
    def _is_ending(self) -> bool:
        return self._accepts_until < math.inf

    def _on_signal(self, sig: int, frame: FrameType | None) -> None:
        """The first lets readiness go and connections come for a while; the second ends at once."""
        if self._is_ending:
            self._kill_all()
            sys.exit(128 + sig)
        self._end(0 if sig == signal.SIGINT else self._settings.drain_grace_s)

    def _end(self, grace_s: float) -> None:
        self._accepts_until = time.monotonic() + grace_s
        for worker in self._workers:
            if worker.process:
                worker.process.terminate()

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.process:
                worker.process.kill()

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and time.monotonic() >= worker.due and not self._is_ending:
                channel = worker.start()
                self._selector.register(channel, selectors.EVENT_READ, partial(self._hear, worker))

    def _hear(self, worker: Worker) -> None:
        if worker.hear():
            if worker.report.state == "draining" and worker.takes and not self._is_ending:
                worker.let_end()  # Somebody told this one alone to end.
            return
        self._selector.unregister(worker.channel)
        status = worker.bury()
        if self._is_ending:
            log.info("worker %d ended with status %d", worker.number, status)
        elif status == BAD_USAGE:
            # It has said why, and the next one would say the same.
            self._status = BAD_USAGE
            self._end(0)
        else:
            log.warning("worker %d ended with status %d and is replaced", worker.number, status)

    def _accept(self, most: int = MOST_A_TURN) -> None:
        for _ in range(most):
            try:
                connection = self._unhanded or self._listening.accept()[0]
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("connections wait: %s", error.strerror)
                self._rest()
                return
            if not self._hand(connection):
                self._unhanded = connection
                self._rest()
                return
            self._unhanded = None
            connection.close()

    def _hand(self, connection: socket.socket) -> bool:
        """To the worker with the fewest connections that is ready, or that will be, where none is."""
        taking = [worker for worker in self._workers if worker.takes]
        ready = [worker for worker in taking if worker.report.state == "ready"]
        return any(worker.hand(connection) for worker in sorted(ready or taking, key=lambda w: w.load))

    def _rest(self) -> None:
        self._look_away()
        self._rests_until = time.monotonic() + REST_S

    def _look_away(self) -> None:
        if self._listening in self._selector.get_map():
            self._selector.unregister(self._listening)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        is_open = self._listening.fileno() >= 0
        if is_open and self._listening not in self._selector.get_map() and now >= self._rests_until:
            self._selector.register(self._listening, selectors.EVENT_READ, self._accept)
            self._accept()
        if is_open and now >= self._accepts_until:
            self._close()
        if now >= self._waits_until:
            log.error("workers that do not end are killed")
            self._status = FAILED
            self._kill_all()

    def _close(self) -> None:
        """Take what has come, and nothing more, once all of it is handed over."""
        hold_off(self._listening)
        self._accept(BACKLOG)
        if self._unhanded:
            return
        self._waits_until = time.monotonic() + self._settings.max_timeout_s + ENDING_S
        self._look_away()
        self._listening.close()
        for worker in self._workers:
            if worker.takes:
                worker.let_end()


def supervise(settings: Settings) -> int:
    """Serve with several processes until a signal ends them; the status to exit with.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    allow_connections()
    with tempfile.TemporaryDirectory(prefix="featuremaps-") as folder:
        return Supervisor(settings, listen(settings), Path(folder)).run()
