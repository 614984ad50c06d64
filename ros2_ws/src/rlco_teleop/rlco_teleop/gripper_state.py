"""What is known about the gripper: commanded since the last reset, and measured. Pure."""

from collections.abc import Mapping

from rlco_common.contract import Contract


class GripperState:
    """The gripper's present opening, 0 closed to 1 open, for whoever is about to command it."""

    def __init__(self, contract: Contract):
        self._robot = contract.robot
        self._commanded: float | None = None
        self._measured: float | None = None

    def on_command(self, opening: float) -> None:
        """The gate commanded it."""
        self._commanded = opening

    def on_joints(self, positions: Mapping[str, float]) -> None:
        """Joint states of the arm; without the gripper's joint they say nothing."""
        if self._robot.gripper_joint in positions:
            self._measured = self._robot.gripper_opening(positions[self._robot.gripper_joint])

    def reset(self) -> None:
        """A new episode: the gate has forgotten what it commanded."""
        self._commanded = None

    @property
    def opening(self) -> float | None:
        """As commanded, else as measured. A held object keeps the measured opening away from the commanded one."""
        return self._measured if self._commanded is None else self._commanded

    @property
    def first_command(self) -> float | None:
        """What to command where nobody has yet, so that nothing changes: the measured opening. None once commanded.

        An episode without any gripper command has no gripper action to learn from.
        """
        return self._measured if self._commanded is None else None
