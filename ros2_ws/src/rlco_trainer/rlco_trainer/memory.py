"""What memory this machine has, and what a run holds of it. Linux."""

import os
from collections.abc import Iterable
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")     # in a container its own group, elsewhere the root, which has no limit


def available_bytes() -> int:
    """What new processes can take before the machine has to swap, or before a container is out of its memory."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    return min([machine, *_container_rooms()])


def _container_rooms() -> list[int]:
    """Limit less usage of the container's memory (cgroup v2, then v1); file pages that can be dropped are not used ones."""
    rooms = []
    for limit, usage, statistics, droppable in (
            ("memory.max", "memory.current", "memory.stat", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file")):
        try:
            texts = [(_CGROUPS / name).read_text() for name in (limit, usage, statistics)]
        except OSError:
            continue
        if texts[0].strip() != "max":
            held = int(texts[1]) - int(dict(line.split() for line in texts[2].splitlines()).get(droppable, 0))
            rooms.append(max(0, int(texts[0]) - held))
    return rooms


def resident_bytes(pids: Iterable[int] = ()) -> int:
    """Resident memory of this process and of the processes `pids` that still run; shared pages count in each."""
    pages = 0
    for pid in (os.getpid(), *pids):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:     # it has ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")
