"""The evaluator node: a protocol's trials as a lifecycle node. A thin shell around rlco_trainer.evaluation.

Configuring reads the protocol, activating runs its trials on a thread of its own, deactivating stops in the trial under way;
activating again goes on with the trials that are missing.
"""

import sys
import threading

from std_msgs.msg import Float64, String

from rlco_common.errors import RlcoError
from rlco_common.ros import EVENT_QOS, declare, diagnostics, run_node
from rlco_trainer.nodes.work import Ended, WorkNode
from rlco_trainer.protocol import load_protocol


class Stopped(RlcoError):
    """The node was deactivated in the middle of a trial."""


class EvaluatorNode(WorkNode):
    """Lifecycle node `evaluator`.

    Publishes ~/instructions (std_msgs/String, what the operator of a real table has to do, latched), ~/progress
    (std_msgs/Float64, 0 to 1), ~/result (std_msgs/String, rates and comparisons when all trials are done, latched) and its
    state on /diagnostics; on a real table also /evaluation/overlay.
    """

    doing = "evaluating"

    def __init__(self):
        super().__init__("evaluator")
        declare(self, "protocol", "", "YAML file of the evaluation", read_only=True)
        self._instructions = self.create_publisher(String, "~/instructions", EVENT_QOS)
        self._stop = threading.Event()
        self._done, self._total = 0, 0

    # -- what WorkNode asks for

    def _load(self) -> None:
        source = self.get_parameter("protocol").value
        if not source:
            raise RlcoError("parameter protocol is empty; give a protocol's YAML file")
        self._protocol = load_protocol(source)
        self._total = len(self._protocol.initial_states) * len(self._protocol.checkpoints)
        self.get_logger().info(f"{source}: {self._total} trials -> {self._protocol.out}")

    def _begin(self) -> None:
        self._stop.clear()

    def _work(self) -> Ended:
        from rlco_trainer.evaluation import run_protocol  # brings torch, which an unconfigured node does not need
        from rlco_trainer.report import trials_text

        try:
            trials = run_protocol(self._protocol, quiet=True, say=self._say, watch=self._check, on_progress=self._on_progress)
        except Stopped:
            return Ended("stopped, can go on")
        text = trials_text(trials)
        return Ended("finished", text, text)

    def _ask_to_stop(self) -> None:
        """In the trial under way; what is recorded stays."""
        self._stop.set()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("stopped")

    def _say(self, text: str) -> None:
        self.get_logger().info(text)
        self._instructions.publish(String(data=text))

    def _on_progress(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def _publish(self, level: bytes, text: str) -> None:
        self._diagnostics.publish(diagnostics(self, "evaluator", level, text, {"done": self._done, "total": self._total}))
        if self._total:
            self._progress.publish(Float64(data=self._done / self._total))


def main(args=None) -> int:
    return run_node(EvaluatorNode, args)


if __name__ == "__main__":
    sys.exit(main())
