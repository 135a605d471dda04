"""What the test Hub puts on the wire and finds on the disk: HTTP answers, chunked bodies, and Xet's shards."""

from __future__ import annotations

import json
import re
import socket
import struct
from pathlib import Path
from typing import Any


def ok(value: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {}


def ranged(content: bytes, request: Any, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    """Answer with the part of the content that was asked for."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if not match:
        return 200, content, {**headers, "Accept-Ranges": "bytes"}
    first, last = int(match[1]), int(match[2] or len(content) - 1)
    return 206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}


def send(request: Any, status: int, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content[: len(content) // 2] if cut else content)
    if cut:
        request.connection.shutdown(socket.SHUT_RDWR)
        request.close_connection = True


def hexadecimal(raw: bytes) -> str:
    """Return a hash as Xet writes it: each group of eight bytes reversed."""
    return b"".join(raw[i : i + 8][::-1] for i in range(0, 32, 8)).hex()


def read_chunks(file: Any) -> bytes:
    """Read a body that comes in chunks."""
    parts = []
    while size := int(file.readline().split(b";")[0], 16):
        parts.append(file.read(size))
        file.readline()
    file.readline()
    return b"".join(parts)


def xet_hashes(store: Path) -> dict[str, tuple[str, int]]:
    """Return SHA-256 -> (Xet hash, bytes) of a store's shards: a header of 48 bytes, then a record for each file."""
    found = {}
    for shard in store.rglob("shards/*.mdb"):
        content, place = shard.read_bytes(), 48
        while content[place : place + 32] != b"\xff" * 32 and place + 48 <= len(content):
            name = content[place : place + 32]
            flags, count = struct.unpack_from("<II", content, place + 32)
            place += 48
            size = sum(struct.unpack_from("<I", content, place + 48 * i + 36)[0] for i in range(count))
            place += 48 * count * (2 if flags & (1 << 31) else 1)
            if flags & (1 << 30):
                found[hexadecimal(content[place : place + 32])] = (hexadecimal(name), size)
                place += 48
    return found
