"""What a worker and its supervisor say to each other: connections down, states up."""

import socket
import struct
from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["loading", "ready", "draining"]
STATES: tuple[State, ...] = get_args(State)
_REPORT = struct.Struct("!BQQ")


@dataclass(frozen=True)
class Report:
    """A worker's state, how many connections it was handed so far, and how many are open."""

    state: State = "loading"
    taken: int = 0
    open: int = 0

    def pack(self) -> bytes:
        """As bytes, all of one length."""
        return _REPORT.pack(STATES.index(self.state), self.taken, self.open)


class Reports:
    """Reads reports from a channel, where they can come in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, channel: socket.socket) -> Report | None:
        """The newest whole report that has come, if any.

        Raises:
            EOFError: the other side is gone.
        """
        try:
            heard = channel.recv(1 << 16)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            heard = b""
        if not heard:
            raise EOFError
        self._rest += heard
        whole = len(self._rest) // _REPORT.size * _REPORT.size
        newest, self._rest = self._rest[:whole][-_REPORT.size :], self._rest[whole:]
        if not newest:
            return None
        state, taken, now_open = _REPORT.unpack(newest)
        return Report(STATES[state], taken, now_open)
