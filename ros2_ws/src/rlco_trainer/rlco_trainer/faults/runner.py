"""Running faults one after another on one graph."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rlco_common.errors import ConfigError, RlcoError
from rlco_trainer.faults import commands, storage, streams
from rlco_trainer.faults.base import Fault, NotTried, Outcome, Verdict
from rlco_trainer.faults.graph import FaultGraph

ORDER = ("sim", "relay", "gate", "recorder", "teleop", "policy")


def catalogue() -> dict[str, Fault]:
    """Every fault by name: first those with an operator, then those with a policy, then those that restart a node."""
    faults = {fault.name: fault for group in (streams.FAULTS, commands.FAULTS, storage.FAULTS) for fault in group}
    late = ("kill_recorder", "kill_device", "kill_gate", "kill_policy", "clock_jump")
    return {name: faults[name] for name in (*(name for name in faults if name not in late), *late)}


def chosen(names: Sequence[str]) -> list[Fault]:
    """The faults of these names; 'all' stands for every one. Raises ConfigError listing the known names."""
    known = catalogue()
    unknown = [name for name in names if name not in known and name != "all"]
    if unknown:
        raise ConfigError(f"no fault '{', '.join(unknown)}'; there are {', '.join(known)}, and all")
    return [fault for name, fault in known.items() if "all" in names or name in names]


def run_faults(faults: Sequence[Fault], directory: Path, *, domain_id: int | None = None,
               contract_source: str = "panda_tabletop", checkpoint: Path | None = None,
               on_verdict: Callable[[Verdict], None] = lambda verdict: None) -> list[Verdict]:
    """Start the graph, try every fault, stop the graph. Bags and logs go to `directory`."""
    verdicts = []
    with FaultGraph(directory, domain_id, contract_source, checkpoint) as graph:
        graph.start(*_needed(faults))       # together: a policy and a simulator take some seconds each
        for fault in faults:
            verdicts.append(try_fault(graph, fault))
            on_verdict(verdicts[-1])
    return verdicts


def try_fault(graph: FaultGraph, fault: Fault) -> Verdict:
    """Bring up what the fault needs, try it, and judge."""
    began_s = time.monotonic()
    status = "not tried"
    try:
        graph.require(*(name for name in ORDER if name in fault.needs))
        began_s = time.monotonic()
        status = "broken"
        outcome = fault.check(graph)
        status = "held" if outcome.held else "broken"
    except NotTried as error:
        status, outcome = "not tried", Outcome(False, str(error))
    except RlcoError as error:
        outcome = Outcome(False, str(error))
    return Verdict(fault.name, status, outcome.figure, fault.promise, round(time.monotonic() - began_s, 2))


def _needed(faults: Iterable[Fault]) -> list[str]:
    wanted = {name for fault in faults for name in fault.needs}
    return [name for name in ORDER if name in wanted]
