"""The engine `ray` of `re4 data prepare`: the steps of the local engine, on partitions of a cluster.

Each chunk of the log is read by one call, which sends its events to partitions of users. Item codes are the
only thing of which one node holds all. References to results are held here; a result that is lost with its
node is made again from its chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any, Final

import numpy as np
import polars as pl

from re4.common.console import Bar
from re4.common.errors import Re4Error
from re4.common.ray_cluster import RayCluster, ray_cluster
from re4.training.data.distributed import partitions as calls
from re4.training.data.distributed.reading import exchange_chunk
from re4.training.data.distributed.survey import MAX_PARTITIONS, Sizes, SurveyedLog, survey_log
from re4.training.data.event_cleaning import (
    UserBounds,
    example_texts,
    first_examples,
    latest_time,
    refuse_only_future,
    user_bounds,
)
from re4.training.data.event_preparation import (
    EventsRequest,
    NumberedEvents,
    PreparedEvents,
    advice,
    cut_times,
    item_rows,
)
from re4.training.data.events import refuse_all_forgotten
from re4.training.data.k_core import refuse_nothing_left, round_counts
from re4.training.data.layout import IdKind
from re4.training.data.split import cut_places, refuse_empty
from re4.training.data.writing import Slab

_HASH_SEEDS: Final = 4
_MAX_SLABS: Final = 128


@contextmanager
def cluster_engine(
    address: str | None, sizes: Sizes | None = None
) -> Iterator[Callable[[EventsRequest, Bar], PreparedEvents]]:
    """Give a function that prepares a log by a cluster, as `prepare_events` does.

    Args:
        address: Of the cluster; None for the one that Ray finds, or a new one on this machine.
        sizes: None for the usual ones.

    Raises:
        UsageError: There is no such cluster, or the log is a data frame.
        DataError: The log cannot be used, or nothing is left of it.
        Re4Error: The cluster did not finish the work.
    """
    with ray_cluster(address) as cluster:
        yield lambda request, bar: _Job(cluster, request, bar, sizes or Sizes()).run()


class _Job:
    """The preparation of one log."""

    def __init__(self, cluster: RayCluster, request: EventsRequest, bar: Bar, sizes: Sizes) -> None:
        self._cluster = cluster
        self._request = request
        self._bar = bar
        self._sizes = sizes
        self._dropped: dict[str, int] = {}
        self._examples: list[str] = []

    def run(self) -> PreparedEvents:
        """Do all steps."""
        log = survey_log(self._cluster, self._request, self._bar, self._sizes)
        self._dropped, self._examples = log.dropped, log.examples
        timestamps = log.timestamps
        self._bar.advance()
        cuts = cut_times(timestamps, self._request.cuts)
        latest = latest_time(timestamps, self._request.now_s)
        items, users, facts = self._exchange(log, latest)
        self._dropped["duplicate_events"] = sum(each["num_duplicates"] for each in facts)
        users_by_number: dict[int, int] = {}
        for each in facts:
            for number, count in each["users_by_number"].items():
                users_by_number[number] = users_by_number.get(number, 0) + count
        bounds = UserBounds(latest=latest, stand_out=None, most=0)
        if users_by_number:
            bounds = user_bounds(
                users_by_number, latest=latest, max_user_events=self._request.max_user_events
            )
        num_items = len(items.item_ids)
        size = max(self._sizes.range_items, -(-num_items // MAX_PARTITIONS))
        ranges = [*range(0, num_items, size), num_items]
        counts, users, *changes = self._each(calls.clean_partition, users, (bounds, ranges), len(ranges) + 1)
        cleaned: list[calls.CleanCounts] = self._results(counts, "cleaning")
        for reason in cleaned[0].dropped:
            self._dropped[reason] = sum(each.dropped[reason] for each in cleaned)
        examples = example_texts(
            first_examples(each.examples for each in cleaned), bounds, timestamps, items.item_ids
        )
        refuse_only_future(timestamps, users_by_number, examples)
        self._examples += examples
        before = _Round(
            sum(each.num_users for each in cleaned), sum(each.num_events for each in cleaned), users, changes
        )
        core = self._k_core(before, ranges, self._request.min_events)
        words = advice(
            self._request.min_events,
            num_items=core.num_items_before,
            num_left=core.num_items,
            num_left_by_two=lambda: self._k_core(before, ranges, 2).num_items,
        )
        self._dropped |= {
            "users_below_min_events": sum(each["num_users"] for each in facts) - core.num_users,
            "items_below_min_events": num_items - core.num_items,
            "events_below_min_events": before.num_events - core.num_events,
        }
        self._bar.advance()
        cuts, first_and_last = self._times(core, cuts)
        numbered = self._number(core, ranges, items, cuts, log.exchange.kinds["user"])
        self._bar.advance()
        return PreparedEvents(
            file=log.file,
            timestamps=timestamps,
            first_and_last=first_and_last,
            stand_out_bound=bounds.stand_out,
            advice=words,
            cuts=cuts,
            dropped=self._dropped,
            examples=self._examples,
            numbered=numbered,
        )

    def _results(self, references: Sequence[Any], title: str) -> list[Any]:
        return self._cluster.results(references, self._bar.note, title)

    def _each(
        self, function: Callable[..., Any], users: Sequence[Any], arguments: tuple[Any, ...], num_results: int
    ) -> list[Sequence[Any]]:
        """Call a function on each partition; return the references to each of its results."""
        shared = [self._cluster.put(each) for each in arguments]
        made = [self._cluster.call(function, each, *shared, num_returns=num_results) for each in users]
        return list(zip(*made, strict=True))

    def _exchange(
        self, log: SurveyedLog, latest: float
    ) -> tuple[calls.ItemTable, Sequence[Any], list[dict[str, Any]]]:
        """Return the items by code, the partitions of users, and their facts."""
        for seed in range(_HASH_SEEDS):
            exchange = replace(log.exchange, hash_seed=seed)
            num_users, num_items = exchange.num_user_partitions, exchange.num_item_partitions
            shared = self._cluster.put(log.format), self._cluster.put(exchange)
            made = [
                self._cluster.call(exchange_chunk, *shared, chunk, num_returns=1 + num_users + num_items)
                for chunk in log.chunks
            ]
            counts, *slices = zip(*made, strict=True)
            read = self._results(counts, "reading events")
            reduce(add, (each.unreadable for each in read)).refuse(
                f"{log.file}: column {self._request.columns.timestamp!r}", exchange.time_form
            )
            if exchange.tombstones:
                self._dropped["events_of_forgotten_users"] = sum(each.num_forgotten for each in read)
                refuse_all_forgotten(log.file, sum(each.num_events for each in read))
            gathered = [self._cluster.call(calls.gather_items, *some) for some in slices[num_users:]]
            tables = self._results(gathered, "gathering items")
            if not any(has_equal_keys for has_equal_keys, _ in tables):
                break
        else:
            raise Re4Error(f"{log.file}: item ids have equal hashes under {_HASH_SEEDS} seeds")
        items = _joined([each for _, each in tables])
        order_N = np.argsort(items.keys_N)
        keys = self._cluster.put(items.keys_N[order_N])
        codes = self._cluster.put(order_N.astype(np.uint32))
        found = [
            self._cluster.call(calls.gather_users, keys, codes, latest, *some, num_returns=2)
            for some in slices[:num_users]
        ]
        del made, slices, gathered
        facts, users = zip(*found, strict=True)
        return items, users, self._results(facts, "sorting users")

    def _k_core(self, before: "_Round", ranges: Sequence[int], min_events: int) -> "_Core":
        """Do the rounds of the k-core."""
        users, changes = before.users, before.changes
        num_users, num_events = before.num_users, before.num_events
        counts: Sequence[Any] = [
            self._cluster.put(np.zeros(stop - start, np.int64)) for start, stop in pairwise(ranges)
        ]
        steps: list[str] = []
        nums_items: list[int] = []
        num_dropped = 1
        while num_dropped:
            counted = [
                self._cluster.call(calls.count_items, start, min_events, each, *some, num_returns=3)
                for start, each, some in zip(ranges, counts, changes, strict=False)
            ]
            found, counts, is_frequent = zip(*counted, strict=True)
            nums_items.append(sum(self._results(found, "counting items")))
            steps.append(round_counts(num_users, nums_items[-1], num_events))
            refuse_nothing_left(num_events, min_events, steps)
            arguments = (min_events, list(ranges))
            made = [
                self._cluster.call(
                    calls.drop_infrequent, each, *arguments, *is_frequent, num_returns=len(ranges) + 1
                )
                for each in users
            ]
            facts, users, *changes = zip(*made, strict=True)
            rounds = self._results(facts, f"dropping infrequent items and users, round {len(steps)}")
            num_users, num_events, num_dropped = (sum(some) for some in zip(*rounds, strict=True))
        return _Core(num_users, num_events, users, counts, nums_items[0], nums_items[-1])

    def _times(
        self, core: "_Core", cuts: tuple[float, float] | None
    ) -> tuple[tuple[float, float] | None, tuple[float, float]]:
        """Return the cuts of a split by time, and the times of the first and the last event."""
        asked = [self._cluster.call(calls.survey_times, each) for each in core.users]
        samples = [each for each in self._results(asked, "times") if each.num_events]
        times = [end.item() for each in samples for end in (each.times[0], each.times[-1])]
        first_and_last = float(min(times)), float(max(times))
        if self._request.split == "time" and cuts is None:
            first, second = (self._time_at(core, place, samples) for place in cut_places(core.num_events))
            cuts = first, second
        return cuts, first_and_last

    def _time_at(self, core: "_Core", place: int, samples: Sequence[calls.TimeSample]) -> float:
        """Return the time of the event at a place in the order of time."""
        low, high = calls.time_bounds(place, samples)
        asked = [self._cluster.call(calls.count_times, each, low, high) for each in core.users]
        found = self._results(asked, "times")
        num_earlier = sum(earlier for earlier, _, _ in found)
        times = np.concatenate([each for _, each, _ in found])
        numbers = np.concatenate([each for _, _, each in found])
        order = np.argsort(times)
        at = np.searchsorted(num_earlier + np.cumsum(numbers[order]), place, side="right")
        value: float = times[order][at].item()
        return value

    def _number(
        self,
        core: "_Core",
        ranges: Sequence[int],
        items: calls.ItemTable,
        cuts: tuple[float, float] | None,
        user_kind: IdKind,
    ) -> NumberedEvents:
        """Split the users, number the items, and return what is to be written."""
        found, split, *changes = self._each(
            calls.split_partition, core.users, (self._request.seed, cuts, list(ranges)), len(ranges) + 1
        )
        facts = self._results(found, "splitting")
        infos = calls.sum_infos([each["infos"] for each in facts])
        for reason in facts[0]["dropped"]:
            self._dropped[reason] = sum(each["dropped"][reason] for each in facts)
        refuse_empty(
            {name: info.num_users for name, info in infos.items()}, core.num_users, self._request.split
        )
        counted = [
            self._cluster.call(
                calls.count_items, start, 0, np.zeros(stop - start, np.int64), *some, num_returns=3
            )
            for (start, stop), some in zip(pairwise(ranges), changes, strict=True)
        ]
        train_N = np.concatenate(self._results([each[1] for each in counted], "counting items"))
        kept_N = np.flatnonzero(np.concatenate(self._results(core.counts, "counting items")))
        code_of_row_N, row_of_code_N = item_rows(train_N[kept_N])
        row_of_N = np.full(len(items.item_ids), -1, np.int32)
        row_of_N[kept_N] = row_of_code_N
        num_slabs = min(_MAX_SLABS, max(1, -(-core.num_events // self._sizes.slab_events)))
        bounds = _slab_bounds(facts, num_slabs)
        rows = self._cluster.put(row_of_N)
        cut = [
            self._cluster.call(calls.cut_partition, each, bounds, rows, num_returns=len(bounds) + 1)
            for each in split
        ]
        pieces = [[each] for each in cut] if not bounds else cut
        return NumberedEvents(
            item_ids=items.item_ids[kept_N[code_of_row_N]],
            num_never_in_train=int((train_N[kept_N] == 0).sum()),
            user_id_kind=user_kind,
            splits=infos,
            slabs=self._slabs(list(zip(*pieces, strict=True))),
        )

    def _slabs(self, pieces: list[Sequence[Any]]) -> Iterator[Slab]:
        """Yield the slabs in order; some are made ahead."""
        number, ahead = len(pieces), self._cluster.num_cores
        made: list[Any] = []
        for done in range(number):
            while pieces and len(made) <= ahead:
                made.append(self._cluster.call(calls.merge_slab, *pieces.pop(0)))
            (slab,) = self._results([made.pop(0)], f"writing part {done + 1:,} of {number:,}")
            yield slab


@dataclass(frozen=True)
class _Round:
    """Partitions before the k-core."""

    num_users: int
    num_events: int
    users: Sequence[Any]
    """References to partitions."""
    changes: Sequence[Sequence[Any]]
    """References to the events of items, by range of codes and partition."""


@dataclass(frozen=True)
class _Core:
    """Partitions after the k-core."""

    num_users: int
    num_events: int
    users: Sequence[Any]
    counts: Sequence[Any]
    """References to the numbers of events of items, by range of codes."""
    num_items_before: int
    num_items: int


def _joined(tables: Sequence[calls.ItemTable]) -> calls.ItemTable:
    """Return the items of all partitions by code: in the order of their first events."""
    first_N = np.concatenate([each.first_N for each in tables])
    order_N = np.argsort(first_N)
    return calls.ItemTable(
        pl.concat([each.item_ids for each in tables])[order_N],
        np.concatenate([each.keys_N for each in tables])[order_N],
        first_N[order_N],
    )


def _slab_bounds(facts: Sequence[dict[str, Any]], num_slabs: int) -> list[int]:
    """Return the positions of first events that cut the users into slabs of about as many events."""
    samples = np.concatenate([each["samples"] for each in facts])
    weights = np.concatenate([np.full(len(each["samples"]), each["weight"]) for each in facts])
    order = np.argsort(samples)
    ends = np.cumsum(weights[order])
    places = np.searchsorted(ends, ends[-1] * np.arange(1, num_slabs) / num_slabs)
    bounds: list[int] = np.unique(samples[order][places]).tolist()
    return bounds
