"""Constructs every node of the workspace, unconfigured, and reads its descriptors and services.

Takes rclpy's default context, which must not be in use.
"""

import importlib
import inspect
import math
from collections.abc import Sequence

import rclpy
from rclpy.parameter import Parameter as RosParameter

from rlco_common.ros import prepare_environment
from rlco_teleop.devices import DEVICES
from rlco_trainer.reference.nodes import Node, Parameter

# (package, executable, parameters that choose a variant). The fault relay is a tool of `rlco fault` and no part of a cell.
PROGRAMS = (
    ("rlco_sim_bridge", "bridge_node", ""),
    ("rlco_teleop", "gate_node", ""),
    *(("rlco_teleop", "teleop_node", f"device:={device}") for device in DEVICES),
    ("rlco_teleop", "recorder_node", ""),
    ("rlco_teleop", "console_node", ""),
    ("rlco_teleop", "arm_adapter_node", ""),
    ("rlco_teleop", "camera_node", ""),
    ("rlco_teleop", "start_node", ""),
    ("rlco_policy", "policy_node", ""),
    ("rlco_trainer", "trainer", ""),
    ("rlco_trainer", "evaluator_node", ""),
)
_NOT_OURS = ("use_sim_time", "start_type_description_service")       # rclpy declares them on every node
_LIMITS = {float: (-math.inf, math.inf), int: (-(2**63), 2**63 - 1)}


def inspected_nodes() -> list[Node]:
    """Every node as it is when its process has started and nothing has configured it. Takes seconds for the imports."""
    prepare_environment()
    return [_inspect(*program) for program in PROGRAMS]


def _inspect(package: str, executable: str, variant: str) -> Node:
    given = ["-p", variant] if variant else []
    rclpy.init(args=["--ros-args", "-p", "autostart:=false", *given])
    try:
        kind = _node_class(f"{package}.nodes.{executable.removesuffix('_node')}_node")
        node = kind()
        try:
            return Node(package, executable, node.get_name(), variant, (inspect.getdoc(kind) or "").split("\n\n")[0],
                        _parameters(node), _services(node))
        finally:
            getattr(node, "close", lambda: None)()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def _node_class(module: str) -> type:
    """The one node class that a module of a node defines."""
    (kind,) = (value for name, value in vars(importlib.import_module(module)).items()
               if inspect.isclass(value) and value.__module__ == module and name.endswith("Node"))
    return kind


def _parameters(node) -> tuple[Parameter, ...]:
    names = [name for name in node._parameters if name not in _NOT_OURS and not name.startswith("qos_overrides.")]
    return tuple(_parameter(node.get_parameter(name), node.describe_parameter(name)) for name in names)


def _parameter(parameter: RosParameter, descriptor) -> Parameter:
    kind = parameter.type_.name.lower().replace("_", " ")
    value = "true" if parameter.name == "autostart" else _text(parameter.value)       # it was started without
    return Parameter(parameter.name, kind, value, descriptor.description, _bounds(descriptor), descriptor.read_only)


def _bounds(descriptor) -> str:
    for kind, ranges in ((float, descriptor.floating_point_range), (int, descriptor.integer_range)):
        for bound in ranges:
            low, high = _LIMITS[kind]
            sides = ([f"from {bound.from_value:g}"] if bound.from_value > low else []) + (
                [f"to {bound.to_value:g}"] if bound.to_value < high else [])
            return " ".join(sides)
    return descriptor.additional_constraints


def _text(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)


def _services(node) -> tuple[tuple[str, str], ...]:
    """What the node itself serves; not the services that every node, or every lifecycle node, has."""
    common = {"lifecycle_msgs", "rcl_interfaces", "type_description_interfaces"}
    found = {(service.srv_name, service.srv_type) for service in node.services}
    return tuple(sorted((node.resolve_service_name(name), f"{kind.__module__.split('.')[0]}/srv/{kind.__name__}")
                        for name, kind in found if kind.__module__.split(".")[0] not in common))
