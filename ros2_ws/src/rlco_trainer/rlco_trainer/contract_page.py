"""The reference page of the contract, generated from the code and from a contract's YAML.

    python -m rlco_trainer.contract_page > docs/contract.md
"""

import dataclasses
import sys
import types
import typing

from rlco_common.contract import DEFAULT_CONTRACT, PROPRIOCEPTION_PARTS, Contract, load_contract
from rlco_common.episode import EpisodeEvent, EpisodeMetadata, EventKind
from rlco_common.gate import GateState, Refusal, Source
from rlco_common.limiter import Limit
from rlco_common.strict import to_mapping
from rlco_common.topic_table import QOS_REASONS, graph_topics
from rlco_teleop.bags import AUDIT_KEY, METADATA_KEY
from rlco_teleop.recording import DROPPED_KEY, STOPPED_KEY

# field of the YAML -> (unit, meaning); NAME stands for a name of the cell's own
FIELDS = {
    "name": ("", "name of the cell; part of the hash"),
    "robot.base_frame": ("", "frame of every pose and twist"),
    "robot.ee_frame": ("", "frame of the tool whose pose is measured and commanded"),
    "robot.arm_joints": ("", "names of the arm's joints, in the order of the joint vector"),
    "robot.gripper_joint": ("", "name of the joint that tells the gripper's opening"),
    "robot.gripper_closed": ("m or rad", "its position when the gripper is closed"),
    "robot.gripper_open": ("m or rad", "its position when the gripper is open"),
    "control_rate_hz": ("Hz", "control ticks per second: one action per tick"),
    "cameras.NAME.topic": ("", "topic of the raw images; calibration and JPEG are looked for beside it"),
    "cameras.NAME.frame": ("", "optical frame"),
    "cameras.NAME.width": ("pixels", "width of the images"),
    "cameras.NAME.height": ("pixels", "height of the images"),
    "cameras.NAME.encoding": ("", "rgb8 or bgr8"),
    "cameras.NAME.max_age_s": ("s", "an older image is shown to no policy and goes into no dataset"),
    "topics.joint_states": ("", "see the table of topics"),
    "topics.ee_pose": ("", "see the table of topics"),
    "topics.target_pose": ("", "see the table of topics"),
    "topics.gripper_command": ("", "see the table of topics"),
    "topics.state_max_age_s": ("s", "the same promise for joint states and tool pose; with an older pose the gate holds"),
    "observation.proprioception": ("", "parts of the proprioception vector, in this order; see below"),
    "action.names": ("", "names of the action's numbers; fixed"),
    "action.max_translation_m": ("m per tick", "largest translation along each base axis; 1.0 after normalisation"),
    "action.max_rotation_rad": ("rad per tick", "largest rotation about each base axis; 1.0 after normalisation"),
    "limits.workspace_min_m": ("m", "lower corner of the box that the target's position never leaves"),
    "limits.workspace_max_m": ("m", "upper corner"),
    "limits.max_linear_speed_m_s": ("m/s", "speed of the target, Euclidean"),
    "limits.max_angular_speed_rad_s": ("rad/s", "turning speed of the target, Euclidean"),
    "limits.max_linear_acceleration_m_s2": ("m/s^2", "change of its velocity, per base axis"),
    "limits.max_angular_acceleration_rad_s2": ("rad/s^2", "change of its turning velocity, per base axis"),
    "limits.max_target_lead_m": ("m", "distance of the target from the measured pose; more is a fault"),
    "limits.max_target_lead_rad": ("rad", "angle between both; more is a fault"),
    "limits.command_timeout_s": ("s", "a source of commands that is silent this long is dropped"),
    "tasks.NAME.instructions": ("", "wordings of the instruction; words in braces are slots"),
    "tasks.NAME.slots": ("", "values of each slot"),
    "tasks.NAME.max_steps": ("ticks", "length of an episode"),
}
PARTS = {
    "ee_position": "x, y, z of the tool in the base frame, m",
    "ee_rotation": "the first two columns of the tool's rotation matrix",
    "gripper": "opening, 0 closed to 1 open",
    "joint_positions": "positions of the arm's joints in the contract's order, rad",
}
STATES = {
    GateState.IDLE: "no target yet: nothing is commanded", GateState.OPERATOR: "the operator moves the arm",
    GateState.POLICY: "the policy moves the arm", GateState.PLANNED: "a planned move to the start, slower than the others",
    GateState.HOLD: "nobody moves the arm: the last target is held",
    GateState.STOPPED: "latched by a stop; `/gate/rearm` clears it",
    GateState.FAULT: "latched because the target led too far over the measured pose; `/gate/rearm` clears it",
}
CAUSES = {
    Refusal.NOT_FINITE: "refused: a number that is none", Refusal.BAD_SHAPE: "refused: wrong names, length or times of a chunk",
    Refusal.UNSTAMPED: "refused: a command without a stamp",
    Refusal.WRONG_FRAME: "refused: a pose or twist in another frame than the base frame",
    Refusal.COMMAND_STALE: "refused or ended: a command older than `command_timeout_s`, a chunk that is over",
    Refusal.STATE_INVALID: "refused: a measured pose that cannot be", Refusal.STATE_STALE: "held: the measured pose is too old",
    Limit.ACTION_DELTA: "cut to the largest action per tick", Limit.WORKSPACE: "cut at the box",
    Limit.SPEED: "cut to the largest speed", Limit.ACCELERATION: "cut to the largest acceleration",
    Limit.TARGET_LEAD: "refused whole: the step would lead too far; the gate is in FAULT",
}
EVENTS = {
    "reset": "bridge: a new scene; policy and gate forget what was before. stamp_ns is its first observation's",
    "start": "recorder: an episode is recorded from here", "success": "recorder: it ended as a success",
    "failure": "recorder: it ended as a failure", "discard": "recorder: it was thrown away",
    "takeover": "gate: the operator drives, who did not before", "hand_back": "gate: the policy has the arm again",
}
EPISODE_FIELDS = {
    "kind": "see below", "episode": "unique name, that of the bag's directory", "task": "task of the contract",
    "instruction": "sentence that the policy is given", "domain": "twin, standin or real",
    "operator": "who demonstrated, or the policy's name", "seed": "of a simulated initial state; -1 on a real table",
    "contract_hash": "hash of the contract", "contract": "the contract itself, as canonical JSON",
    "success": "true, false, or null when nobody judged", "repaired": "true when the recording was cut off and repaired",
    "variation": "what a simulated scene varies beside its seed",
    "stamp_ns": "when it holds from; of a reset, the stamp of its first observation; 0: unknown",
}
BAG_KEYS = {
    METADATA_KEY: "EpisodeMetadata as JSON", AUDIT_KEY: "scores of every stream, warnings and verdict, as JSON",
    DROPPED_KEY: "messages that the disk was too slow for, by topic; only when there are any",
    STOPPED_KEY: "why the recorder itself ended the episode; only then",
}

