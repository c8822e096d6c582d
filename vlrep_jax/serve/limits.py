"""What every request is held to, and what every answer says to the browser."""

from fastapi import HTTPException
from starlette.responses import JSONResponse

# Scripts, styles and pictures of this server alone; nothing may frame it or be sent elsewhere.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Limits:
    """Refuses bodies beyond `max_bytes` before they are read whole; adds HEADERS to all answers.

    An ASGI application around another.
    """

    def __init__(self, app, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes
        self._detail = f"The request is larger than {max_bytes / 1e6:,.0f} MB."

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message):
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        seen = 0

        async def counted():
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:  # sent in pieces, without a length
                raise HTTPException(413, self._detail, {"Connection": "close"})
            return message

        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_bytes:
            refusal = JSONResponse({"detail": self._detail}, 413, headers={"Connection": "close"})
            await refusal(scope, receive, with_headers)
            return
        await self._app(scope, counted, with_headers)
