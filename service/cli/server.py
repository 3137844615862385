"""Starting the HTTP server."""

import socket

import click
import uvicorn

from service import __version__
from service.app import make_app
from service.errors import ConfigurationError
from service.settings import Settings

# Longer than proxies keep idle connections (60 s in most), so that it is they who close them.
KEEP_ALIVE_S = 75
# uvloop accepts one connection a turn of its loop for each socket that listens; a busy loop turns seldom,
# and new clients then wait for seconds to be refused. The same socket again takes the next in line.
LISTENERS = 16


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigurationError: the address cannot be listened on, or the settings do not allow a start.
    """
    app = make_app(settings)
    listening = _listen(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"featuremaps {__version__} listens on http://{shown}:{port}")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    uvicorn.Server(config).run(sockets=[listening, *(listening.dup() for _ in range(LISTENERS - 1))])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listening