_INTRODUCTION = """# The contract

One YAML describes a robot cell. Teleoperation, gate, recorder, dataset builder, twin, policy node and trainer read the same
file and use the same code on it. This page is generated from that code and from `{name}`
(`python -m rlco_trainer.contract_page > docs/contract.md`); a test holds it to both.

`--contract` and the node parameter `contract` take the name of a shipped contract or the path of a file. To make one for
another cell, copy `ros2_ws/src/rlco_common/config/{name}.yaml`. A missing, unknown or wrong field is refused by its name.
"""
_ACTION = """## Action

Seven numbers per control tick, `{names}`:
metres and radians along and about the axes of `{frame}`, applied to the previous *target* (not to the measured pose), and the
gripper's opening, 0 closed to 1 open. The new target's position is kept inside the workspace. For learning an action is
normalised to [-1, 1] with these bounds:

| | {header} |
|---|{rule}|
| low | {low} |
| high | {high} |
"""
_HASH = """## Hash

The contract as canonical JSON (sorted keys, no blanks) is hashed with SHA-256; its first 16 hex digits travel in every bag,
dataset, checkpoint and report, together with the JSON. Another hash is refused with the fields that differ. Every field
counts, tasks and their wordings too. The hash of `{name}` is `{hash}`.
"""


def contract_page(contract: Contract) -> str:
    """The page as markdown."""
    sections = [_INTRODUCTION.format(name=contract.name), _fields(contract), _action(contract), _observation(contract),
                _HASH.format(name=contract.name, hash=contract.hash), _topics(contract), _gate(), _episodes()]
    return "\n".join(sections)


