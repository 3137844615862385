"""Counts the modules that run code for one `POST /v1/models/{model}/features`.

`featuremaps serve` runs in this process, as an operator starts it, and answers real requests on loopback.
Every thread is profiled from the start, the event loop's included. Only the third identical request counts:
by then the model, the plan and every lazy import are loaded. Code that runs without requests as well, such as
the server's clock, is subtracted.
"""

import argparse
import contextlib
import http.client
import importlib.metadata
import io
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

COMMAND = "featuremaps"
WARMING_REQUESTS = 2
# The server's clock ticks ten times a second: long enough for what it does at every tick.
IDLE_S = 1.0
# After the answer: what a request still does when its last byte is sent.
AFTER_S = 0.2
READY_S = 60.0

ModuleCode = tuple[str, CodeType]


class Recorder:
    """A profile function that notes which code of one package runs, in every thread, while it records."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._prefix = package + "."
        self._seen: set[ModuleCode] | None = None

    def install(self) -> None:
        """Profile this thread and all that start from now on."""
        threading.setprofile(self)
        sys.setprofile(self)

    def during(self, act: Callable[[], object]) -> set[ModuleCode]:
        """Return the code that ran meanwhile, with the name of its module."""
        seen = self._seen = set()
        act()
        self._seen = None
        return seen

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a frame that is called, resumed, returns or calls C, so that loops begun earlier count too."""
        if self._seen is None:
            return
        module = frame.f_globals.get("__name__", "")
        if module == self._package or module.startswith(self._prefix):
            self._seen.add((module, frame.f_code))


class Client(threading.Thread):
    """Sends the requests while the service runs in the main thread, then ends the service."""

    def __init__(self, port: int, target: str, recorder: Recorder) -> None:
        super().__init__()
        self.modules: list[str] = []
        self.error: BaseException | None = None
        self.service_ended = threading.Event()
        self._port = port
        self._target = target
        self._recorder = recorder
        self._image = _image()

    def run(self) -> None:
        """Warm the service, then record an idle second and one request."""
        try:
            self._wait_until_ready()
            for _ in range(WARMING_REQUESTS):
                self._request()
            idle = self._recorder.during(lambda: time.sleep(IDLE_S))
            of_request = self._recorder.during(self._request) - idle
            self.modules = sorted({module for module, _ in of_request})
        except BaseException as error:
            self.error = error
        finally:
            if not self.service_ended.is_set():
                # Ctrl+C ends the service without the grace period that SIGTERM has.
                os.kill(os.getpid(), signal.SIGINT)

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end and not self.service_ended.is_set():
            try:
                if self._send("GET", "/readyz") == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise RuntimeError("the service did not start")

    def _request(self) -> None:
        status = self._send("POST", self._target, self._image)
        if status != 200:
            raise RuntimeError(f"POST {self._target} was answered with {status}")
        time.sleep(AFTER_S)

    def _send(self, method: str, target: str, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=READY_S)
        try:
            connection.request(method, target, body, {"Content-Type": "image/png"} if body else {})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


def modules_on_path(target: str, *options: str) -> list[str]:
    """Start the service in this thread, which has to be the main one, and return the modules of one request.

    Args:
        target: path and query of the request.
        options: further options of `featuremaps serve`.
    """
    (command,) = importlib.metadata.entry_points(group="console_scripts", name=COMMAND)
    recorder = Recorder(command.module.partition(".")[0])
    recorder.install()
    with tempfile.TemporaryDirectory() as scratch:
        port = _free_port()
        client = Client(port, target, recorder)
        client.start()
        serve = ["serve", "--port", str(port), "--image-store", f"{scratch}/images.sqlite3", *options]
        try:
            _run(command.load(), serve)
        finally:
            client.service_ended.set()
            client.join()
            sys.setprofile(None)
            threading.setprofile(None)
    if client.error is not None:
        raise client.error
    return client.modules


def _run(main: Any, arguments: list[str]) -> None:
    # Either is how the command may end after Ctrl+C.
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        main(arguments, standalone_mode=False)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _image() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def main() -> None:
    """Print the modules and their number; end with status 1 if there are more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--most", type=int, metavar="N", help="fail above this number of modules")
    parser.add_argument("--target", default="/v1/models/cifar-resnet/features?layers=stages&pool=avg")
    arguments, options = parser.parse_known_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    modules = modules_on_path(arguments.target, *options)
    print(*modules, f"{len(modules)} modules", sep="\n")
    sys.exit(arguments.most is not None and len(modules) > arguments.most)


if __name__ == "__main__":
    main()
