"""The tasks of the paper (V-A.1), by name."""

from rlco_common.errors import ConfigError
from rlco_sim_bridge.tasks.base import Task
from rlco_sim_bridge.tasks.drawers import CloseDrawer, OpenDrawer
from rlco_sim_bridge.tasks.pick_place import PickPlace
from rlco_sim_bridge.tasks.push_cube import PushCube

TASKS: dict[str, type[Task]] = {task.name: task for task in (PickPlace, PushCube, OpenDrawer, CloseDrawer)}


def load_task(name: str, layout=None) -> Task:
    """The task of that name with a layout (see Task.load). Raises ConfigError naming the tasks that have a twin."""
    if name not in TASKS:
        raise ConfigError(f"no twin for task '{name}'; there is one for {', '.join(TASKS)}")
    return TASKS[name].load(layout)
