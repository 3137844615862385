"""The threads of the stages: how many work at one time, in which order, and what becomes of who leaves."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from service.engine.runner import Stopped
from service.pipeline.admission import Admission
from service.pipeline.pools import ONE_MORE, STAGES, Pools, Stages
from service.pipeline.stopwatch import Stopwatch


class Busy:
    """How many work in each stage, now and at most."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._lock = threading.Lock()

    def work(self, names: list[str], seconds: Callable[[], float], result: int) -> Stages[int]:
        for name in names:
            yield name
            with self._lock:
                self.now[name] += 1
                self.most[name] = max(self.most[name], self.now[name])
            time.sleep(seconds())
            with self._lock:
                self.now[name] -= 1
        return result


@asynccontextmanager
async def opened(threads: int, runs_at_once: int | None = None) -> AsyncIterator[tuple[Pools, Admission]]:
    admission = Admission(1000, 1 << 30)
    pools = Pools(threads, admission, lambda: None, runs_at_once=runs_at_once)
    try:
        yield pools, admission
    finally:
        await asyncio.to_thread(pools.close)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_stage_has_more_than_its_threads_and_whoever_stays_gets_an_answer(threads: int, seed: int) -> None:
    """Two hundred pieces of work through some stages, a quarter of which is left at any moment."""
    rng, busy = random.Random(seed), Busy()

    async def leave(pools: Pools, number: int) -> int | None:
        names = sorted(rng.sample(STAGES, k=rng.randint(1, 4)), key=STAGES.index)
        work = busy.work(names, lambda: rng.random() / 500, number)
        asked = asyncio.create_task(pools.go(work, Stopwatch()))
        await asyncio.sleep(rng.random() / 10)
        if number % 4 == 0 and asked.cancel():
            await asyncio.wait([asked])
            return None
        return await asked

    async def all_of_them() -> list[int | None]:
        async with opened(threads) as (pools, admission):
            found = await asyncio.gather(*(leave(pools, number) for number in range(200)))
            while admission.requests:  # noqa: ASYNC110 - threads that still worked for who has left
                await asyncio.sleep(0.001)
            assert not any(pools.waiting.values())
            return found

    found = asyncio.run(asyncio.wait_for(all_of_them(), 60))
    assert [x for n, x in enumerate(found) if n % 4] == [n for n in range(200) if n % 4]
    assert all(most <= threads + (name in ONE_MORE) for name, most in busy.most.items())
    assert busy.most["run"] == threads
    assert not any(busy.now.values())


def test_fewer_networks_may_run_at_one_time_than_there_are_threads() -> None:
    """As on a GPU, whose one thread they would wait for; decoding goes on beside it."""
    busy = Busy()

    async def ask() -> None:
        async with opened(3, runs_at_once=1) as (pools, _):
            work = (busy.work(["prepare", "run"], lambda: 0.005, number) for number in range(20))
            await asyncio.gather(*(pools.go(stages, Stopwatch()) for stages in work))

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert busy.most["run"] == 1
    assert busy.most["prepare"] > 1


def test_what_was_asked_first_begins_first() -> None:
    order: list[int] = []

    async def ask() -> None:
        async with opened(1) as (pools, _):
            await asyncio.gather(*(pools.run("run", partial(order.append, n)) for n in range(50)))

    asyncio.run(ask())
    assert order == list(range(50))


def test_one_thread_does_all_stages_where_they_are_free() -> None:
    threads: list[int] = []

    def stages() -> Stages[None]:
        for name in ("prepare", "run", "finish"):
            yield name
            threads.append(threading.get_ident())

    watch = Stopwatch()

    async def ask() -> None:
        async with opened(2) as (pools, _):
            await pools.go(stages(), watch)

    asyncio.run(ask())
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    assert [span.stage for span in watch.spans] == ["queue"]


def test_a_thread_that_leaves_the_network_runs_whoever_waited_for_it() -> None:
    """Its core has work at once."""
    begun, may_end = threading.Event(), threading.Event()
    ran: list[int] = []

    def work() -> Stages[None]:
        yield "prepare"
        yield "run"
        begun.set()
        may_end.wait(10)
        ran.append(threading.get_ident())
        yield "finish"

    async def ask() -> None:
        async with opened(1) as (pools, _):
            first = asyncio.create_task(pools.go(work(), Stopwatch()))
            await asyncio.to_thread(begun.wait, 10)
            second = asyncio.create_task(pools.go(work(), Stopwatch()))
            while not pools.waiting["run"]:  # noqa: ASYNC110 - a thread that waits tells nobody
                await asyncio.sleep(0.001)
            may_end.set()
            await asyncio.gather(first, second)

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert ran[0] == ran[1]


class Line:
    """Four of whom one runs until it may end, one is prepared, and two wait to be prepared."""

    def __init__(self) -> None:
        self.prepared: list[int] = []
        self.begun, self.may_end = threading.Event(), threading.Event()

    def work(self, number: int) -> Stages[None]:
        yield "prepare"
        self.prepared.append(number)
        yield "run"
        self.begun.set()
        self.may_end.wait(10)

    async def form(self, pools: Pools) -> list[asyncio.Task[None]]:
        first = asyncio.create_task(pools.go(self.work(0), Stopwatch()))
        await asyncio.to_thread(self.begun.wait, 10)
        others = [asyncio.create_task(pools.go(self.work(number), Stopwatch())) for number in (1, 2, 3)]
        await self.until(pools, prepare=2, run=1)
        return [first, *others]

    async def until(self, pools: Pools, **waiting: int) -> None:
        while not waiting.items() <= pools.waiting.items():  # noqa: ASYNC110 - threads tell nobody
            await asyncio.sleep(0.001)


