"""Puts observations together from streams of samples: live, and on bags. The one place that decides what a policy sees."""

from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import RlcoError
from rlco_common.observation import Observation, joints_by_name
from rlco_common.pose import Pose


class ObservationUnavailable(RlcoError):
    """No observation can be given: a stream is missing, stale or ahead of the asked time. `stream` names it."""

    def __init__(self, stream: str, reason: str):
        super().__init__(f"{stream}: {reason}")
        self.stream = stream


@dataclass(frozen=True)
class _Sample:
    stamp_ns: int
    value: object


class ObservationAssembler:
    """Holds the newest sample of every stream that the contract's observation needs.

    Stamps are header stamps in nanoseconds of one clock. A sample older than the one held is dropped, so the order within
    a stream is never turned around.
    """

    def __init__(self, contract: Contract):
        self.contract = contract
        self._max_age_ns = {f"camera {name}": round(camera.max_age_s * 1e9) for name, camera in contract.cameras.items()}
        state_age_ns = round(contract.topics.state_max_age_s * 1e9)
        self._max_age_ns |= {"joint states": state_age_ns, "end-effector pose": state_age_ns}
        self.clear()

    def clear(self) -> None:
        """Forget everything, as at the start of an episode."""
        self._newest: dict[str, _Sample] = {}

    def add_image(self, camera: str, image: np.ndarray, stamp_ns: int) -> bool:
        """uint8 RGB [H, W, 3] at the camera's size. False when it is older than the one held."""
        return self._add(f"camera {camera}", image, stamp_ns)

    def add_joint_state(self, names, positions, stamp_ns: int) -> bool:
        """Joint names in any order. Raises DataError when a joint of the contract is missing."""
        return self._add("joint states", joints_by_name(self.contract, names, positions), stamp_ns)

    def add_ee_pose(self, pose: Pose, stamp_ns: int) -> bool:
        return self._add("end-effector pose", pose, stamp_ns)

    @property
    def complete_ns(self) -> int | None:
        """The newest stamp that every stream has reached; None while a stream is missing."""
        if len(self._newest) < len(self._max_age_ns):
            return None
        return min(sample.stamp_ns for sample in self._newest.values())

    def ages_s(self, now_ns: int) -> np.ndarray:
        """float32 [cameras + 1]: age of every image (contract order) and of the older state sample at `now_ns`."""
        names = list(self._max_age_ns)
        ages = [(now_ns - self._newest[name].stamp_ns) * 1e-9 for name in names]
        return np.array([*ages[:-2], max(ages[-2:])], np.float32)

    def observation_at(self, now_ns: int) -> Observation:
        """The observation at `now_ns`. Raises ObservationUnavailable when a stream is missing, stale or newer than that."""
        for name, limit_ns in self._max_age_ns.items():
            if name not in self._newest:
                raise ObservationUnavailable(name, "no sample yet")
            age_ns = now_ns - self._newest[name].stamp_ns
            if age_ns < 0:
                raise ObservationUnavailable(name, f"the sample is {-age_ns * 1e-9:.3f} s newer than the asked time")
            if age_ns > limit_ns:
                raise ObservationUnavailable(name, f"the newest sample is {age_ns * 1e-9:.3f} s old, more than "
                                                   f"{limit_ns * 1e-9:g} s")
        joints, gripper = self._newest["joint states"].value
        images = {name: self._newest[f"camera {name}"] for name in self.contract.cameras}
        return Observation(
            images={name: sample.value for name, sample in images.items()},
            ee_pose=self._newest["end-effector pose"].value, gripper=gripper, joint_positions=joints,
            stamp_ns=max(sample.stamp_ns for sample in images.values()),
        )

    def _add(self, stream: str, value, stamp_ns: int) -> bool:
        held = self._newest.get(stream)
        if held is not None and stamp_ns < held.stamp_ns:
            return False
        self._newest[stream] = _Sample(stamp_ns, value)
        return True
