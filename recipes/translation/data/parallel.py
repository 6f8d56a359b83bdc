"""Work spread over processes, its results in order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from ...common.errors import RecipeError
from ...common.leash import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 2_000


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """map(function, items) by `workers` processes. A few items are read ahead, so that any corpus fits in memory.

    Processes are spawned, not forked: the parent may hold threads of torch or tqdm. They end with it, even if it is
    killed. A single item is done in this one, since a process takes longer to start than a chunk takes.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    items = chain(first, iterator)
    if workers <= 1 or len(first) < 2:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise RecipeError(
                f"one of {workers} processes of the preparation was killed, by lack of memory perhaps; run the same "
                f"command again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
