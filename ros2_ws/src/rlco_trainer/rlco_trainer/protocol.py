"""What an evaluation consists of: a YAML file that says which policies meet which initial states, and in which order."""

import hashlib
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import yaml

from rlco_common.errors import ConfigError, DataError
from rlco_common.seeds import EVALUATION
from rlco_common.strict import from_mapping, load_yaml, to_mapping

REAL = "real"


@dataclass(frozen=True)
class InitialState:
    """A photographed initial state. photo: PNG or JPEG of the contract's first camera, or an episode bag (its first image)."""

    photo: Path
    instruction: str


@dataclass(frozen=True)
class Protocol:
    """Every policy of `checkpoints` meets every initial state once. Paths count from where the command runs.

    A simulated domain takes its states from seeds, a real table from photographs; a photograph's number is its seed.
    """

    task: str
    checkpoints: dict[str, str]             # name in records and report -> policy directory, or ws:// address of a server
    out: Path = Path()                      # records, bags, videos; default: runs/evaluation/NAME OF THE FILE
    domain: str = "standin"                 # twin, standin, a domain YAML, or real
    variation: str = ""                     # simulated: what episodes vary beside their seed
    trials: int = 0                         # number of initial states, the first ones; 0: 100 seeds, or all that are listed
    seeds: tuple[int, ...] = ()             # simulated: these seeds instead of the first evaluation seeds
    states: tuple[InitialState, ...] = ()   # real: the photographed initial states
    blind: bool = False                     # over ROS: policies in random order at every state, names hidden until the end
    order_seed: int = 0                     # of the blind order
    over_ros: bool = False                  # through topics and gate instead of in-process; a real table always is
    lockstep: bool = False                  # over ROS, simulated: lock step instead of real time
    asynchronous: bool = True               # over ROS, real time: see the policy node
    device: str = "cpu"                     # over ROS: where the policy runs, cpu or cuda
    videos: bool = True                     # over ROS: a film of every trial
    go_to_start: bool = True                # real: ask /start/go_to_start before every trial
    operator_timeout_s: float = 1800.0      # real: how long to wait for the operator
    workers: int = 2                        # in-process: worker processes
    contract: str = "panda_tabletop"

    def __post_init__(self):
        if not self.checkpoints:
            raise ValueError("checkpoints is empty; write NAME: DIRECTORY for every policy")
        if self.trials < 0:
            raise ValueError(f"trials is a number of initial states, got {self.trials}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds has a seed twice; every policy meets every state once")
        if self.real:
            self._check_real()
        elif self.states:
            raise ValueError(f"states are for domain: real; {self.domain} takes its initial states from seeds")
        if self.blind and not self.ros:
            raise ValueError("blind is for trials that somebody watches: set over_ros: true")
        if self.lockstep and not self.ros:
            raise ValueError("lockstep is for trials over ROS: set over_ros: true")

    def _check_real(self) -> None:
        if not self.states:
            raise ValueError("a real table needs states: a list of photo and instruction")
        if self.seeds or self.variation or self.lockstep:
            raise ValueError("seeds, variation and lockstep are for simulated domains; a real table has states")

    @property
    def real(self) -> bool:
        return self.domain == REAL

    @property
    def ros(self) -> bool:
        return self.over_ros or self.real

    @property
    def initial_states(self) -> list[int]:
        """Seeds of the initial states. Raises ConfigError when there are fewer than `trials`."""
        known = list(range(len(self.states))) if self.real else list(self.seeds or EVALUATION)
        if self.trials > len(known):
            raise ConfigError(f"trials: {self.trials}, but only {len(known)} initial states are given; add some, or lower it")
        return known[: self.trials or (100 if not self.real and not self.seeds else len(known))]


class Planned(NamedTuple):
    """One trial to come: which policy meets which initial state."""

    arm: str
    seed: int


def load_protocol(path: str | Path) -> Protocol:
    """Read a protocol. Raises ConfigError that names file and field."""
    path = Path(path)
    protocol = from_mapping(Protocol, load_yaml(path), str(path))
    return protocol if protocol.out != Path() else replace(protocol, out=Path("runs") / "evaluation" / path.stem)


def trial_order(protocol: Protocol) -> list[Planned]:
    """Every trial in the order in which they run.

    Simulated: policy by policy, for nothing drifts. Real: state by state, so that light and wear meet all policies alike.
    Blind: state by state, the policies of each in an order of its own, which `order_seed` determines.
    """
    arms, seeds = list(protocol.checkpoints), protocol.initial_states
    if not (protocol.real or protocol.blind):
        return [Planned(arm, seed) for arm in arms for seed in seeds]
    order = []
    for seed in seeds:
        shuffled = list(arms)
        if protocol.blind:
            random.Random(f"{protocol.order_seed}/{seed}").shuffle(shuffled)
        order += [Planned(arm, seed) for arm in shuffled]
    return order


def photo_hash(photo: Path) -> str:
    """16 hex digits of the photograph's content. Raises DataError when there is none."""
    files = sorted(photo.glob("*.mcap")) if photo.is_dir() else [photo]
    if not files or not files[0].is_file():
        raise DataError(f"{photo}: no such photograph; give a PNG, a JPEG or an episode bag")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def protocol_text(protocol: Protocol) -> str:
    """The resolved protocol as YAML that load_protocol reads."""
    return yaml.safe_dump(to_mapping(protocol), sort_keys=False, allow_unicode=True)
