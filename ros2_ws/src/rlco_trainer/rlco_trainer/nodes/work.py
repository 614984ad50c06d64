"""A lifecycle node whose active state is one long piece of work: what trainer and evaluator share."""

import threading
from dataclasses import dataclass
from typing import ClassVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Float64, String

from rlco_common import topics
from rlco_common.ros import EVENT_QOS, STATE_QOS, RlcoLifecycleNode

PUBLISH_PERIOD_S = 0.5


@dataclass(frozen=True)
class Ended:
    """How the work ended: its state in a few words, what ~/result says ("": nothing), and the line for the log."""

    state: str
    result: str = ""
    log: str = ""


class WorkNode(RlcoLifecycleNode):
    """Configuring calls `_load`, activating runs `_work` on a thread of its own, deactivating asks it to stop and waits.

    Whatever ends the work is its outcome, which the node stays up to tell: `_publish`, twice a second in the executor's
    thread, is given its level and text. ~/progress (std_msgs/Float64) and ~/result (std_msgs/String, latched) are there for
    the subclass.
    """

    doing: ClassVar[str]

    def __init__(self, name: str):
        super().__init__(name)
        self._progress = self.create_publisher(Float64, "~/progress", STATE_QOS)
        self._result = self.create_publisher(String, "~/result", EVENT_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self.create_timer(PUBLISH_PERIOD_S, self._tell, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._thread: threading.Thread | None = None
        self._outcome: tuple[bytes, str] = (DiagnosticStatus.OK, "not started")
        self._ended: Ended | None = None        # until it is told

    # -- for the subclass

    def _load(self) -> None:
        """Read and check what the work needs; RlcoError refuses the transition."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Get ready for a run of `_work`, in the executor's thread."""
        raise NotImplementedError

    def _work(self) -> Ended:
        """The work, in its own thread."""
        raise NotImplementedError

    def _ask_to_stop(self) -> None:
        raise NotImplementedError

    def _publish(self, level: bytes, text: str) -> None:
        raise NotImplementedError

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._load)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._begin()
        self._outcome = (DiagnosticStatus.OK, self.doing)
        self._thread = threading.Thread(target=self._run, name=self.doing, daemon=True)
        self._thread.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_deactivate(state)

    def close(self) -> None:
        """Stop the work; called at deactivation and at the end of the process."""
        if self._thread is not None:
            self._ask_to_stop()
            self._thread.join()
            self._thread = None

    @property
    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        try:
            ended = self._work()
        except Exception as error:      # whatever ends the work is its outcome; the node stays up to tell it
            self._outcome = (DiagnosticStatus.ERROR, f"{type(error).__name__}: {error}")
            self.get_logger().error(self._outcome[1])
            return
        self._outcome = (DiagnosticStatus.OK, ended.state)
        self._ended = ended

    def _tell(self) -> None:
        self._publish(*self._outcome)
        ended, self._ended = self._ended, None
        if ended is not None and ended.result:
            self.get_logger().info(ended.log)
            self._result.publish(String(data=ended.result))
