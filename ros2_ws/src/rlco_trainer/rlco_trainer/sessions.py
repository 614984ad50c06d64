"""Sessions over ROS on a simulated robot: record demonstrations, deploy a policy. Real processes, real topics."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String
from tqdm import tqdm

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_common.episode import event_from_json
from rlco_common.errors import RlcoError
from rlco_common.messages import diagnostic_values
from rlco_common.processes import Processes
from rlco_common.records import TrialRecord, append_records
from rlco_common.ros import STATE_QOS
from rlco_common.ros_client import RosClient
from rlco_common.seeds import REAL_DEMOS
from rlco_policy.opening import SCHEMES
from rlco_sim_bridge.variation import NOMINAL, Variation
from rlco_teleop.bags import find_episodes, read_episode_metadata
from rlco_trainer.protocol import Planned

POLICY_MODULE = "rlco_policy.nodes.policy_node"
START_TIMEOUT_S = 120.0     # the first scene of a process compiles its shaders
START_GATE_S = 20.0
START_RECORDING_S = 20.0    # real pictures of a busy machine may be a while on their way
MIN_SUCCESS_SHARE = 0.5     # an operator that fails more often than this is broken; do not go on for ever


@dataclass
class Session:
    """A running graph: bridge, gate, recorder and one driver (scripted operator or policy)."""

    contract: Contract
    client: RosClient
    task: str
    domain: str
    lockstep: bool
    faulted: bool = False

    def __post_init__(self):
        self._scenes = self.client.subscribe(String, topics.SCENE, STATE_QOS)
        self._gate = self.client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self._start_ns = 0      # stamp of the episode's first observation

    def reset(self, seed: int) -> None:
        """Put the scene into the episode's initial state, re-arm the gate if a fault ended the last one, and record.

        On return the gate has heard of the reset: what it is told from then on holds for this episode.
        """
        self._start_ns = reset_scene(self.client, seed)
        if self.faulted:
            self.client.must_trigger(topics.GATE_REARM)
            self.faulted = False
        # the recorder refuses until the first observation of the new scene has reached it
        self.client.trigger_when_ready(topics.RECORDER_START, START_RECORDING_S)
        self.client.wait_until(self._gate_ready, START_GATE_S, "the gate to take the scene and to be neither STOPPED nor FAULT")

    def _gate_ready(self) -> bool:
        return self._gate.last is not None and in_episode(self._gate.last, self._start_ns) and not _latched(self._gate.last)

    def operate(self) -> dict:
        """Let the scripted operator act until the episode is over; see `run`."""
        return self.run(lambda: self.client.trigger_when_ready(topics.OPERATOR_START),
                        lambda: self.client.trigger(topics.OPERATOR_STOP))

    def run(self, start: Callable[[], None], stop: Callable[[], None]) -> dict:
        """Let the driver act until the episode is over; {success, failure, steps} as the bridge judges it.

        A gate that latches a stop or fault ends the episode as a failure.
        """
        self._scenes.clear()
        self._gate.clear()
        try:
            start()
            limit_s = 120.0 if self.lockstep else 10.0 + 3.0 * self._max_steps * self.contract.control_period_s
            self.client.wait_until(lambda: self._scenes.find(self._over) or self._gate.find(_latched), limit_s,
                                   f"the end of the episode on {topics.SCENE}")
        finally:
            stop()
        self.faulted = self._gate.find(_latched) is not None
        outcome = json.loads(self.client.trigger(topics.SIM_SUCCESS)[1])
        return outcome | {"success": False, "failure": True} if self.faulted else outcome

    @property
    def _max_steps(self) -> int:
        return self.contract.task(self.task).max_steps

    def _over(self, message: String) -> bool:
        state = json.loads(message.data)
        ended = state["success"] or state["failure"] or state["steps"] >= self._max_steps
        return ended and state["stamp_ns"] >= self._start_ns


@contextmanager
def open_session(contract: Contract, out: Path, *, task: str, domain: str, lockstep: bool, operator: str,
                 driver: Callable[[Processes], str], variation: Variation = NOMINAL,
                 contract_source: str = "panda_tabletop", watch: Callable[[], None] | None = None) -> Iterator[Session]:
    """Start the graph, wait until every node is active, and stop it at the end.

    driver: starts the node that drives the arm and returns its name. Bags go to `out`, logs to `out/logs`. watch: called
    while waiting, may raise to end the session.
    """
    def check() -> None:
        processes.check()
        if watch is not None:
            watch()

    domain_id = int(os.environ.get("ROS_DOMAIN_ID", 1 + os.getpid() % 90))
    common = {"contract": contract_source, "use_sim_time": lockstep}
    with Processes(out / "logs", domain_id) as processes, RosClient("session", domain_id, check) as client:
        processes.start_node("rlco_sim_bridge.nodes.bridge_node", task=task, domain=domain, lockstep=lockstep,
                             variation=variation.text(), **common)
        processes.start_node("rlco_teleop.nodes.gate_node", lockstep=lockstep, **common)
        processes.start_node("rlco_teleop.nodes.recorder_node", output_directory=str(out.absolute()), operator=operator,
                             **common)
        driving = driver(processes)
        for node in ("/sim", "/gate", "/recorder", driving):
            client.wait_active(node, START_TIMEOUT_S)
        yield Session(contract, client, task, domain, lockstep)


def record_episodes(contract: Contract, out: Path, *, task: str, domain: str = "standin", count: int = 20,
                    noise: float = 0.1, variation: Variation = NOMINAL, lockstep: bool = True,
                    quiet: bool = False) -> list[Path]:
    """Record `count` successful demonstrations of the scripted operator; failed ones are discarded.

    Episodes that `out` already holds count, so a stopped recording goes on. Returns the bags.
    """
    recorded = {read_episode_metadata(bag).seed: bag for bag in find_episodes(out)} if out.exists() else {}
    seeds = (seed for seed in REAL_DEMOS if seed not in recorded)
    if len(recorded) >= count:
        return find_episodes(out)

    def driver(processes: Processes) -> str:
        processes.start_node("rlco_teleop.nodes.teleop_node", device="scripted", noise=noise, lockstep=lockstep,
                             use_sim_time=lockstep)
        return "/teleop"

    with (open_session(contract, out, task=task, domain=domain, lockstep=lockstep, operator="scripted",
                       driver=driver, variation=variation) as session,
          tqdm(total=count, initial=len(recorded), desc=f"record {task} on {domain}", disable=quiet) as bar):
        client, tried = session.client, 0
        while len(recorded) < count:
            seed = next(seeds)
            session.reset(seed)
            outcome = session.operate()
            tried += 1
            if outcome["success"]:
                recorded[seed] = Path(client.must_trigger(topics.RECORDER_SUCCESS))
                bar.update()
            else:
                client.must_trigger(topics.RECORDER_DISCARD)
                if tried >= 10 and len(recorded) < MIN_SUCCESS_SHARE * tried:
                    raise RlcoError(f"the scripted operator succeeded in {len(recorded)} of {tried} episodes; lower --noise")
    return find_episodes(out)


def deploy_episodes(contract: Contract, checkpoint: Path | str, out: Path, *, task: str, domain: str = "standin",
                    seeds: Iterable[int] = (), name: str = "rl_co", variation: Variation = NOMINAL,
                    lockstep: bool = False, asynchronous: bool = True, quiet: bool = False) -> list[TrialRecord]:
    """Run a checkpoint over ROS through the gate, one recorded bag and one trial record per seed.

    checkpoint: a directory, or the address of a policy server (ws://). asynchronous: real time only, see the policy node.
    """
    from rlco_trainer.evaluation import checkpoint_digest  # imports this module for trials over ROS

    trials, digest = [], checkpoint_digest(checkpoint)

    def finish(planned: Planned, trial: TrialRecord) -> None:
        trials.append(replace(trial, bag=os.path.relpath(trial.bag, out), checkpoint_digest=digest))
        append_records(out / "trials.jsonl", trials[-1:])

    run_simulated_trials(contract, {name: str(checkpoint)}, [Planned(name, seed) for seed in seeds], out, finish, task=task,
                         domain=domain, variation=variation, lockstep=lockstep, asynchronous=asynchronous, quiet=quiet)
    return trials


def run_simulated_trials(contract: Contract, checkpoints: Mapping[str, str], plan: Sequence[Planned], out: Path,
                         finish: Callable[[Planned, TrialRecord], None], *, task: str, domain: str,
                         variation: Variation = NOMINAL, lockstep: bool = False, asynchronous: bool = True, blind: bool = False,
                         device: str = "cpu", contract_source: str = "panda_tabletop", quiet: bool = False,
                         watch: Callable[[], None] | None = None) -> None:
    """Run the planned trials over ROS, through the gate, each recorded; `finish` is called after each one.

    checkpoints: arm -> directory or address of a policy server. blind: nothing that is shown or recorded names an arm.
    The trials' `bag` is the recorded episode's directory.
    """
    seat = PolicySeat(lockstep=lockstep, asynchronous=asynchronous, device=device, contract_source=contract_source)
    who = "trials" if blind else " and ".join(checkpoints)

    def driver(processes: Processes) -> str:
        return seat.open(processes, checkpoints[plan[0].arm])

    with (open_session(contract, out, task=task, domain=domain, lockstep=lockstep, operator="policy", driver=driver,
                       variation=variation, contract_source=contract_source, watch=watch) as session,
          tqdm(total=len(plan), desc=f"deploy {who} on {domain}", disable=quiet, dynamic_ncols=True) as bar):
        client = session.client
        for planned in plan:
            seat.take(client, checkpoints[planned.arm])
            client.set_parameters("/recorder", operator="policy" if blind else planned.arm)
            session.reset(planned.seed)
            outcome = session.run(lambda: enable_policy(client), lambda: client.set_bool(topics.GATE_ENABLE_POLICY, False))
            bag = client.must_trigger(topics.RECORDER_SUCCESS if outcome["success"] else topics.RECORDER_FAIL)
            finish(planned, TrialRecord(
                policy=planned.arm, task=task, domain=domain, seed=planned.seed,
                instruction=read_episode_metadata(bag).instruction, success=outcome["success"], failure=outcome["failure"],
                steps=outcome["steps"], checkpoint=checkpoints[planned.arm], contract_hash=contract.hash, over_ros=True,
                variation=variation.text(), bag=bag))
            bar.update()


class PolicySeat:
    """The place of the policy node in a graph: one policy at a time, each in a process of its own."""

    def __init__(self, *, lockstep: bool = False, asynchronous: bool = True, device: str = "cpu",
                 contract_source: str = "panda_tabletop"):
        self._parameters = {"lockstep": lockstep, "use_sim_time": lockstep, "asynchronous": asynchronous, "device": device,
                            "contract": contract_source}
        self._processes: Processes | None = None
        self._checkpoint = ""

    def open(self, processes: Processes, checkpoint: str) -> str:
        """Start the node with a first checkpoint; returns its name. Waiting until it is active is the caller's."""
        self._processes, self._checkpoint = processes, checkpoint
        source = checkpoint if checkpoint.startswith(SCHEMES) else str(Path(checkpoint).absolute())
        processes.start_node(POLICY_MODULE, checkpoint=source, **self._parameters)
        return "/policy"

    def take(self, client: RosClient, checkpoint: str) -> None:
        """Let the node run `checkpoint`, and wait until it is active."""
        if checkpoint == self._checkpoint:
            return
        self._processes.stop(POLICY_MODULE.rpartition(".")[2])
        client.wait_active(self.open(self._processes, checkpoint), START_TIMEOUT_S)


def reset_scene(client: RosClient, seed: int) -> int:
    """Let the bridge begin episode `seed`; the stamp of its first observation, nanoseconds. See `in_episode`."""
    client.set_parameters("/sim", seed=seed)
    return event_from_json(client.must_trigger(topics.SIM_RESET, timeout_s=30.0)).stamp_ns


def in_episode(message: DiagnosticArray, start_ns: int) -> bool:
    """Whether a gate's status is of the episode that began at `start_ns`, as the answer of /sim/reset tells it."""
    return diagnostic_values(message.status[0]).get("episode_start_ns") == str(start_ns)


def _latched(message: DiagnosticArray) -> bool:
    return message.status[0].message in ("FAULT", "STOPPED")


def enable_policy(client: RosClient) -> None:
    """Hand the arm to the policy. Raises RlcoError with the gate's reason when it refuses."""
    accepted, reason = client.set_bool(topics.GATE_ENABLE_POLICY, True)
    if not accepted:
        raise RlcoError(f"{topics.GATE_ENABLE_POLICY} refused: {reason}")
