"""The trainer node: either stage as a lifecycle node. A thin shell around the loops that `rlco train` runs.

Configuring reads and checks the configuration, activating trains on a thread of its own, deactivating stops with a
checkpoint; activating again resumes.
"""

import sys

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from rlco_common.errors import RlcoError
from rlco_common.ros import STATE_QOS, declare, diagnostics, run_node
from rlco_trainer.config import StageOneConfig, StageTwoConfig, load_stage_config
from rlco_trainer.control import Progress, RunControl
from rlco_trainer.nodes.work import Ended, WorkNode
from rlco_trainer.stage1 import train_stage1
from rlco_trainer.stage2 import train_stage2

STAGES = {"1": (StageOneConfig, train_stage1), "2": (StageTwoConfig, train_stage2)}


class TrainerNode(WorkNode):
    """Lifecycle node `trainer`.

    Publishes ~/progress (std_msgs/Float64, 0 to 1), ~/metrics (diagnostic_msgs/DiagnosticArray, newest value of each
    metric), ~/result (std_msgs/String, path of the policy, latched) and its state on /diagnostics. Services ~/pause
    (SetBool), ~/checkpoint and ~/stop (Trigger); each takes effect after the step or iteration under way.
    """

    doing = "training"

    def __init__(self):
        super().__init__("trainer")
        declare(self, "stage", "1", "1: supervised co-training; 2: RL in the twin", choices=tuple(STAGES), read_only=True)
        declare(self, "config", "", "YAML file, or the name of a shipped configuration such as push_cube_stage1",
                read_only=True)
        declare(self, "overrides", [""], "key=value pairs that replace fields of the configuration", read_only=True)
        self._metrics = self.create_publisher(DiagnosticArray, "~/metrics", STATE_QOS)
        self.create_service(SetBool, "~/pause", self._on_pause)
        self.create_service(Trigger, "~/checkpoint", self._on_checkpoint)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self._newest: Progress | None = None
        self._published: Progress | None = None
        self._control: RunControl | None = None

    # -- what WorkNode asks for

    def _load(self) -> None:
        config_class, self._train = STAGES[self.get_parameter("stage").value]
        overrides = [text for text in self.get_parameter("overrides").value if text]
        source = self.get_parameter("config").value
        if not source:
            raise RlcoError("parameter config is empty; give a YAML file, or a shipped name such as push_cube_stage1")
        self._config = load_stage_config(config_class, source, overrides)
        self.get_logger().info(f"stage {self.get_parameter('stage').value}: {source} -> {self._config.out}")

    def _begin(self) -> None:
        self._control = RunControl(self._on_progress)

    def _work(self) -> Ended:
        policy = self._train(self._config, quiet=True, control=self._control)
        state = "stopped, can be resumed" if self._control.stopped else "finished"
        return Ended(state, str(policy), f"{state}: {policy}")

    def _ask_to_stop(self) -> None:
        """After the step under way, with a checkpoint."""
        self._control.stop()

    def _on_progress(self, progress: Progress) -> None:
        self._newest = progress

    def _publish(self, level: bytes, text: str) -> None:
        newest = self._newest
        if self._running and self._control.paused:
            text = "paused"
        values = {} if newest is None else {"step": newest.step, "total": newest.total}
        self._diagnostics.publish(diagnostics(self, "trainer", level, text, values))
        if newest is not None and newest is not self._published:
            self._published = newest
            self._progress.publish(Float64(data=newest.step / newest.total))
            self._metrics.publish(diagnostics(self, "training metrics", DiagnosticStatus.OK, f"step {newest.step}",
                                              {name: f"{value:.6g}" for name, value in newest.metrics.items()}))

    # -- services

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = self._running, "no training runs"
        if self._running:
            self._control.pause(request.data)
            response.message = "pauses after the step under way" if request.data else "goes on"
        return response

    def _on_checkpoint(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._running:
            response.message = "no training runs"
            return response
        self._control.checkpoint()
        response.success, response.message = True, f"a checkpoint follows the step under way, in {self._config.out}"
        return response

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = self._running, "no training runs"
        if self._running:
            self._control.stop()
            response.message = "stops after the step under way, with a checkpoint"
        return response


def main(args=None) -> int:
    return run_node(TrainerNode, args)


if __name__ == "__main__":
    sys.exit(main())
