"""Who is let in: foreign hosts and origins are refused, a token is asked for, and each visitor gets a name."""

import json
import secrets
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VISITOR, TOKEN = "ctplab-visitor", "ctplab-token"
WAITING = 8
"""Events that one visitor may have in the queue, running ones included."""
LARGEST = 32 * 2**20  # bytes of a request
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
KEPT = "Path=/; HttpOnly; SameSite=Lax"


def owner(request: gr.Request | None) -> str:
    """The visitor behind an event: a browser's cookie; for programs without one, the machine they call from."""
    if request is None:
        return ""
    found = cookies(str(request.headers.get("cookie") or "")).get(VISITOR)
    return found or f"host {getattr(request.client, 'host', '')}"


def cookies(header: str) -> dict[str, str]:
    """The cookies of a request's header; none if it is damaged."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except Exception:  # http.cookies raises CookieError for some damage and ignores the rest
        return {}


class Guard:
    """ASGI middleware around the page.

    ``hosts``: the names under which the server is asked; None if a token tells friend from stranger. ``waiting`` counts
    a visitor's events in the queue.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: frozenset[str] | None, token: str | None, waiting: Callable[[str], int]
    ) -> None:
        self.app, self.hosts, self.token, self.waiting = app, hosts, token, waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # the page opens no web socket
        headers = Headers(scope=scope)
        held = cookies(headers.get("cookie", ""))
        refusal = self._refusal(scope, headers, held)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif held.get(VISITOR):
            await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, _named(send))

    def _refusal(self, scope: Scope, headers: Headers, held: dict[str, str]) -> Any:
        """The answer to a request that is not let in; None if it is."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return PlainTextResponse("this server does not answer under that name", 403)
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("another site's page may not ask this server", 403)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST:
            return PlainTextResponse("the request is too large", 413)
        if self.token is not None and (answer := self._stranger(scope, headers, held)) is not None:
            return answer
        client = scope.get("client") or ("", 0)
        visitor = held.get(VISITOR) or f"host {client[0]}"
        if scope["path"].endswith("/queue/join") and self.waiting(visitor) >= WAITING:
            detail = json.dumps({"detail": f"{WAITING} of your requests are waiting already: let them finish first"})
            return PlainTextResponse(detail, 429, media_type="application/json")
        return None

    def _stranger(self, scope: Scope, headers: Headers, held: dict[str, str]) -> Any:
        """Ask for the token; the link that holds it leaves it in a cookie and loses it."""
        assert self.token is not None
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = dict(query).get("token", "")
        if self._right(given):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            answer = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
            answer.headers.append("set-cookie", f"{TOKEN}={self.token}; {KEPT}")
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._right(held.get(TOKEN, "")) or self._right(bearer):
            return None
        return PlainTextResponse("open the link that the server printed when it started (it ends in ?token=...)", 401)

    def _right(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), (self.token or "").encode())


def _named(send: Send) -> Send:
    """Let the answer name its visitor in a cookie."""

    async def naming(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("set-cookie", f"{VISITOR}={secrets.token_hex(8)}; {KEPT}")
        await send(message)

    return naming


def waiting_in(blocks: gr.Blocks) -> Callable[[str], int]:
    """Counts a visitor's events in the queue of ``blocks``, waiting and running."""

    def count(visitor: str) -> int:
        queue = blocks._queue
        waiting = [event for kind in queue.event_queue_per_concurrency_id.values() for event in kind.queue]
        running = [event for batch in queue.active_jobs if batch for event in batch]
        return sum(owner(event.request) == visitor for event in {*waiting, *running})  # pyright: ignore

    return count
