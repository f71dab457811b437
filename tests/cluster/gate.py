"""A gate for pods: passes TCP connections on to a port on this machine's loopback.

    python -m tests.cluster.gate LISTEN-ADDRESS PORT

Prints the port that it listens on, and ends with its standard input. SIGUSR1 makes it
slow (1 MB/s a connection), SIGUSR2 fast again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

_PIECE = 1 << 18
_pause = 0.0


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while piece := await source.read(_PIECE):
            sink.write(piece)
            await sink.drain()
            await asyncio.sleep(_pause)
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

    def set_pause(seconds: float) -> None:
        global _pause  # noqa: PLW0603 - a program of one page
        _pause = seconds

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, set_pause, 0.3)
    loop.add_signal_handler(signal.SIGUSR2, set_pause, 0.0)
    server = await asyncio.start_server(serve, address, 0, limit=_PIECE)
    async with server:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
