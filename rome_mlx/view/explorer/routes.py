"""The explorer's addresses, and who may use them."""

import json
import secrets
from collections.abc import AsyncIterator
from importlib.resources import files

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ...errors import RomeError
from ..page import CELLS, STYLE
from .jobs import ask_job, edit_job, trace_job
from .session import Session
from .worker import Worker

_JOBS = {"trace": trace_job, "edit": edit_job, "ask": ask_job}
_SCRIPTS = ("plumbing.js", "map.js", "edit.js", "ask.js", "explorer.js")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
                               "connect-src 'self'; img-src data:; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store"}


class Guard:
    """Answers 403 to a request without the token, and to one under another name than this
    machine's own: a page elsewhere may let its name point here."""

    def __init__(self, app, token: str, port: int):
        self.app, self.token = app, token
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        given = request.query_params.get("token", "").encode()
        known = request.headers.get("host", "") in self.hosts
        if not known or not secrets.compare_digest(given, self.token.encode()):
            refusal = PlainTextResponse("Open the address that rome-mlx explore printed, with its "
                                        "token.\n", 403)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, self._with_headers(send))

    @staticmethod
    def _with_headers(send):
        async def answer(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *(
                    (name.encode(), value.encode()) for name, value in _HEADERS.items())]
            await send(message)

        return answer


def application(session: Session, worker: Worker, token: str, port: int) -> Starlette:
    """The page, what it is made of, and the jobs that it starts."""
    async def state(request: Request) -> Response:
        return JSONResponse(session.to_json())

    async def save(request: Request) -> Response:
        try:
            asked = await _asked(request)
            held = await worker.later(session.save, str(asked.get("edit")), str(asked.get("name")))
        except RomeError as error:
            return JSONResponse({"message": str(error)}, 400)
        return JSONResponse(held.to_json())

    async def job(request: Request) -> Response:
        try:
            asked = await _asked(request)
        except RomeError as error:
            return JSONResponse({"message": str(error)}, 400)
        work = _JOBS[request.url.path.strip("/")]
        found = worker.events(lambda tell: work(session, asked, tell))
        return StreamingResponse(_lines(found), media_type="application/jsonl")

    return Starlette(
        routes=[*_files(token), Route("/state", state), Route("/save", save, methods=["POST"]),
                *(Route(f"/{name}", job, methods=["POST"]) for name in _JOBS)],
        middleware=[Middleware(Guard, token=token, port=port)])


def _files(token: str) -> list[Route]:
    """Routes of the page and what it is made of; the page names the rest with the token."""
    here = files(__package__)
    page = (here / "explorer.html").read_text("utf-8").replace("{token}", token)
    served = {"/": (page, "text/html"), "/cells.js": (CELLS, "text/javascript"),
              "/explorer.css": (STYLE + (here / "explorer.css").read_text("utf-8"), "text/css")}
    for name in _SCRIPTS:
        served[f"/{name}"] = ((here / name).read_text("utf-8"), "text/javascript")

    def route(path: str, text: str, kind: str) -> Route:
        async def answer(request: Request) -> Response:
            return Response(text, media_type=kind)

        return Route(path, answer)

    return [route(path, *one) for path, one in served.items()]


async def _asked(request: Request) -> dict:
    try:
        asked = json.loads(await request.body())
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise RomeError("the request's body is not a JSON object; send one")
    return asked


async def _lines(events: AsyncIterator[dict]) -> AsyncIterator[str]:
    async for event in events:
        yield json.dumps(event) + "\n"
