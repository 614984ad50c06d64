"""The reference of every node's parameters."""

from collections.abc import Sequence

from rlco_trainer.reference.markdown import REGENERATE, code, table
from rlco_trainer.reference.nodes import Node, Parameter

_INTRODUCTION = f"""# Parameters of the nodes

{REGENERATE} Every node was constructed and asked, as `ros2 param describe` asks.

The names of the sections are those of the nodes: in a `params_file` the values stand under them (or under `/**`, for every
node). A read-only parameter is set at the start; another may be set any time, and a value outside the bounds is refused with
the reason. `use_sim_time` exists on every node.
"""


def parameters_page(nodes: Sequence[Node]) -> str:
    """The page as markdown. Parameters that all variants of a node share are listed once."""
    sections, seen = [_INTRODUCTION], set()
    for node in nodes:
        if node.name in seen:
            continue
        seen.add(node.name)
        variants = [other for other in nodes if other.name == node.name]
        sections.append(_section(node, variants))
    return "\n".join(sections)


def _section(node: Node, variants: Sequence[Node]) -> str:
    shared = [parameter for parameter in node.parameters
              if all(any(other.name == parameter.name for other in variant.parameters) for variant in variants)]
    names = {parameter.name for parameter in shared}
    lines = [f"## {node.name}", "", f"`ros2 run {node.package} {node.executable}`", "", _table(shared, variants)]
    for variant in variants:
        own = [parameter for parameter in variant.parameters if parameter.name not in names]
        if own:
            lines += [f"### {node.name} with {variant.variant}", "", _table(own, [variant])]
    return "\n".join(lines)


def _table(parameters: Sequence[Parameter], variants: Sequence[Node]) -> str:
    return table(("parameter", "type", "default", "bounds", "read-only", "meaning"),
                 [[code(parameter.name), parameter.type, _default(parameter, variants), parameter.bounds,
                   "yes" if parameter.read_only else "no", parameter.description] for parameter in parameters])


def _default(parameter: Parameter, variants: Sequence[Node]) -> str:
    """The default, or each variant's where they differ."""
    defaults = {variant.variant: other.default for variant in variants for other in variant.parameters
                if other.name == parameter.name}
    if len(set(defaults.values())) == 1:
        return code(parameter.default) or "empty"
    if all(variant.endswith(f":={default}") for variant, default in defaults.items()):
        return code(parameter.default)        # the parameter that chooses the variant; the first one is the default
    return ", ".join(f"{code(default)} ({variant.partition(':=')[2]})" for variant, default in defaults.items())
