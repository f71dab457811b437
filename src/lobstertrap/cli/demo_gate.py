"""A gate: what comes to one address of this machine goes on to a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

from lobstertrap.errors import InvalidInput

_PIECE = 1 << 18
_START_SECONDS = 30.0


class Gate:
    """Lets a cluster's pods reach a server that listens on loopback, and only that.

    Args:
        host: the address of this machine that they reach.
        port: the loopback port that the connections go on to.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._began = threading.Event()
        self._failed: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address = ""
        """Where it listens, `host:port`."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._began.wait(_START_SECONDS)
        if not self.address:
            raise InvalidInput(
                f"{self._host} is no address of this machine: {self._failed}",
                hint="ip -br address shows which there are",
            ) from self._failed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failed = error
        finally:
            self._began.set()
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, self._host, 0)
        port = server.sockets[0].getsockname()[1]
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"{shown}:{port}"
        self._began.set()
        await self._done.wait()
        server.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far = await asyncio.open_connection("127.0.0.1", self._to, limit=_PIECE)
            await asyncio.gather(_copy(reader, far[1]), _copy(far[0], writer))
        writer.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while piece := await source.read(_PIECE):
            sink.write(piece)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.close()
