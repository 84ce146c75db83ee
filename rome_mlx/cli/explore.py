"""Explore a model in the browser, on this machine: trace a fact, write another answer, and ask
with edits on and off. Prints the page's address, which holds the key to it.

  rome-mlx explore --edits edits/louvre
"""

import argparse
import secrets
import socket
import webbrowser

from ..errors import RomeError
from .common import add_model_arguments, load_model


def add_arguments(parser) -> None:
    parser.add_argument("--port", type=_port, default=0, metavar="N",
                        help="to listen on (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    parser.add_argument("--edits", nargs="+", default=[], metavar="DIR",
                        help="saved edits to turn on and off")
    parser.add_argument("--output", metavar="DIR", default=".",
                        help="where edits are saved (default: here)")
    add_model_arguments(parser)


def run(args) -> int:
    import uvicorn

    from ..editing.saved import load_edit
    from ..storage.files import check_writable
    from ..view.explorer.routes import application
    from ..view.explorer.session import Session
    from ..view.explorer.worker import Worker

    def session() -> Session:
        begun = Session(*load_model(args), seed=args.seed, output=args.output)
        for directory, edit in edits.items():
            begun.hold(edit, directory)
        return begun

    edits = {directory: load_edit(directory) for directory in args.edits}
    check_writable(args.output)
    listening, worker, token = _listen(args.port), Worker(), secrets.token_urlsafe(18)
    port = listening.getsockname()[1]
    try:
        app = application(worker.call(session), worker, token, port)
        # below critical are tracebacks of pages that were open at Ctrl-C; jobs print their own
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off",
                                               timeout_graceful_shutdown=1))
        address = f"http://127.0.0.1:{port}/?token={token}"
        print(address, flush=True)
        if not args.no_browser:
            webbrowser.open(address)
        server.run(sockets=[listening])
    finally:
        worker.stop()
    return 0


def _listen(port: int) -> socket.socket:
    """A socket that listens on this machine's own address alone."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise RomeError(f"cannot listen on port {port}: {error.strerror}; give another --port, or "
                        "none") from error


def _port(text: str) -> int:
    """argparse type: a port's number; 0 is a free one."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port's number, 0 to {2**16 - 1}")
    return int(text)
