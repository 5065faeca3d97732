"""Every order in which the steps of two or three operations can happen, on the flows of production."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from cacheaside.errors import StoreUnavailable
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.testing import FakeClock
from cacheaside.toolkit import RefreshTokens, SessionStore
from cacheaside.world import ProcessWorld

Actor = tuple[str, Callable[["Scene"], Any]]


class Scene:
    """A store, and a cache that hands out its flows instead of driving them."""

    endpoint = None

    def __init__(self, **options: Any) -> None:
        clock = FakeClock()
        self.world = ProcessWorld(RawKeys("p"), clock=clock)
        self.store = EmbeddedStore(2**20, clock)
        self.sessions: Any = SessionStore(self, **options)  # type: ignore[arg-type]
        self.refresh: Any = RefreshTokens(self)  # type: ignore[arg-type]
        self.made: Any = None

    def run(self, flow: Any, *_: Any) -> Any:
        return flow

    def arun(self, flow: Any, *_: Any) -> Any:
        return flow

    def do(self, flow: Generator[Any, Any, Any]) -> Any:
        """Drive a flow alone to its end."""
        reply = None
        try:
            while True:
                reply = self.store.perform(flow.send(reply))
        except StopIteration as stop:
            return stop.value


class Play:
    """One schedule: whose step comes next, until all have ended."""

    def __init__(self, before: Callable[[Scene], Any], actors: tuple[Actor, ...], options: Any) -> None:
        self.scene = Scene(**options)
        self.scene.made = before(self.scene)
        self.flows: dict[str, Any] = {name: begin(self.scene) for name, begin in actors}
        self.asked = {name: next(flow) for name, flow in self.flows.items()}
        self.results: dict[str, Any] = {}

    def step(self, name: str) -> None:
        reply = self.scene.store.perform(self.asked[name])
        try:
            self.asked[name] = self.flows[name].send(reply)
        except StopIteration as stop:
            self.results[name] = stop.value
            del self.asked[name]


def schedules(
    before: Callable[[Scene], Any], *actors: Actor, **options: Any
) -> Iterator[tuple[Scene, dict[str, Any]]]:
    """All ends of all schedules; a flow is run again from its beginning, since it cannot be copied."""
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        schedule = waiting.pop()
        play = Play(before, actors, options)
        for name in schedule:
            play.step(name)
        if not play.asked:
            yield play.scene, play.results
        waiting += [(*schedule, name) for name in play.asked]


def login(scene: Scene) -> Any:
    return scene.do(scene.sessions.create("ann", {"n": 0}))


def get(scene: Scene, token: str) -> Any:
    return scene.do(scene.sessions.get(token))


def update(name: str) -> Actor:
    return name, lambda scene: scene.sessions.update(scene.made.token, {name: True})


def test_no_update_is_lost_in_any_order() -> None:
    count = 0
    for scene, results in schedules(login, update("a"), update("b"), update("c")):
        assert get(scene, scene.made.token).data == {"n": 0, "a": True, "b": True, "c": True}
        assert all(results[name].data[name] for name in results)
        count += 1
    assert count > 100


ENDS: dict[str, Callable[[Scene], Any]] = {
    "delete": lambda scene: scene.sessions.delete(scene.made.token),
    "delete by id": lambda scene: scene.sessions.delete(scene.made.id),
    "delete_all": lambda scene: scene.sessions.delete_all("ann"),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_revives_a_session_in_any_order(end: str) -> None:
    """An update, a rotation and a read beside a logout: whatever comes of them, nobody is logged in."""
    seen = set()
    for scene, results in schedules(
        login,
        ("end", ENDS[end]),
        update("a"),
        ("rotate", lambda scene: scene.sessions.rotate(scene.made.token)),
        ("get", lambda scene: scene.sessions.get(scene.made.token)),
    ):
        tokens = [scene.made.token, *([results["rotate"].token] if results["rotate"] else [])]
        assert [token for token in tokens if get(scene, token) is not None] == []
        assert scene.do(scene.sessions.list("ann")) == []
        assert results["end"] is True
        seen.add((results["a"] is None, results["rotate"] is None, results["get"] is None))
    assert len(seen) == 8, "each of them comes before and after the logout"


def test_rotations_at_once_agree_on_one_token_in_any_order() -> None:
    names = ("x", "y", "z")
    rotate: tuple[Actor, ...] = tuple(
        (name, lambda scene: scene.sessions.rotate(scene.made.token)) for name in names
    )
    for scene, results in schedules(login, *rotate, update("a")):
        tokens = {results[name].token for name in names}
        assert len(tokens) == 1
        assert get(scene, tokens.pop()).data == {"n": 0, "a": True}


def test_logins_at_once_keep_to_the_cap_in_any_order() -> None:
    create: tuple[Actor, ...] = tuple(
        (name, lambda scene: scene.sessions.create("ann", {})) for name in ("x", "y", "z")
    )
    for scene, results in schedules(login, *create, max_per_user=2):
        live = [name for name, made in results.items() if get(scene, made.token) is not None]
        assert len(live) == 2
        assert get(scene, scene.made.token) is None


def test_a_login_beside_a_logout_everywhere_is_before_or_after_it() -> None:
    ends = set()
    for scene, results in schedules(
        login, ("create", lambda scene: scene.sessions.create("ann", {})), ("end", ENDS["delete_all"])
    ):
        assert get(scene, scene.made.token) is None
        ends.add(get(scene, results["create"].token) is None)
    assert ends == {True, False}


def issue(scene: Scene) -> Any:
    return scene.do(scene.refresh.issue("ann"))


def test_a_refresh_token_sent_twice_at_once_gives_one_successor_in_any_order() -> None:
    rotate: tuple[Actor, ...] = tuple(
        (name, lambda scene: scene.refresh.rotate(scene.made)) for name in ("x", "y", "z")
    )
    for scene, results in schedules(issue, *rotate):
        assert len({str(token) for token in results.values()}) == 1
        assert scene.do(scene.refresh.rotate(results["x"])) is not None


def test_nothing_survives_revoke_all_in_any_order() -> None:
    for scene, results in schedules(
        issue,
        ("rotate", lambda scene: scene.refresh.rotate(scene.made)),
        ("again", lambda scene: scene.refresh.rotate(scene.made)),
        ("revoke", lambda scene: scene.refresh.revoke_all("ann")),
    ):
        for token in (scene.made, results["rotate"], results["again"]):
            assert token is None or scene.do(scene.refresh.rotate(token)) is None


@pytest.mark.parametrize(
    "fault", [StoreUnavailable("lost"), asyncio.CancelledError()], ids=["lost", "cancelled"]
)
@pytest.mark.parametrize("performed", [False, True])
@pytest.mark.parametrize("at", [0, 1])
def test_an_update_that_is_cut_leaves_old_or_new_data(fault: BaseException, performed: bool, at: int) -> None:
    """Nothing in between, and the session lives."""
    scene = Scene()
    made = login(scene)
    flow = scene.sessions.update(made.token, {"n": 1})
    command = next(flow)
    for _ in range(at):
        command = flow.send(scene.store.perform(command))
    if performed:
        scene.store.perform(command)
    with pytest.raises(type(fault)):
        flow.throw(fault)
    assert get(scene, made.token).data == {"n": int(performed and at == 1)}
