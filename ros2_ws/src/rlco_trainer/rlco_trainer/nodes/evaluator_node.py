"""The evaluator node: a protocol's trials as a lifecycle node. A thin shell around rlco_trainer.evaluation.

Configuring reads the protocol, activating runs its trials on a thread of its own, deactivating stops in the trial under way;
activating again goes on with the trials that are missing.
"""

import sys
import threading

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Float64, String

from rlco_common import topics
from rlco_common.errors import RlcoError
from rlco_common.ros import EVENT_QOS, STATE_QOS, RlcoLifecycleNode, declare, diagnostics, run_node
from rlco_trainer.protocol import load_protocol

PUBLISH_PERIOD_S = 0.5


class Stopped(RlcoError):
    """The node was deactivated in the middle of a trial."""


class EvaluatorNode(RlcoLifecycleNode):
    """Lifecycle node `evaluator`.

    Publishes ~/instructions (std_msgs/String, what the operator of a real table has to do, latched), ~/progress
    (std_msgs/Float64, 0 to 1), ~/result (std_msgs/String, rates and comparisons when all trials are done, latched) and its
    state on /diagnostics; on a real table also /evaluation/overlay.
    """

    def __init__(self):
        super().__init__("evaluator")
        declare(self, "protocol", "", "YAML file of the evaluation", read_only=True)
        self._instructions = self.create_publisher(String, "~/instructions", EVENT_QOS)
        self._progress = self.create_publisher(Float64, "~/progress", STATE_QOS)
        self._result = self.create_publisher(String, "~/result", EVENT_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self.create_timer(PUBLISH_PERIOD_S, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._done, self._total = 0, 0
        self._outcome: tuple[bytes, str] = (DiagnosticStatus.OK, "not started")
        self._unpublished = ""      # the result, until it is told

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._load)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop.clear()
        self._outcome = (DiagnosticStatus.OK, "evaluating")
        self._thread = threading.Thread(target=self._run, name="evaluation", daemon=True)
        self._thread.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_deactivate(state)

    def close(self) -> None:
        """Stop in the trial under way; what is recorded stays."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _load(self) -> None:
        source = self.get_parameter("protocol").value
        if not source:
            raise RlcoError("parameter protocol is empty; give a protocol's YAML file")
        self._protocol = load_protocol(source)
        self._total = len(self._protocol.initial_states) * len(self._protocol.checkpoints)
        self.get_logger().info(f"{source}: {self._total} trials -> {self._protocol.out}")

    # -- evaluation thread

    def _run(self) -> None:
        from rlco_trainer.evaluation import run_protocol  # brings torch, which an unconfigured node does not need
        from rlco_trainer.report import trials_text

        try:
            trials = run_protocol(self._protocol, quiet=True, say=self._say, watch=self._check, on_progress=self._on_progress)
        except Stopped:
            self._outcome = (DiagnosticStatus.OK, "stopped, can go on")
        except Exception as error:      # whatever ends the evaluation is its outcome; the node stays up to tell it
            self._outcome = (DiagnosticStatus.ERROR, f"{type(error).__name__}: {error}")
            self.get_logger().error(self._outcome[1])
        else:
            self._unpublished = trials_text(trials)
            self._outcome = (DiagnosticStatus.OK, "finished")

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("stopped")

    def _say(self, text: str) -> None:
        self.get_logger().info(text)
        self._instructions.publish(String(data=text))

    def _on_progress(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    # -- executor thread

    def _publish(self) -> None:
        level, text = self._outcome
        self._diagnostics.publish(diagnostics(self, "evaluator", level, text, {"done": self._done, "total": self._total}))
        if self._total:
            self._progress.publish(Float64(data=self._done / self._total))
        if self._unpublished:
            self.get_logger().info(self._unpublished)
            self._result.publish(String(data=self._unpublished))
            self._unpublished = ""


def main(args=None) -> int:
    return run_node(EvaluatorNode, args)


if __name__ == "__main__":
    sys.exit(main())