def test_one_is_prepared_while_another_runs_and_no_more() -> None:
    line = Line()

    async def ask() -> None:
        async with opened(1) as (pools, _):
            all_of_them = await line.form(pools)
            await asyncio.sleep(0.05)
            # Another stage is not held up.
            assert await pools.run("read", line.begun.is_set)
            assert line.prepared == [0, 1]
            assert (pools.waiting["prepare"], pools.waiting["run"]) == (2, 1)
            line.may_end.set()
            await asyncio.gather(*all_of_them)

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert sorted(line.prepared) == [0, 1, 2, 3]


@pytest.mark.parametrize("leaves", [1, 2])
def test_who_leaves_while_waiting_makes_room_for_the_next_one(leaves: int) -> None:
    """Number 1 is prepared and waits for the network, number 2 waits to be prepared."""
    line = Line()

    async def ask() -> None:
        async with opened(1) as (pools, admission):
            all_of_them = await line.form(pools)
            all_of_them[leaves].cancel()
            await asyncio.wait([all_of_them[leaves]])
            await line.until(pools, prepare=1, run=1)
            assert line.prepared == ([0, 1, 2] if leaves == 1 else [0, 1])
            assert admission.requests == 0
            line.may_end.set()
            await asyncio.gather(*(one for n, one in enumerate(all_of_them) if n != leaves))

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert sorted(line.prepared) == [n for n in range(4) if n == 1 or n != leaves]


def test_a_closing_service_ends_what_has_begun_and_drops_what_waits() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.append("first")

    async def ask() -> None:
        async with opened(1) as (pools, _):
            first = asyncio.create_task(pools.run("run", work))
            await asyncio.to_thread(begun.wait, 10)
            second = asyncio.create_task(pools.run("run", partial(ended.append, "second")))
            await asyncio.sleep(0)
            closing = asyncio.create_task(asyncio.to_thread(pools.close))
            with pytest.raises(Stopped):
                await second
            with pytest.raises(Stopped):
                await pools.run("read", partial(ended.append, "too late"))
            may_end.set()
            await asyncio.gather(first, closing)

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert ended == ["first"]


def test_what_is_prepared_while_the_network_is_busy_ends_in_a_closing_service_too() -> None:
    begun, prepares, may_end = threading.Event(), threading.Event(), threading.Event()

    def second() -> Stages[str]:
        yield "prepare"
        prepares.set()
        may_end.wait(10)
        yield "run"
        return "ended"

    def first() -> None:
        begun.set()
        may_end.wait(10)

    async def ask() -> None:
        async with opened(1) as (pools, _):
            running = asyncio.create_task(pools.run("run", first))
            await asyncio.to_thread(begun.wait, 10)
            preparing = asyncio.create_task(pools.go(second(), Stopwatch()))
            await asyncio.to_thread(prepares.wait, 10)
            closing = asyncio.create_task(asyncio.to_thread(pools.close))
            await asyncio.sleep(0.05)
            may_end.set()
            await asyncio.gather(running, closing)
            assert await preparing == "ended"

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_an_error_reaches_who_asked_and_the_thread_goes_on() -> None:
    async def ask() -> None:
        async with opened(1) as (pools, _):
            with pytest.raises(ZeroDivisionError):
                await pools.run("run", lambda: 1 // 0)
            assert await pools.run("run", lambda: "on") == "on"

    asyncio.run(ask())


def test_the_time_until_a_stage_begins_counts_as_queue() -> None:
    watch = Stopwatch()

    async def ask() -> None:
        async with opened(1) as (pools, _):
            first = asyncio.create_task(pools.run("run", partial(time.sleep, 0.2)))
            await asyncio.gather(first, pools.run("run", lambda: None, watch))

    asyncio.run(ask())
    assert 0.1 < watch.seconds["queue"] < 5


def test_who_waits_for_a_stage_follows_whoever_was_there_last_from_another_stage() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def first() -> Stages[None]:
        yield "prepare"
        yield "run"
        begun.set()
        may_end.wait(10)
        yield "finish"
        # While this one works on, the next one runs.
        assert followed.wait(10)

    followed = threading.Event()

    async def ask() -> None:
        async with opened(1) as (pools, _):
            running = asyncio.create_task(pools.go(first(), Stopwatch()))
            await asyncio.to_thread(begun.wait, 10)
            second = asyncio.create_task(pools.run("run", followed.set))
            await asyncio.sleep(0)
            assert pools.waiting["run"] == 1
            may_end.set()
            await asyncio.gather(running, second)

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_who_leaves_while_waiting_waits_no_more_and_takes_no_place() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)

    async def ask() -> None:
        async with opened(1) as (pools, admission):
            first = asyncio.create_task(pools.run("run", work))
            await asyncio.to_thread(begun.wait, 10)
            second = asyncio.create_task(pools.run("run", work))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            assert pools.waiting["run"] == admission.requests == 0
            may_end.set()
            await first

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_a_thread_that_has_nothing_to_do_is_taken_before_another_one_is_begun() -> None:
    together = threading.Barrier(3)

    async def ask() -> int:
        async with opened(3) as (pools, _):
            for _ in range(20):
                await pools.run("run", partial(time.sleep, 0))
                await asyncio.sleep(0.002)
            before = threading.active_count()
            await asyncio.gather(*(pools.run("run", partial(together.wait, 10)) for _ in range(3)))
            return threading.active_count() - before

    assert asyncio.run(asyncio.wait_for(ask(), 20)) == 2
