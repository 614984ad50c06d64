"""What a node says about itself: parameters and services, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """A declared parameter. `bounds`: closed range with a side left open where there is none, or the constraint in words."""

    name: str
    type: str
    default: str
    description: str
    bounds: str
    read_only: bool


@dataclass(frozen=True)
class Node:
    """A node of the workspace. `variant` tells apart what one program becomes by a parameter, such as a teleop device."""

    package: str
    executable: str
    name: str
    variant: str
    summary: str
    parameters: tuple[Parameter, ...]
    services: tuple[tuple[str, str], ...]       # (name, type)
