"""Trials on a table that no simulator resets: the operator places the objects and judges, the evaluator does the rest.

The cell (gate, arm, cameras, recorder, console) runs already; the policy node is the evaluator's. The operator's start and
judgement are the recorder's services, whoever calls them: console, another program, or the command line.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image
from std_msgs.msg import String

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent, event_from_json
from rlco_common.messages import image_from_msg
from rlco_common.processes import Processes
from rlco_common.records import TrialRecord
from rlco_common.ros import CAMERA_QOS, EVENT_QOS, image_to_msg, stamp_to_ns
from rlco_common.ros_client import RosClient
from rlco_trainer.overlay import blend, difference, read_photo
from rlco_trainer.protocol import Planned, Protocol
from rlco_trainer.sessions import START_TIMEOUT_S, PolicySeat

MOVE_TIMEOUT_S = 120.0
REARM_TIMEOUT_S = 600.0
JUDGED = ("success", "failure", "discard")


def run_real_trials(protocol: Protocol, contract: Contract, plan: Sequence[Planned],
                    finish: Callable[[Planned, TrialRecord], None], *, say: Callable[[str], None] = print,
                    watch: Callable[[], None] | None = None) -> None:
    """Run the planned trials; `finish` is called after each one. A discarded trial is run again.

    Raises Timeout when the operator does not act in `operator_timeout_s`, RlcoError when the graph lacks a node.
    """
    domain_id = int(os.environ.get("ROS_DOMAIN_ID", 0))
    reach = {"ROS_AUTOMATIC_DISCOVERY_RANGE": os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")}
    seat = PolicySeat(asynchronous=protocol.asynchronous, device=protocol.device, contract_source=protocol.contract)
    with Processes(protocol.out / "logs", domain_id, reach) as processes:
        def check() -> None:
            processes.check()
            if watch is not None:
                watch()

        with RosClient("evaluator_table", domain_id, check) as client:
            table = RealTable(client, contract, protocol, say)
            client.wait_active(seat.open(processes, protocol.checkpoints[plan[0].arm]), START_TIMEOUT_S)
            for number, planned in enumerate(plan, 1):
                seat.take(client, protocol.checkpoints[planned.arm])
                name = "" if protocol.blind else f", {planned.arm}"
                trial = None
                while trial is None:
                    trial = table.trial(planned, f"trial {number} of {len(plan)}{name}, initial state {planned.seed}")
                finish(planned, trial)


class RealTable:
    """The running cell and its operator."""

    def __init__(self, client: RosClient, contract: Contract, protocol: Protocol, say: Callable[[str], None]):
        self._client, self._contract, self._protocol, self._say = client, contract, protocol, say
        self._overlay = Overlay(client, contract)
        self._publisher = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        self._events: list[EpisodeEvent] = []
        client.node.create_subscription(
            String, EVENT_TOPIC, lambda message: self._events.append(event_from_json(message.data)), EVENT_QOS)
        client.wait_active("/recorder")
        client.wait_active("/gate")

    def trial(self, planned: Planned, title: str) -> TrialRecord | None:
        """Place, start, watch, judge; None when the operator discarded the trial."""
        state = self._protocol.states[planned.seed]
        if self._protocol.go_to_start:
            self._say(f"{title}: the arm goes to the start; keep clear")
            self._client.must_trigger(topics.START_GO, MOVE_TIMEOUT_S)
        operator = "policy" if self._protocol.blind else planned.arm
        self._client.set_parameters("/recorder", operator=operator)
        self._publisher.publish(String(data=EpisodeEvent(
            kind="reset", task=self._protocol.task, instruction=state.instruction, domain=self._protocol.domain,
            seed=planned.seed).to_json()))
        self._say(f"{title}: place the objects as on {topics.EVALUATION_OVERLAY} (\"{state.instruction}\"), then start the "
                  f"recording (console, or {topics.RECORDER_START})")
        self._overlay.show(read_photo(self._contract, state.photo))
        first = len(self._events)       # what was latched, or told of the trial before, is over
        started = self._await(("start",), first, "the operator's start")
        self._overlay.hide()
        return self._run(planned, title, started, first)

    def _run(self, planned: Planned, title: str, started: EpisodeEvent, first: int) -> TrialRecord | None:
        limit_s = self._contract.task(self._protocol.task).max_steps * self._contract.control_period_s
        self._client.wait_until(self._policy_enabled, REARM_TIMEOUT_S, "the gate to take the policy; re-arm it after a stop")
        begun = time.monotonic()
        self._say(f"{title}: the policy drives; judge it with success or failure (or discard, to run it again)")
        try:
            while (judged := self._newest(JUDGED, first, started.episode)) is None and time.monotonic() - begun < limit_s:
                self._client.spin_for(0.02)
        finally:
            lasted_s = time.monotonic() - begun
            self._client.set_bool(topics.GATE_ENABLE_POLICY, False)
        if judged is None:
            self._say(f"{title}: time is over ({limit_s:.0f} s), the arm holds; judge it")
            judged = self._await(JUDGED, first, "the operator's judgement", started.episode)
        if judged.kind == "discard":
            self._say(f"{title}: discarded, to be run again")
            return None
        takeovers = sum(event.kind == "takeover" for event in self._events[first:])
        return TrialRecord(
            policy=planned.arm, task=self._protocol.task, domain=self._protocol.domain, seed=planned.seed,
            instruction=self._protocol.states[planned.seed].instruction, success=judged.kind == "success" and not takeovers,
            failure=judged.kind == "failure", steps=max(1, math.ceil(lasted_s / self._contract.control_period_s)),
            checkpoint=self._protocol.checkpoints[planned.arm], contract_hash=self._contract.hash, over_ros=True,
            bag=self._bag(started.episode), extra={"takeovers": float(takeovers)})

    def _policy_enabled(self) -> bool:
        accepted, reason = self._client.set_bool(topics.GATE_ENABLE_POLICY, True)
        if not accepted:
            self._say(f"the gate refuses the policy: {reason}")
            self._client.spin_for(1.0)
        return accepted

    def _newest(self, kinds: tuple[str, ...], first: int, episode: str = "") -> EpisodeEvent | None:
        return next((event for event in reversed(self._events[first:])
                     if event.kind in kinds and episode in ("", event.episode)), None)

    def _await(self, kinds: tuple[str, ...], first: int, what: str, episode: str = "") -> EpisodeEvent:
        return self._client.wait_until(lambda: self._newest(kinds, first, episode), self._protocol.operator_timeout_s, what)

    def _bag(self, episode: str) -> str:
        """Where the recorder put an episode; empty where its directory is not on this machine."""
        answer = self._client.call(GetParameters, "/recorder/get_parameters", GetParameters.Request(names=["output_directory"]))
        bag = Path(answer.values[0].string_value) / episode
        return str(bag) if bag.is_dir() else ""


class Overlay:
    """Publishes the wanted state over the live image of the contract's first camera, while one is shown."""

    def __init__(self, client: RosClient, contract: Contract):
        self._camera = next(iter(contract.cameras.values()))
        self._node = client.node
        self._publisher = client.publisher(Image, topics.EVALUATION_OVERLAY, CAMERA_QOS)
        self._wanted = None
        self._subscription = None
        self.difference = math.nan

    def show(self, wanted) -> None:
        """From now on, blend every live image with this picture (uint8 RGB) and publish it."""
        self._wanted = wanted
        if self._subscription is None:
            self._subscription = self._node.create_subscription(Image, self._camera.topic, self._on_image, CAMERA_QOS)

    def hide(self) -> None:
        """No overlay while a policy runs: the images are the policy's then."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _on_image(self, message: Image) -> None:
        live = image_from_msg(self._camera, message)
        self.difference = difference(self._wanted, live)
        self._publisher.publish(image_to_msg(blend(self._wanted, live), message.header.frame_id,
                                             stamp_to_ns(message.header.stamp)))
