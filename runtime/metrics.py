"""Numbers of this process: counted in plain lists, read by /metrics and by the exporter. Counting costs under 1 us.

Names and labels are OpenTelemetry's (`messaging.process.duration`); Prometheus gets them with underscores and its unit
at the end (`messaging_process_duration_seconds`). Labels are names of contracts, codes and the like, never a tenant
or an id; what comes beyond MAX_SERIES of one metric is counted together under `otel_metric_overflow="true"`.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

MAX_SERIES = 1000  # of one metric
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds of the buckets of our own durations: a reply takes less than the conventions' 5 ms."""
LLM_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0)
"""Both as the conventions for generative AI name them."""
OVERFLOW = "otel.metric.overflow"

Kind = Literal["counter", "updown", "gauge"]
Values = tuple[str, ...]
Read = Callable[[], Iterable[tuple[Values, float]]]
_UNITS = {"s": "_seconds", "By": "_bytes"}
_NOT_PLAIN = re.compile(r"[^a-zA-Z0-9_]")


class Series:
    """One line of a histogram: how they are spread, and how much they are together."""

    __slots__ = ("_bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.buckets[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Metric:
    def __init__(self, name: str, unit: str, help_: str, labels: Values) -> None:
        self.name = name
        self.unit = unit
        self.help = help_
        self.labels = labels

    def attributes(self, values: Values) -> dict[str, str]:
        """An empty value is an absent label, as `error.type` of what went well."""
        if values == _TOO_MANY:
            return {OVERFLOW: "true"}
        return {label: value for label, value in zip(self.labels, values, strict=True) if value}


class Histogram(_Metric):
    """Values by label. Keep what series() returns where it is counted often."""

    def __init__(self, name: str, unit: str, help_: str, bounds: Sequence[float], labels: Values) -> None:
        super().__init__(name, unit, help_, labels)
        self.bounds = tuple(bounds)
        self._series: dict[Values, Series] = {}
        _metrics.append(self)

    def series(self, *values: str) -> Series:
        found = self._series.get(values)
        if found is None:
            place = values if len(self._series) < MAX_SERIES else _TOO_MANY
            found = self._series.setdefault(place, Series(self.bounds))
        return found

    def read(self) -> list[tuple[Values, Series]]:
        return list(self._series.items())


class Counter(_Metric):
    """A sum that only grows."""

    kind: Kind = "counter"

    def __init__(self, name: str, unit: str, help_: str, labels: Values = ()) -> None:
        super().__init__(name, unit, help_, labels)
        self._sums: dict[Values, float] = {}
        _metrics.append(self)

    def add(self, *values: str, by: float = 1) -> None:
        place = values if values in self._sums or len(self._sums) < MAX_SERIES else _TOO_MANY
        self._sums[place] = self._sums.get(place, 0) + by

    def read(self) -> list[tuple[Values, float]]:
        return list(self._sums.items())


class Observed(_Metric):
    """Numbers that somebody else keeps, read when they are asked for. Several may tell of one: equal labels add up."""

    def __init__(self, name: str, unit: str, help_: str, kind: Kind, labels: Values = ()) -> None:
        super().__init__(name, unit, help_, labels)
        self.kind = kind
        self._reads: list[Read] = []
        _metrics.append(self)

    def watch(self, read: Read) -> Callable[[], None]:
        """Ask read() from now on; returns what ends that. read must be quick and may be called in another thread."""
        self._reads.append(read)
        return lambda: self._reads.remove(read) if read in self._reads else None

    def read(self) -> list[tuple[Values, float]]:
        sums: dict[Values, float] = {}
        for read in list(self._reads):
            for values, value in read():
                place = values if values in sums or len(sums) < MAX_SERIES else _TOO_MANY
                sums[place] = sums.get(place, 0) + value
        return list(sums.items())


AnyMetric = Histogram | Counter | Observed
_metrics: list[AnyMetric] = []
_TOO_MANY: Values = ("\0",)


def everything() -> list[AnyMetric]:
    """Every metric of this process."""
    return list(_metrics)


@dataclass(frozen=True)
class Snapshot:
    """A metric at one moment, for the exporter."""

    metric: AnyMetric
    points: Sequence[tuple[Mapping[str, str], float | Series]]


def snapshot() -> list[Snapshot]:
    return [
        Snapshot(metric, [(metric.attributes(values), value) for values, value in metric.read()])
        for metric in everything()
    ]


def prometheus() -> str:
    """Everything in the Prometheus text format."""
    lines: list[str] = []
    for each in snapshot():
        metric = each.metric
        if not each.points:
            continue
        name = prometheus_name(metric)
        kind = "histogram" if isinstance(metric, Histogram) else "counter" if metric.kind == "counter" else "gauge"
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {kind}"]
        for attributes, value in each.points:
            if isinstance(value, Series):
                lines += _histogram(name, attributes, metric, value)
            else:
                lines.append(f"{name}{_labels(attributes)} {value:.15g}")
    return "".join(f"{line}\n" for line in lines)


def prometheus_name(metric: AnyMetric) -> str:
    name = _NOT_PLAIN.sub("_", metric.name) + _UNITS.get(metric.unit, "")
    return f"{name}_total" if not isinstance(metric, Histogram) and metric.kind == "counter" else name


def _histogram(name: str, attributes: Mapping[str, str], metric: AnyMetric, series: Series) -> list[str]:
    assert isinstance(metric, Histogram)
    lines, so_far = [], 0
    for bound, count in zip((*map("{:g}".format, metric.bounds), "+Inf"), list(series.buckets), strict=True):
        so_far += count
        lines.append(f"{name}_bucket{_labels({**attributes, 'le': bound})} {so_far}")
    labels = _labels(attributes)
    return [*lines, f"{name}_sum{labels} {series.total:.15g}", f"{name}_count{labels} {so_far}"]


def _labels(attributes: Mapping[str, str]) -> str:
    if not attributes:
        return ""
    pairs = (f'{_NOT_PLAIN.sub("_", name)}="{_escaped(value)}"' for name, value in attributes.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _cpu() -> list[tuple[Values, float]]:
    used = os.times()
    return [(("user",), used.user), (("system",), used.system)]


def _memory() -> list[tuple[Values, float]]:
    import psutil  # 3 MB that a process pays for when it is asked

    return [((), psutil.Process().memory_info().rss)]


Observed("process.cpu.time", "s", "CPU time of this process.", "counter", ("cpu.mode",)).watch(_cpu)
Observed("process.memory.usage", "By", "Resident memory of this process.", "updown").watch(_memory)