def leaves(value, path: str = "") -> list[tuple[str, object]]:
    """(path with NAME for names of the cell's own, value) of every field."""
    if not isinstance(value, dict) or path.endswith(".slots"):
        return [(path, value)]
    own = path in ("cameras", "tasks")
    return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}.{'NAME' if own else key}".lstrip("."))]


def _fields(contract: Contract) -> str:
    rows, shown = [], set()
    for path, value in leaves(to_mapping(contract)):
        if path not in shown:
            shown.add(path)
            unit, meaning = FIELDS[path]
            rows.append([f"`{path}`", unit, _short(value), meaning])
    return "## Fields\n\nShown with their values; of cameras and tasks, the first one's.\n\n" + _table(
        ("field", "unit", contract.name, "meaning"), rows)


def _action(contract: Contract) -> str:
    action = contract.action
    return _ACTION.format(
        names="[" + ", ".join(action.names) + "]", frame=contract.robot.base_frame, header=" | ".join(action.names),
        rule="|".join(["---"] * action.dim), low=" | ".join(f"{value:g}" for value in action.low),
        high=" | ".join(f"{value:g}" for value in action.high))


def _observation(contract: Contract) -> str:
    cameras = "; ".join(f"`{name}`, uint8 RGB [{camera.height}, {camera.width}, 3]"
                        for name, camera in contract.cameras.items())
    rows = [[f"`{part}`", PARTS[part], "yes" if part in contract.observation.proprioception else "no"]
            for part in PROPRIOCEPTION_PARTS]
    return (f"## Observation\n\nImages ({cameras}), the proprioception vector (float32 [{len(contract.proprioception_names)}]: "
            f"{', '.join(contract.proprioception_names)}) and the instruction. Nothing in it is newer than its time, or older "
            "than the max ages.\n\n" + _table(("part", "what it is", f"in {contract.name}"), rows))


def _topics(contract: Contract) -> str:
    rows = [[f"`{topic.name}`", topic.type, topic.qos, topic.sender, topic.receivers, topic.meaning]
            for topic in graph_topics(contract)]
    return ("## Topics\n\n" + _table(("topic", "type", "QoS", "from", "to", "what it says"), rows) + "\n"
            + _table(("QoS", "profile, and why"), [[name, reason] for name, reason in QOS_REASONS.items()]))


def _gate() -> str:
    return ("## Gate status\n\nThe message of the first status on `/gate/status` and of `gate` on `/diagnostics` is the state, "
            f"its values are the source ({', '.join(source.name for source in Source)}), whether the policy is enabled, the "
            "stamp of the last reset that the gate has heard (`episode_start_ns`), the target's lead, and one counter for "
            "every cause that has occurred since the gate was started.\n\n"
            + _table(("state", "what it means"), [[f"`{state.name}`", STATES[state]] for state in GateState]) + "\n"
            + _table(("counter", "what was done"), [[f"`{cause.name}`", CAUSES[cause]] for cause in (*Refusal, *Limit)]))


def _episodes() -> str:
    kinds = typing.get_args(EventKind)
    return ("## Episode events\n\n`/episode/event` carries one JSON object per event.\n\n"
            + _table(("field", "type", "default", "meaning"), _dataclass_rows(EpisodeEvent)) + "\n"
            + _table(("kind", "who says it, and what it means"), [[f"`{kind}`", EVENTS[kind]] for kind in kinds]) + "\n"
            + "## Metadata of a bag\n\nUnder `custom_data` of `metadata.yaml`, and again as metadata records of the MCAP "
            "file:\n\n"
            + _table(("key", "content"), [[f"`{key}`", text] for key, text in BAG_KEYS.items()]) + "\n`EpisodeMetadata`:\n\n"
            + _table(("field", "type", "default", "meaning"), _dataclass_rows(EpisodeMetadata)))


def _dataclass_rows(kind: type) -> list[list[str]]:
    hints = typing.get_type_hints(kind)
    return [[f"`{field.name}`", _type(hints[field.name]),
             "" if field.default is dataclasses.MISSING else f"`{field.default!r}`", EPISODE_FIELDS[field.name]]
            for field in dataclasses.fields(kind)]


def _type(hint) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "text"
    if isinstance(hint, types.UnionType):
        return " or ".join(_type(part) for part in typing.get_args(hint))
    return {str: "text", int: "integer", bool: "boolean", types.NoneType: "null"}[hint]


def _short(value) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_short(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(header, rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(contract_page(load_contract(DEFAULT_CONTRACT)))
