"""Requests that come at the same time, answered together by one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Busy(RuntimeError):
    """So many requests wait that one more would wait for too long."""


class Batcher:
    """Answers requests in batches: while one runs, the next gathers.

    A request that comes alone waits for nobody. Enter it with `async with`.

    Args:
      answer: list of up to `size` requests -> list of as many results, an exception being that of
        its request. It runs in one thread.
      size: of the largest batch.
      waiting: how many may wait.
    """

    def __init__(
        self, answer: Callable[[Sequence[Any]], Sequence[Any]], *, size: int, waiting: int = 1000
    ):
        self._answer, self._size, self._waiting = answer, size, waiting

    async def __aenter__(self):
        self._queue = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def ask(self, request: Any) -> Any:
        """The result of a request.

        Raises:
          Busy: too many wait already.
          Exception: what `answer` gave or raised for it.
        """
        if self._queue.qsize() >= self._waiting:
            raise Busy(f"{self._waiting} requests wait already")
        future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((request, future))
        return await future

    async def _run(self):
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [(request, future) for request, future in batch if not future.done()]
            if not batch:  # whoever asked has gone
                continue
            requests = [request for request, _ in batch]
            try:
                results = await loop.run_in_executor(self._thread, self._answer, requests)
            except Exception as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
