"""What the bridge node does between its topics: one robot cell at a time, in any domain. No ROS."""

import json
import time
from collections import deque

import numpy as np

from rlco_common.contract import Contract
from rlco_common.episode import EpisodeEvent
from rlco_common.errors import TwinError
from rlco_common.observation import Observation
from rlco_common.pose import Pose
from rlco_sim_bridge.scene_state import StepResult
from rlco_sim_bridge.twin import Twin

EPISODE_GAP_S = 1.0    # simulated time between two episodes, and before the first


class SimulatedCell:
    """The table behind the topics. Keeps one twin for every task and domain that was asked for."""

    def __init__(self, contract: Contract):
        self._contract = contract
        self._twins: dict[tuple[str, str], Twin] = {}
        self._twin: Twin | None = None
        self.result = StepResult(False, False, 0, False)

    def reset(self, task: str, domain: str, seed: int) -> EpisodeEvent:
        """Start an episode and say so. Raises ConfigError for an unknown task or domain, TwinError without a renderer."""
        if seed < 0:
            raise TwinError(f"seed {seed} is negative; episode seeds start at 0")
        key = (task, domain)
        if key not in self._twins:
            self._twins[key] = Twin(self._contract, task, domain)
        self._twin = self._twins[key]
        self._twin.reset(seed)
        self.result = StepResult(False, False, 0, False)
        self._target, self._gripper = self._twin.target, self._twin.observe(images=False).gripper
        return EpisodeEvent(kind="reset", task=task, instruction=self._twin.instruction,
                            domain=self._twin.domain.name, seed=seed)

    def command(self, target: Pose | None = None, gripper: float | None = None) -> None:
        """What the arm and the gripper shall do from now on. Raises ValueError on a non-finite command."""
        if target is not None:
            if not target.is_finite():
                raise ValueError(f"non-finite target pose {target.as_array().tolist()}")
            self._target = target
        if gripper is not None:
            if not np.isfinite(gripper):
                raise ValueError(f"non-finite gripper command {gripper}")
            self._gripper = gripper

    def advance(self, duration_s: float) -> StepResult:
        """Simulate under the latest command."""
        self.result = self._twin.apply_target(self._target, self._gripper, duration_s)
        return self.result

    def observe(self, images: bool) -> Observation:
        return self._twin.observe(images)

    def camera_intrinsics(self, camera: str) -> np.ndarray:
        """[3, 3] pinhole matrix of a contract camera in this episode's domain, pixels."""
        spec = self._contract.cameras[camera]
        return self._twin.domain.cameras[camera].intrinsics(spec.width, spec.height)

    def scene_text(self, stamp_ns: int) -> str:
        """JSON of the privileged state, with the stamp of the observation it belongs to and the episode's flags."""
        return json.dumps(json.loads(self._twin.scene_state().to_json()) | {"stamp_ns": stamp_ns} | self._flags())

    def status_text(self) -> str:
        """JSON with success, failure, done, steps, and how many targets were out of the arm's reach."""
        return json.dumps(self._flags() | {"unreached_targets": self.unreached_targets})

    @property
    def unreached_targets(self) -> int:
        """Commanded targets of this episode that were out of the arm's reach; the arm held still for those."""
        return self._twin.unreached_targets if self._twin else 0

    def close(self) -> None:
        for twin in self._twins.values():
            twin.close()
        self._twins.clear()
        self._twin = None

    def _flags(self):
        result = self.result
        return {"success": result.success, "failure": result.failure, "done": result.done, "steps": result.steps}


class LockstepClock:
    """Stamps of lock-step ticks in nanoseconds: one period apart, never going back, with a gap between episodes."""

    def __init__(self, period_ns: int):
        self._period_ns = period_ns
        self.now_ns = 0

    def new_episode(self) -> int:
        self.now_ns += round(EPISODE_GAP_S * 1e9)
        return self.now_ns

    def tick(self) -> int:
        self.now_ns += self._period_ns
        return self.now_ns


class RealTimeMeter:
    """Simulated seconds per second over the last `window_s`."""

    def __init__(self, window_s: float = 2.0, clock=time.monotonic):
        self._window_s = window_s
        self._clock = clock
        self._marks = deque([(clock(), 0.0)])

    def add(self, simulated_s: float) -> None:
        now = self._clock()
        self._marks.append((now, self._marks[-1][1] + simulated_s))
        while now - self._marks[1][0] > self._window_s:
            self._marks.popleft()

    @property
    def factor(self) -> float:
        """1 is real time; NaN before there is anything to measure."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start else float("nan")
