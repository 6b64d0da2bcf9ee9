"""A web server that says who it is and what it was asked, as JSON: `python web.py LABEL PORT FOLDER`. asyncio, no more.

Every answer names `who`, `path`, `headers` (lower case), the peer's address, and what a PROXY header said. /login sets
the application's session, /slow takes a second, and /health answers 503 while FOLDER/LABEL.ill is there. Any other
protocol than HTTP: a line that begins with "hello" is answered with the label, and the connection stays open.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

_V2 = b"\r\n\r\n\0\r\nQUIT\n"


async def _proxy(reader: asyncio.StreamReader, first: bytes) -> tuple[bytes, str]:
    """(the first line after a PROXY header, what that said)."""
    if first.startswith(b"PROXY "):
        return await reader.readline(), "v1 " + first.split()[2].decode()
    if first == b"\r\n":  # the first bytes of a version 2 header
        head = first + await reader.readexactly(14)
        assert head.startswith(_V2), head
        rest = await reader.readexactly(int.from_bytes(head[14:16], "big"))
        told = "v2 " + ".".join(map(str, rest[:4])) if head[12] & 15 else "v2 LOCAL"
        return await reader.readline(), told
    return first, ""


class Web:
    def __init__(self, label: str, folder: str) -> None:
        self.label, self.ill = label, Path(folder) / f"{label}.ill"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line, proxy = await _proxy(reader, await reader.readline())
            while line:
                if line.startswith(b"hello"):
                    writer.write(f"{self.label} {proxy}\n".encode())
                    line = await reader.readline()
                    continue
                keeps = await self._answer(line, proxy, reader, writer)
                await writer.drain()
                line = await reader.readline() if keeps else b""
        except (ConnectionError, asyncio.IncompleteReadError, IndexError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, line: bytes, proxy: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        method, path, version = line.decode().split()
        headers: dict[str, str] = {}
        while (one := (await reader.readline()).decode().strip()) != "":
            name, _, value = one.partition(":")
            headers[name.lower()] = value.strip()
        if path.startswith("/slow"):
            await asyncio.sleep(1)
        ill = path.startswith("/health") and self.ill.exists()
        told = {"who": self.label, "path": path, "headers": headers, "proxy": proxy}
        told["peer"] = writer.get_extra_info("peername")[0]
        body = json.dumps(told).encode()
        session = f"Set-Cookie: APPSESSION=of-{self.label}; path=/\r\n" if path.startswith("/login") else ""
        session += f"Set-Cookie: SRVID=app-{self.label}; path=/\r\n" if path.startswith("/rewrite") else ""
        keeps = version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
        status = "503 Ill" if ill else "200 OK"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{session}"
        head += "" if keeps else "Connection: close\r\n"
        writer.write(f"{head}\r\n".encode() + (b"" if method == "HEAD" else body))
        return keeps


class Echo(asyncio.DatagramProtocol):
    """UDP: each datagram is answered with the label."""

    def __init__(self, label: str) -> None:
        self.label = label

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: object) -> None:
        self.transport.sendto(self.label.encode(), address)  # type: ignore[attr-defined]


async def main(label: str, port: int, folder: str) -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(Web(label, folder).serve, None, port, backlog=4096)
    await loop.create_datagram_endpoint(lambda: Echo(label), ("0.0.0.0", port))
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
