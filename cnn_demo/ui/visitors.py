"""Who a visitor is for the limits, and how much they may send."""

import contextlib
import ipaddress
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.route_utils import FnIndexInferError

from ..runs.files import modified
from ..runs.queue import SIGNED_IN

BODY_BYTES, PICTURE_BYTES = 10_000_000, 25_000_000  # of a request, of an upload
UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, FnIndexInferError)  # Gradio on what it does not expect
UPLOADS_BYTES, UPLOAD_SECONDS = 1_000_000_000, 7200  # of all uploads, of one


def source_of(request: gr.Request | None, profile: gr.OAuthProfile | None, is_space: bool) -> str:
    """Return "user NAME" of who is signed in, else the visitor's network address (of IPv6 the network, /64)."""
    if profile is not None:
        return f"{SIGNED_IN}{profile.username}"
    if request is None:
        return ""
    forwarded = request.headers.get("x-forwarded-for", "") if is_space else ""  # elsewhere anyone can send it
    found = [request.client.host if request.client else "", *forwarded.split(",")]
    addresses = []
    for text in found:
        with contextlib.suppress(ValueError):
            addresses.append(ipaddress.ip_address(text.strip()))
    # The last public one: the Space's proxy appends to what the visitor sends, and may have private ones behind it.
    address = next((one for one in reversed(addresses) if one.is_global), addresses[0] if addresses else "")
    return str(ipaddress.ip_network(f"{address}/64", strict=False) if ":" in str(address) else address)


class TooLarge(Exception):
    """Raised while a body is read that is too large."""


class CheckRequest:
    """ASGI middleware that answers in a sentence what Gradio would not: too large a body, and what it fails on."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        """Answer with status 413 if the body is too large, 400 if Gradio cannot use what it says; else pass it on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = PICTURE_BYTES if scope["path"].endswith("/upload") else BODY_BYTES
        too_large = f"The request is too large: at most {limit // 1_000_000} MB are allowed."

        async def refuse(status: int, sentence: str) -> None:
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps({"detail": sentence}).encode()})

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:  # before it is read
            return await refuse(413, too_large)
        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read <= limit:
                return message
            while read <= 2 * limit and message.get("more_body"):  # who is cut off while sending reads no answer
                message = await receive()
                read += len(message.get("body", b""))
            raise TooLarge  # its length was not announced

        async def answer(message: Any) -> None:
            if read <= limit:
                await send(message)
            elif message["type"] == "http.response.start":  # whatever was made of it
                await refuse(413, too_large)

        try:
            await self.app(scope, limited, answer)
        except TooLarge:
            await refuse(413, too_large)
        except UNUSABLE as error:  # no function or component of that number, or NaN, which FastAPI cannot quote
            if scope["method"] != "POST":
                raise
            logging.getLogger(__name__).warning("A request to %s was refused: %.200r", scope["path"][:80], error)
            await refuse(400, "The request cannot be used; /gradio_api/info says what is expected.")


def clean_uploads(folder: Path) -> None:
    """Delete uploads over two hours old, and the oldest while they take over a gigabyte: no other process does."""
    found = sorted((file for file in folder.rglob("*") if file.is_file()), key=modified)
    used = sum(file.stat().st_size for file in found)
    for file in found:
        if used > UPLOADS_BYTES or modified(file) < time.time() - UPLOAD_SECONDS:
            used -= file.stat().st_size
            file.unlink(missing_ok=True)


def keep_uploads_clean(folder: Path) -> None:
    """Clean uploads now and every minute, in a thread that ends with the process."""

    def work() -> None:
        while True:
            with contextlib.suppress(OSError):  # Gradio deletes, too
                clean_uploads(folder)
            time.sleep(60)

    threading.Thread(target=work, name="uploads", daemon=True).start()
