"""What memory this machine has, and what a run holds of it. Linux."""

import os
from collections.abc import Iterable
from pathlib import Path


def available_bytes() -> int:
    """What new processes can take before the machine has to swap."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def resident_bytes(pids: Iterable[int] = ()) -> int:
    """Resident memory of this process and of the processes `pids` that still run; shared pages count in each."""
    pages = 0
    for pid in (os.getpid(), *pids):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:     # it has ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")
