"""The trainer node: either stage as a lifecycle node. A thin shell around the loops that `rlco train` runs.

Configuring reads and checks the configuration, activating trains on a thread of its own, deactivating stops with a
checkpoint; activating again resumes.
"""

import sys
import threading
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Float64, String
from std_srvs.srv import SetBool, Trigger

from rlco_common import topics
from rlco_common.errors import RlcoError
from rlco_common.ros import EVENT_QOS, STATE_QOS, RlcoLifecycleNode, declare, diagnostics, run_node
from rlco_trainer.config import StageOneConfig, StageTwoConfig, load_stage_config
from rlco_trainer.control import Progress, RunControl
from rlco_trainer.stage1 import train_stage1
from rlco_trainer.stage2 import train_stage2

STAGES = {"1": (StageOneConfig, train_stage1), "2": (StageTwoConfig, train_stage2)}
PUBLISH_PERIOD_S = 0.5


class TrainerNode(RlcoLifecycleNode):
    """Lifecycle node `trainer`.

    Publishes ~/progress (std_msgs/Float64, 0 to 1), ~/metrics (diagnostic_msgs/DiagnosticArray, newest value of each
    metric), ~/result (std_msgs/String, path of the policy, latched) and its state on /diagnostics. Services ~/pause
    (SetBool), ~/checkpoint and ~/stop (Trigger); each takes effect after the step or iteration under way.
    """

    def __init__(self):
        super().__init__("trainer")
        declare(self, "stage", "1", "1: supervised co-training; 2: RL in the twin", choices=tuple(STAGES), read_only=True)
        declare(self, "config", "", "YAML file, or the name of a shipped configuration such as push_cube_stage1",
                read_only=True)
        declare(self, "overrides", [""], "key=value pairs that replace fields of the configuration", read_only=True)
        self._progress = self.create_publisher(Float64, "~/progress", STATE_QOS)
        self._metrics = self.create_publisher(DiagnosticArray, "~/metrics", STATE_QOS)
        self._result = self.create_publisher(String, "~/result", EVENT_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self.create_service(SetBool, "~/pause", self._on_pause)
        self.create_service(Trigger, "~/checkpoint", self._on_checkpoint)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_timer(PUBLISH_PERIOD_S, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._newest: Progress | None = None
        self._published: Progress | None = None
        self._control: RunControl | None = None
        self._thread: threading.Thread | None = None
        self._policy: Path | None = None
        self._outcome: tuple[bytes, str] = (DiagnosticStatus.OK, "not started")

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._load)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._control = RunControl(self._on_progress)
        self._outcome = (DiagnosticStatus.OK, "training")
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_deactivate(state)

    def close(self) -> None:
        """Stop after the step under way, with a checkpoint."""
        if self._thread is not None:
            self._control.stop()
            self._thread.join()
            self._thread = None

    def _load(self) -> None:
        config_class, self._train = STAGES[self.get_parameter("stage").value]
        overrides = [text for text in self.get_parameter("overrides").value if text]
        source = self.get_parameter("config").value
        if not source:
            raise RlcoError("parameter config is empty; give a YAML file, or a shipped name such as push_cube_stage1")
        self._config = load_stage_config(config_class, source, overrides)
        self.get_logger().info(f"stage {self.get_parameter('stage').value}: {source} -> {self._config.out}")

    # -- training thread

    def _run(self) -> None:
        try:
            policy = self._train(self._config, quiet=True, control=self._control)
        except Exception as error:      # whatever ends the run is its outcome; the node stays up to tell it
            self._outcome = (DiagnosticStatus.ERROR, f"{type(error).__name__}: {error}")
            self.get_logger().error(self._outcome[1])
            return
        self._outcome = (DiagnosticStatus.OK, "stopped, can be resumed" if self._control.stopped else "finished")
        self._policy = policy

    def _on_progress(self, progress: Progress) -> None:
        self._newest = progress

    # -- executor thread

    @property
    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _publish(self) -> None:
        newest, (level, text) = self._newest, self._outcome
        if self._running and self._control.paused:
            text = "paused"
        values = {} if newest is None else {"step": newest.step, "total": newest.total}
        self._diagnostics.publish(diagnostics(self, "trainer", level, text, values))
        if self._policy is not None:
            self.get_logger().info(f"{text}: {self._policy}")
            self._result.publish(String(data=str(self._policy)))
            self._policy = None
        if newest is not None and newest is not self._published:
            self._published = newest
            self._progress.publish(Float64(data=newest.step / newest.total))
            self._metrics.publish(diagnostics(self, "training metrics", DiagnosticStatus.OK, f"step {newest.step}",
                                              {name: f"{value:.6g}" for name, value in newest.metrics.items()}))

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
