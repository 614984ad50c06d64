"""The reference of topics and services."""

from collections.abc import Sequence

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_common.topic_table import QOS_REASONS, graph_topics
from rlco_trainer.reference.markdown import REGENERATE, code, table
from rlco_trainer.reference.nodes import Node

SERVICES = {
    topics.GATE_STOP: "latch a stop: whoever drives, the arm holds",
    topics.GATE_REARM: "clear a stop or fault, once no dead-man is held",
    topics.GATE_ENABLE_POLICY: "true hands the arm to the policy, false takes it back",
    topics.GATE_ALLOW_PLANNED: "true lets a planned move drive, false ends that",
    topics.START_GO: "plan a way to the start and drive it",
    topics.START_CANCEL: "end the way to the start; the arm holds",
    topics.RECORDER_START: "begin an episode; refused with the reason while a stream is missing",
    topics.RECORDER_SUCCESS: "end the episode as a success",
    topics.RECORDER_FAIL: "end the episode as a failure",
    topics.RECORDER_DISCARD: "end the episode and throw its bag away",
    topics.OPERATOR_START: "scripted operator: take the dead-man",
    topics.OPERATOR_STOP: "release the dead-man of any device",
    "/trainer/pause": "true pauses the run, false lets it go on",
    "/trainer/checkpoint": "save the run after the step under way",
    "/trainer/stop": "save the run and end it; it can be resumed",
}
_INTRODUCTION = """# Topics and services

{regenerate}

The names of arm and camera topics are those of the contract (here `{name}`), the others are fixed. Only standard interfaces
are used. [../contract.md](../contract.md) explains the content of gate status and episode events. A node in a namespace has
its own services there.
"""
_EVERY_NODE = """Beside these every lifecycle node has the services of the lifecycle (`NODE/change_state`, `NODE/get_state`,
...), and every node those of its parameters. A simulated table has services of its own: [../bridge.md](../bridge.md).
"""


def topics_page(contract: Contract, nodes: Sequence[Node]) -> str:
    """The page as markdown. Raises KeyError for a service that SERVICES does not explain."""
    rows = [[code(topic.name), code(topic.type), topic.qos, topic.sender, topic.receivers, topic.meaning]
            for topic in graph_topics(contract)]
    services = sorted({(name, kind, node.name) for node in nodes for name, kind in node.services})
    return "\n".join([
        _INTRODUCTION.format(regenerate=REGENERATE, name=contract.name),
        "## Topics\n", table(("topic", "type", "QoS", "from", "to", "what it says"), rows),
        "## QoS\n", table(("name", "profile, and why"), QOS_REASONS.items()),
        "## Services\n", table(("service", "type", "node", "what it does"),
                               [[code(name), code(kind), code(node), SERVICES[name]] for name, kind, node in services]),
        _EVERY_NODE])
