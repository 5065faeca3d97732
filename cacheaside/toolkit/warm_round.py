"""One round of warming: what is in the cache already, and a load of what is not.

A round is a flow, written once for both worlds. It looks at a batch of keys in one round trip, loads what is
missing or would end too soon, in bulk where the function is a ``cached_many``, and looks again: only what is
then there counts as warmed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any, Final, cast

from msgspec import Struct

from cacheaside.cache import Cache
from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import Flow, Load, Together
from cacheaside.engine.look import Verdict
from cacheaside.engine.many import Item, look_many, read_many
from cacheaside.engine.read import read
from cacheaside.entry import Value
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.keys import Kind
from cacheaside.many import Batch
from cacheaside.plan import Plan, as_arguments

THERE: Final = (Verdict.FRESH, Verdict.EARLY)


class WarmReport(Struct, frozen=True, kw_only=True):
    """What a round has done; false if anything in it failed.

    It counts calls: ``warmed`` were loaded and stored, ``already_warm`` needed nothing, ``failed`` raised or
    could not be looked up, ``not_stored`` were answered and must not or could not be kept.
    """

    name: str
    """Of the job, or ``warming`` for a whole run."""
    warmed: int = 0
    already_warm: int = 0
    failed: int = 0
    not_stored: int = 0
    seconds: float = 0.0
    """How long it took."""
    error: Exception | None = None
    """The first one; one of the source or of the store ended the round."""
    jobs: tuple[WarmReport, ...] = ()
    """The reports of the single functions, in that of a whole run."""

    def __bool__(self) -> bool:
        return not self.failed and self.error is None

    def __str__(self) -> str:
        words = f"{self.name}: {self.warmed} warmed, {self.already_warm} already warm, {self.failed} failed"
        words += f", {self.not_stored} not stored" if self.not_stored else ""
        words += f" in {self.seconds:.1f} s"
        return f"{words} ({type(self.error).__name__}: {self.error})" if self.error is not None else words


class Tally:
    """A report in the making."""

    def __init__(self) -> None:
        self.warmed = self.already_warm = self.failed = self.not_stored = 0
        self.error: Exception | None = None

    @property
    def total(self) -> int:
        return self.warmed + self.already_warm + self.failed + self.not_stored

    def fail(self, error: Exception, count: int = 1) -> None:
        self.failed += count
        if self.error is None:
            self.error = error

    def report(self, name: str, seconds: float) -> WarmReport:
        return WarmReport(
            name=name, warmed=self.warmed, already_warm=self.already_warm, failed=self.failed,
            not_stored=self.not_stored, seconds=seconds, error=self.error,
        )  # fmt: skip


class Job:
    """A function to warm, and where its calls come from."""

    def __init__(self, f: Any, source: Any, every: float | None, name: str | None) -> None:
        handles = getattr(f, "_cacheaside", None)
        if handles is None:
            raise ConfigError(f"f must be a function decorated with cached or cached_many, not {f!r}")
        made, self.bound = cast("tuple[Plan | Batch, tuple[Any, ...]]", handles())
        self.batch = made if isinstance(made, Batch) else None
        self.plan: Plan = made.plan if isinstance(made, Batch) else made
        fn = self.plan.fn
        if self.plan.kind is Kind.METHOD and not self.bound:
            raise ConfigError(f"{fn.__qualname__} is a method: give an object's, such as repository.get")
        if not (callable(source) or is_listed(source)):
            raise ConfigError(f"source must be a list of ids or a function that returns one, not {source!r}")
        if every is not None and isinstance(source, Iterator):
            raise ConfigError("source is used up after one round: give the function that makes it")
        self.source: Any = source
        self.every = every
        self.is_async = self.plan.is_async
        self.name = name or f"{fn.__module__}.{fn.__qualname__}"

    def fetch(self) -> Callable[[], Any]:
        """The source, to be called or awaited as the function is."""

        async def later() -> Any:
            given = self.source()
            return await given if inspect.isawaitable(given) else given

        return later if self.is_async else self.source


class Round:
    """How the rounds of one warmer are done."""

    def __init__(self, cache: Cache, batch: int, concurrency: int) -> None:
        self.cache = cache
        self.batch = batch
        self.concurrency = concurrency

    def run(
        self,
        job: Job,
        *,
        need: float = 0.0,
        tell: Callable[[int], None] | None = None,
        stopped: Future[None] | None = None,
    ) -> Flow[WarmReport]:
        """Warm what the source of a job names.

        ``need`` is for how many seconds it must stay fresh; between batches ``tell`` is told how many calls
        one had, and nothing more is done once ``stopped``.
        """
        tally, tick = Tally(), self.cache.world.tick
        began = tick()
        try:
            calls = yield from self._calls(job)
            for chunk in chunks(calls, self.batch):
                if stopped is not None and stopped.done():
                    break
                yield from self._warm(job, chunk, tally, need)
                if tell is not None:
                    tell(len(chunk))
        except ConfigError:
            raise
        except Exception as error:  # of the source, or of a store that is away
            tally.fail(error, 0)
        return tally.report(job.name, tick() - began)

    def _calls(self, job: Job) -> Flow[Iterable[Any]]:
        if not callable(job.source):
            return cast("Iterable[Any]", job.source)
        loaded = yield Load(Call("", (), job.fetch()))
        if loaded.error is not None:
            raise loaded.error
        given: Any = loaded.value
        if not is_listed(given):
            if inspect.iscoroutine(given):
                given.close()
            raise ConfigError(f"the source of {job.name} must return ids, not {given!r}")
        return given  # type: ignore[no-any-return]

    def _warm(self, job: Job, chunk: list[Any], tally: Tally, need: float) -> Flow[None]:
        cache, site = job.plan.bound()
        if cache is not self.cache:
            raise ConfigError(f"{job.name} belongs to {cache!r}, and this warmer to {self.cache!r}")
        ids, calls = self._made(job, chunk, tally)
        before = tally.total
        try:
            soon, missing = yield from self._lacking(site, calls, tally, need)
            loaded: list[Call] = []
            for places, forced in ((soon, True), (missing, False)):
                if places and job.batch is not None:
                    loaded += yield from self._load_many(job.batch, site, ids, calls, places, forced, tally)
                elif places:
                    loaded += yield from self._load_each(site, [calls[n] for n in places], forced, tally)
            items = [Item(call) for call in loaded]
            if items:
                yield from look_many(site, items)
        except StoreUnavailable as error:
            site.counts.unavailable += 1
            tally.fail(error, len(calls) - (tally.total - before))
            raise
        stored = sum(item.seen.verdict in THERE for item in items)
        tally.warmed += stored
        tally.not_stored += len(items) - stored

    def _made(self, job: Job, chunk: list[Any], tally: Tally) -> tuple[Any, list[Call]]:
        """What names the items of a batch, and the calls that it stands for."""
        with_ids = None
        if job.batch is not None:
            given, with_ids = job.batch.split(*job.bound, chunk)
            chunk = job.batch.listed(given)
        calls: list[Call] = []
        made: list[Any] = []
        for one in chunk:
            try:
                args, kwargs = as_arguments(one) if with_ids is None else with_ids(one)
                calls.append(job.plan.call(args if with_ids else job.bound + args, kwargs))
                made.append(one)
            except Exception as error:  # arguments that the function does not take, or that make no key
                tally.fail(error)
        return (made, with_ids), calls

    def _lacking(
        self, site: Site, calls: list[Call], tally: Tally, need: float
    ) -> Flow[tuple[list[int], list[int]]]:
        """Which calls have a value that ends too soon, and which have none."""
        items = [Item(call) for call in calls]
        if items:
            yield from look_many(site, items)
        soon: list[int] = []
        missing: list[int] = []
        now = site.world.clock()
        for place, item in enumerate(items):
            slot, verdict = item.seen.slot, item.seen.verdict
            if verdict is Verdict.UNSTORABLE:
                tally.not_stored += 1
            elif isinstance(slot, Value) and verdict is not Verdict.MISS:
                if verdict in THERE and slot.soft - now >= need:
                    tally.already_warm += 1
                else:
                    soon.append(place)
            else:
                missing.append(place)
        return soon, missing

    def _load_each(self, site: Site, calls: list[Call], forced: bool, tally: Tally) -> Flow[list[Call]]:
        for call in calls:
            call.forced = forced
        ended = yield Together(tuple(read(site, call) for call in calls), self.concurrency)
        for one in ended:
            if one.error is not None:
                tally.fail(one.error)
        return [call for call, one in zip(calls, ended, strict=True) if one.error is None]

    def _load_many(
        self,
        batch: Batch,
        site: Site,
        ids: Any,
        calls: list[Call],
        places: list[int],
        forced: bool,
        tally: Tally,
    ) -> Flow[list[Call]]:
        wanted, with_ids = ids
        chosen = [calls[n] for n in places]
        try:
            yield from read_many(site, chosen, partial(batch.load, wanted, places, with_ids), forced=forced)
        except (ConfigError, StoreUnavailable):
            raise
        except Exception as error:
            tally.fail(error, len(chosen))
            return []
        return chosen


def is_listed(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes))


def chunks(calls: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(calls)
    while chunk := list(islice(rest, size)):
        yield chunk


def total(reports: Sequence[WarmReport], seconds: float) -> WarmReport:
    """The report of a whole run."""
    return WarmReport(
        name="warming",
        warmed=sum(r.warmed for r in reports),
        already_warm=sum(r.already_warm for r in reports),
        failed=sum(r.failed for r in reports),
        not_stored=sum(r.not_stored for r in reports),
        seconds=seconds,
        error=next((r.error for r in reports if r.error is not None), None),
        jobs=tuple(reports),
    )
