"""A gate for pods: passes TCP connections on to a port on this machine's loopback.

    python -m tests.cluster.gate LISTEN-ADDRESS PORT

Prints the port that it listens on, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

_PIECE = 1 << 18


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while piece := await source.read(_PIECE):
            sink.write(piece)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.close()


async def _main(address: str, port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far = await asyncio.open_connection("127.0.0.1", port, limit=_PIECE)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, far[1]), _copy(far[0], writer))

    server = await asyncio.start_server(serve, address, 0, limit=_PIECE)
    async with server:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
