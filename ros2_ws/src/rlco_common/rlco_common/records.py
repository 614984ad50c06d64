"""Trial records and the statistics that every report is computed from.

A trial is one evaluated episode. Records are JSON lines; aggregates are always recomputed from them, because printed
averages go wrong (PAPER.md, Table I, first row).
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rlco_common.errors import DataError
from rlco_common.strict import from_mapping, to_mapping


@dataclass(frozen=True)
class TrialRecord:
    """One evaluated episode. `seed` pairs trials of different policies on the same initial state."""

    policy: str                 # name of the evaluated arm, e.g. "rl_co"
    task: str
    domain: str
    seed: int
    instruction: str
    success: bool
    failure: bool               # the task's failure condition was met (not merely out of time)
    steps: int                  # control ticks
    checkpoint: str
    contract_hash: str
    over_ros: bool = False
    variation: str = ""         # what the episode varies beside its seed, e.g. "objects=unseen"; empty: nothing
    checkpoint_digest: str = ""     # of its policy.json, 16 hex digits; empty: a policy server's, or not noted
    state: str = ""             # hash of the photograph that showed the initial state; empty: the seed determines it
    bag: str = ""               # directory of the recorded episode, and its video, as paths from the records' directory
    video: str = ""
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % Wilson interval, all in [0, 1]."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.successes / self.trials if self.trials else float("nan")

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}] (n={self.trials})"


def wilson(successes: int, trials: int, z: float = 1.959964) -> Rate:
    """Wilson score interval of a binomial proportion (Wilson 1927)."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return Rate(0, 0, 0.0, 1.0)
    p = successes / trials
    denominator = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / denominator
    half = z / denominator * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Rate(successes, trials, low, high)


def success_rate(records: Iterable[TrialRecord]) -> Rate:
    records = list(records)
    return wilson(sum(record.success for record in records), len(records))


def mcnemar(a: Iterable[TrialRecord], b: Iterable[TrialRecord]) -> tuple[int, int, float]:
    """Exact McNemar test on trials paired by task, domain and seed.

    Returns (pairs only a solved, pairs only b solved, two-sided p). Raises DataError when the pairing is not one to one.
    """
    def key(record):
        return record.task, record.domain, record.seed

    first = {key(record): record.success for record in a}
    second = {key(record): record.success for record in b}
    if first.keys() != second.keys():
        raise DataError(f"{len(first.keys() ^ second.keys())} trials have no partner; evaluate both on the same seeds")
    only_a = sum(first[k] and not second[k] for k in first)
    only_b = sum(second[k] and not first[k] for k in first)
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    return only_a, only_b, min(1.0, 2 * tail)


def on_common_seeds(a: Iterable[TrialRecord], b: Iterable[TrialRecord]) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """The trials of both for which the other one has a partner, for mcnemar."""
    a, b = list(a), list(b)
    common = {record.seed for record in a} & {record.seed for record in b}
    return [record for record in a if record.seed in common], [record for record in b if record.seed in common]


def append_records(path: Path, records: Iterable[TrialRecord]) -> None:
    """Append trial records as JSON lines; each line is flushed whole to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(to_mapping(record), sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_records(path: Path) -> list[TrialRecord]:
    """All records of a JSON-lines file. A cut last line (a killed run) is dropped; any other bad line raises."""
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(from_mapping(TrialRecord, json.loads(line), f"{path}:{number}"))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: not valid JSON: {error}") from error
    return records
