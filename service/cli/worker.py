"""One worker process: serves the connections that its supervisor hands over.

Started as `python -m service.cli.worker CHANNEL WORKER` with the settings as JSON on standard
input. It ends when no more connections will come and those that did are answered.
"""

import math
import os
import socket
import sys
from contextlib import suppress

import click

from service.app import make_app
from service.cli.arrivals import Arrivals, receive
from service.cli.channel import Report, State
from service.cli.connection import allow_connections
from service.cli.logs import set_up
from service.cli.server import Server
from service.cli.statuses import BAD_USAGE
from service.errors import ConfigurationError
from service.settings import Settings


class Worker(Server):
    """Reports its state; its supervisor says when it ends, by closing the channel."""

    def report_to(self, channel: socket.socket) -> None:
        """Where reports go."""
        channel.setblocking(False)
        self._channel = channel
        self._reported = Report()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        is_over = await super().on_tick(counter)
        report = Report(self._state(), self._arrivals.count, len(self.server_state.connections))
        if report != self._reported:
            self._report(report)
        return is_over

    def _state(self) -> State:
        if self.readiness.is_draining:
            return "draining"
        return "ready" if self.readiness.ready else "loading"

    def _report(self, report: Report) -> None:
        """A supervisor that is busy is told at the next tick, one that is gone not at all."""
        with suppress(BlockingIOError, BrokenPipeError):
            self._channel.send(report.pack())
            self._reported = report


def main() -> None:
    """Serve until the channel ends."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Python closes sockets before it has ended; this one tells the supervisor that the process has.
    os.dup(channel.fileno())
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    set_up(settings, int(sys.argv[2]))
    allow_connections()
    try:
        app = make_app(settings)
    except ConfigurationError as error:
        click.echo(f"featuremaps: {error}", err=True)
        sys.exit(BAD_USAGE)
    worker = Worker(app, settings, Arrivals(channel.dup(), receive), grace_s=math.inf)
    worker.report_to(channel)
    worker.run()


if __name__ == "__main__":
    main()
