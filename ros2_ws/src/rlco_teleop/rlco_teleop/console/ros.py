"""What the console asks of other nodes for a page, through their services; the page is told how it went."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_teleop.console.board import Board
from rlco_teleop.console.hub import Hub
from rlco_teleop.ros import ServiceCaller

TIMEOUT_S = 5.0
NO_STOP = "THE ARM WAS NOT STOPPED: {} Use the robot's own emergency stop."
RECORDER = {"start": topics.RECORDER_START, "success": topics.RECORDER_SUCCESS, "fail": topics.RECORDER_FAIL,
            "discard": topics.RECORDER_DISCARD}
DONE = {"start": "recording {}", "success": "saved as a success: {}", "fail": "saved as a failure: {}", "discard": "{}"}


class Errands:
    """Everything here returns at once; `check` is to be called now and then, or a lost answer is never noticed."""

    def __init__(self, node: Node, hub: Hub, board: Board, contract: Contract):
        self._log, self._hub, self._board, self._tasks = node.get_logger(), hub, board, contract.tasks
        self._caller = ServiceCaller(node, TIMEOUT_S)
        self._caller.ready(Trigger, topics.GATE_STOP)       # known from the beginning: a stop does not wait for discovery

    def check(self) -> None:
        self._caller.check()

    @property
    def simulated(self) -> bool:
        """Whether there is a simulator that can make a new scene."""
        return self._caller.ready(Trigger, topics.SIM_RESET)

    def stop(self, client: int) -> None:
        """Latch the gate's stop. Where that does not work, every page is told."""
        def answer(response, problem: str) -> None:
            good = response is not None and response.success
            text = "stopped" if good else NO_STOP.format(problem or response.message)
            self._hub.tell(client if good else None, text, good)
            self._log.warning(f"stop from the console: {text}")

        self._caller.call(Trigger, topics.GATE_STOP, Trigger.Request(), answer)

    def rearm(self, client: int) -> None:
        self._caller.call(Trigger, topics.GATE_REARM, Trigger.Request(), self._telling(client))

    def hand_over(self, client: int, enable: bool) -> None:
        """Give the arm to the policy, or take it back."""
        self._caller.call(SetBool, topics.GATE_ENABLE_POLICY, SetBool.Request(data=enable), self._telling(client))

    def record(self, client: int, what: str, operator: str) -> None:
        """One of the recorder's services, by its key in RECORDER. operator: who demonstrates, where they said so."""
        call = partial(self._caller.call, Trigger, RECORDER[what], Trigger.Request(), self._telling(client, DONE[what]))
        if what == "start" and operator:
            self._set(client, "/recorder", call, operator=operator)
        else:
            call()

    def choose(self, client: int, task: str, instruction: str) -> str | None:
        """What the next episodes are about, for recorder and policy; returns why not."""
        if self._board.chosen_by_simulator:
            return "the simulator says what the episode is about"
        if task not in self._tasks or not instruction:
            return f"choose one of the tasks {', '.join(self._tasks)}, and give an instruction"
        self._set(client, "/recorder", self.read_choice, task=task, instruction=instruction)
        if self._caller.ready(SetParametersAtomically, _setter("/policy")):
            self._set(client, "/policy", lambda: None, instruction=instruction)
        return None

    def read_choice(self) -> None:
        """Ask the recorder what the next episode is about, where no simulator says so."""
        def answer(response, problem: str) -> None:
            if response is not None and len(response.values) == 2:
                self._board.on_choice(*(value.string_value for value in response.values))

        if not self._board.chosen_by_simulator:
            request = GetParameters.Request(names=["task", "instruction"])
            self._caller.call(GetParameters, "/recorder/get_parameters", request, answer)

    def next_scene(self, client: int) -> None:
        """A new initial state of the simulator."""
        reset = partial(self._caller.call, Trigger, topics.SIM_RESET, Trigger.Request(), self._telling(client, "a new scene"))
        self._set(client, "/sim", reset, seed=self._board.next_seed)

    def _telling(self, client: int, text: str = "{}") -> Callable:
        """An answer to a std_srvs call that goes to the page: `text` with the last part of the message, or what is wrong."""
        def answer(response, problem: str) -> None:
            good = response is not None and response.success
            self._hub.tell(client, text.format(Path(response.message).name) if good else problem or response.message, good)

        return answer

    def _set(self, client: int, node: str, then: Callable[[], None], **values) -> None:
        """Set parameters of another node, and go on with `then`."""
        def answer(response, problem: str) -> None:
            if response is None or not response.result.successful:
                self._hub.tell(client, problem or response.result.reason, good=False)
            else:
                then()

        request = SetParametersAtomically.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        self._caller.call(SetParametersAtomically, _setter(node), request, answer)


def _setter(node: str) -> str:
    return f"{node}/set_parameters_atomically"
