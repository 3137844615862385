"""Several worker processes on one port: uvicorn's supervisor, with our server in each."""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors.multiprocess import SIGNALS, Multiprocess, Process

from service.cli.logs import set_up
from service.cli.server import Config, Server, allow_connections, listen
from service.cli.statuses import BAD_USAGE, FAILED
from service.errors import ConfigurationError
from service.settings import Settings

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# In addition to the grace and the longest request, until a worker that has not ended is killed.
ENDING_S = 5.0
log = logging.getLogger("featuremaps.workers")


class Worker(Process):
    """A process that serves; the pipe to its supervisor carries only the reason why it cannot start."""

    config: Config

    def start(self) -> None:
        """Start it without Ctrl+C, which then ends the supervisor alone."""
        # On its first start it would unblock the signal.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        super().start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, in the new process."""
        # Out of the terminal's group: the supervisor passes the signal on.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
        set_up(self.config.settings, os.getpid())
        try:
            self.config.load()
        except ConfigurationError as error:
            self.child_conn.send(str(error))
            sys.exit(BAD_USAGE)
        Server(self.config).run(sockets)

    def is_alive(self, timeout: float = 0) -> bool:
        """Whether the process runs.

        uvicorn also asks whether a thread of it answers in time. One that reads a large model does not, since
        the parser of ONNX files holds Python's lock.
        """
        return self.process.is_alive()

    @property
    def reason(self) -> str:
        """Why it could not start, empty where it did not say."""
        return str(self.parent_conn.recv()) if self.parent_conn.poll() else ""


def _end_with_supervisor() -> None:
    process = parent_process()
    assert process is not None
    process.join()
    shutil.rmtree(os.environ[METRICS_FOLDER], ignore_errors=True)
    os._exit(FAILED)


class Supervisor(Multiprocess):
    """Replaces workers that end, and ends with all of them in bounded time; a second signal ends at once."""

    config: Config
    processes: list[Worker]  # type: ignore[assignment]

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.reason = ""
        self._ended_by: int | None = None
        # uvicorn's handlers of other signals would start workers of its own class.
        for sig in SIGNALS:
            signal.signal(sig, signal.SIG_DFL)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._on_signal)

    def _on_signal(self, sig: int, frame: FrameType | None) -> None:
        if self._ended_by is not None:
            self._kill_all()
            sys.exit(128 + sig)
        self._ended_by = sig
        self.signal_queue.append(sig)

    def _kill_all(self) -> None:
        for worker in self.processes:
            worker.process.kill()

    def _start_worker(self, number: int) -> Worker:
        worker = Worker(self.config, [self.sockets[number]])
        worker.start()
        return worker

    def init_processes(self) -> None:
        """Start all workers."""
        for number in range(self.processes_num):
            self.processes.append(self._start_worker(number))

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended; end where no worker can start."""
        for number, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if worker.is_alive():
                continue
            mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
            if worker.exitcode == BAD_USAGE:
                self.reason = worker.reason
                self.should_exit.set()
                return
            log.warning("worker %d ended with status %s and is replaced", worker.pid, worker.exitcode)
            self.processes[number] = self._start_worker(number)

    def terminate_all(self) -> None:
        """Pass the signal on."""
        for listening in self.sockets:
            listening.close()
        for worker in self.processes:
            if worker.is_alive() and worker.pid:
                os.kill(worker.pid, self._ended_by or signal.SIGINT)

    def join_all(self) -> None:
        """Wait for all workers, and kill those that do not end in time."""
        settings = self.config.settings
        ends = time.monotonic() + settings.drain_grace_s + settings.max_timeout_s + ENDING_S
        for worker in self.processes:
            worker.process.join(max(0, ends - time.monotonic()))
        if any(worker.is_alive() for worker in self.processes):
            log.error("workers that do not end are killed")
            self._kill_all()


@contextmanager
def _metrics_folder() -> Iterator[None]:
    """Give the workers a folder in memory for their metrics (prometheus_client's multiprocess mode)."""
    memory = "/dev/shm"  # noqa: S108 - the folder in it is new and readable by this user alone
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="featuremaps-", dir=parent) as folder:
        os.environ[METRICS_FOLDER] = folder
        yield


def supervise(settings: Settings) -> None:
    """Serve with several processes until a signal ends them.

    Raises:
        ConfigurationError: the address cannot be listened on, or the settings do not allow a start.
    """
    allow_connections()
    with _metrics_folder():
        supervisor = Supervisor(Config(settings), listen(settings))
        supervisor.run()
    if supervisor.reason:
        raise ConfigurationError(supervisor.reason)
