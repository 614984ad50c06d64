"""The relay of the fault drills: carries topics from `/source/TOPIC` to `/TOPIC` and disturbs them on request.

It stands where a network, a driver or a clock stands, so that every consumer sees the trouble on its real subscription.
"""

import time
from functools import partial

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from rlco_common.errors import ConfigError, RlcoError
from rlco_common.ros import QOS, declare, declare_contract, message_class, run_node
from rlco_common.topic_table import graph_topics
from rlco_trainer.faults.disturbance import KINDS, Disturbance, disturbances_from_text

SOURCE = "/source"
DELAY_PERIOD_S = 0.005


class RelayNode(Node):
    """Node `relay`. Parameter `topics`: what it carries; `disturb`: 'TOPIC=KIND TOPIC=KIND:AMOUNT', changed at any time."""

    def __init__(self):
        super().__init__("relay")
        known = {topic.name: topic for topic in graph_topics(declare_contract(self))}
        names = declare(self, "topics", "", "topics to carry, separated by blanks", read_only=True).split()
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(f"the graph has no topic {', '.join(unknown)}; it has {', '.join(known)}")
        kinds = "; ".join(f"{kind}: {text}" for kind, text in KINDS.items())
        declare(self, "disturb", "", f"what happens to them, as 'TOPIC=KIND TOPIC=KIND:AMOUNT'; empty: nothing. {kinds}")
        self._topics = tuple(names)
        self._disturbed: dict[str, Disturbance] = {}
        self._outlets = {}
        for name in names:
            kind, qos = message_class(known[name].type), QOS[known[name].qos]
            self._outlets[name] = self.create_publisher(kind, name, qos)
            self.create_subscription(kind, SOURCE + name, partial(self._carry, name), qos)
        self._timer = self.create_timer(DELAY_PERIOD_S, self._send_due, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._timer.cancel()
        self.add_on_set_parameters_callback(self._on_parameters)

    def _carry(self, name: str, message) -> None:
        disturbance = self._disturbed.get(name)
        for sent in [message] if disturbance is None else disturbance.take(message, time.monotonic()):
            self._outlets[name].publish(sent)

    def _send_due(self) -> None:
        for name, disturbance in self._disturbed.items():
            for message in disturbance.due(time.monotonic()):
                self._outlets[name].publish(message)

    def _on_parameters(self, parameters) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "disturb":
                try:
                    disturbed = disturbances_from_text(parameter.value, self._topics)
                except RlcoError as error:
                    return SetParametersResult(successful=False, reason=str(error))
                before, self._disturbed = self._disturbed, disturbed
                for name, disturbance in before.items():
                    for message in disturbance.end():
                        self._outlets[name].publish(message)
                if any(disturbance.kind == "delay" for disturbance in disturbed.values()):
                    self._timer.reset()
                else:
                    self._timer.cancel()
        return SetParametersResult(successful=True)


def main(args=None) -> int:
    return run_node(RelayNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
