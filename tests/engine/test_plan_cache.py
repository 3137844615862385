"""Compiled plans within a byte budget."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, cast

import pytest

from service.engine.plan_cache import FUSE_AFTER, FUSE_WITHIN, PlanCache
from service.engine.runner import Session
from service.errors import ModelFailed


class Sized:
    """Stands for a session: the cache looks at its size only."""

    def __init__(self, kept_bytes: int) -> None:
        self.kept_bytes = kept_bytes


def compiled(kept_bytes: int) -> Session:
    return cast(Session, Sized(kept_bytes))


def test_a_key_is_built_once() -> None:
    cache, built = PlanCache(100), []
    for _ in range(3):
        cache.get("a", lambda: built.append(1) or compiled(1))
    assert len(built) == 1


def test_many_who_ask_at_once_build_once() -> None:
    cache, built, gate = PlanCache(100), [], threading.Barrier(4)

    def ask() -> object:
        gate.wait()
        return cache.get("a", lambda: built.append(1) or compiled(1))

    with ThreadPoolExecutor(4) as pool:
        found = {id(future.result()) for future in [pool.submit(ask) for _ in range(4)]}
    assert (len(built), len(found)) == (1, 1)


def test_the_least_recently_used_leaves_first() -> None:
    cache, built = PlanCache(22), []

    def ask(key: str) -> None:
        cache.get(key, lambda: built.append(key) or compiled(10))

    for key in "abacab":
        ask(key)
    assert built == ["a", "b", "c", "b"]


def test_the_budget_holds() -> None:
    cache = PlanCache(35)
    for key in range(10):
        cache.get(key, lambda: compiled(10))
    assert (cache.kept_bytes, len(cache)) == (30, 3)


@pytest.mark.parametrize("share", [2, 4])
def test_variants_hold_no_more_than_their_share_and_push_out_no_segment(share: int) -> None:
    cache = PlanCache(160, variants_share=share)
    for key in range(100):
        cache.get(("segment", key), lambda: compiled(10))
        cache.get(("variant", key), lambda: compiled(10), "variant")
    kept = cache.figures()
    assert (kept["variant"].bytes, kept["segment"].bytes) == (160 // share, 160 - 160 // share)


def test_one_larger_than_the_budget_is_used_and_not_kept() -> None:
    cache = PlanCache(5)
    assert cache.get("a", lambda: compiled(10)).kept_bytes == 10
    assert len(cache) == 0


def test_a_build_that_fails_is_tried_again() -> None:
    cache = PlanCache(100)

    def fail() -> Session:
        raise ModelFailed("no")

    with pytest.raises(ModelFailed):
        cache.get("a", fail)
    assert cache.get("a", lambda: compiled(1)).kept_bytes == 1


def test_a_waiting_build_does_not_hold_up_another_key() -> None:
    cache, may_end = PlanCache(100), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get, "slow", lambda: compiled(1 if may_end.wait(10) else 0))
        assert cache.get("quick", lambda: compiled(2)).kept_bytes == 2
        may_end.set()
        assert slow.result(10).kept_bytes == 1


class AtOnce(Executor):
    """Does in the foreground what is meant for the background."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        work(*given, **named)
        return Future()


def asked_in_turn(sets: int, rounds: int) -> PlanCache:
    cache = PlanCache(10_000, AtOnce())
    for _ in range(rounds):
        for key in range(sets):
            cache.fused(key, lambda: compiled(1), 1)
    return cache


def test_a_set_that_is_asked_again_and_again_gets_a_session_of_its_own() -> None:
    assert len(asked_in_turn(1, FUSE_AFTER - 1)) == 0
    assert len(asked_in_turn(1, FUSE_AFTER)) == 1


def test_many_sets_asked_in_turn_get_none_however_long_it_goes_on() -> None:
    assert len(asked_in_turn(FUSE_WITHIN // FUSE_AFTER, FUSE_AFTER)) == FUSE_WITHIN // FUSE_AFTER
    assert len(asked_in_turn(FUSE_WITHIN, 10 * FUSE_AFTER)) == 0


def test_what_is_fused_while_its_owner_is_dropped_is_not_kept() -> None:
    with ThreadPoolExecutor(1) as background:
        cache, begun, may_end = PlanCache(100, background), threading.Event(), threading.Event()

        def build() -> Session:
            begun.set()
            assert may_end.wait(10)
            return compiled(1)

        for _ in range(FUSE_AFTER):
            cache.fused(("mine", "layers"), build, 1)
        assert begun.wait(10)
        cache.drop("mine")
        may_end.set()
    assert len(cache) == 0
    cache = PlanCache(100, AtOnce())
    for _ in range(FUSE_AFTER):
        cache.fused(("mine", "layers"), lambda: compiled(1), 1)
    cache.drop("another's")
    assert len(cache) == 1
