"""Faults of the recorder and its disk.

A full disk is made with RLIMIT_FSIZE on the recorder's process: writes fail in the middle of a file as they do on a full disk,
without privileges, mounts or a byte of anybody's disk. A read-only one is a folder of the kernel in which nobody, not even
root, can make a file. tests/test_recorder.py does both on real small disks where the machine allows mounts.
"""

import resource
import time

from rlco_common import topics
from rlco_teleop.bags import Bag, find_episodes, read_episode_metadata
from rlco_trainer.faults.base import Fault, Outcome
from rlco_trainer.faults.graph import MODULES, START_TIMEOUT_S, FaultGraph

LOSS_S = 1.0
READ_ONLY = "/sys/rlco"
RECORDED = ("sim", "relay", "gate", "recorder", "teleop")


def _kill_recorder(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.drive()
    graph.record()
    graph.spin(0.3)
    closed = graph.saved()
    before = set(find_episodes(graph.bags))
    graph.record()
    graph.spin(1.7)
    killed_ns = time.time_ns()
    graph.kill("recorder")
    graph.require("recorder")
    new = [bag for bag in find_episodes(graph.bags) if bag not in before]
    if len(new) != 1:
        return Outcome(False, f"{len(new)} episodes were repaired")
    with Bag(new[0]) as bag:
        lost_s = (killed_ns - max(at for at, _ in bag.times(graph.contract.topics.ee_pose))) / 1e9
    with Bag(closed) as bag:
        whole = len(bag.collect(graph.contract.topics.ee_pose)) > 3 and read_episode_metadata(closed).success is True
    about = read_episode_metadata(new[0])
    return Outcome(whole and about.repaired and about.success is None and lost_s <= LOSS_S,
                   f"finished episode {'whole' if whole else 'DAMAGED'}; the open one lost its last {lost_s:.2f} s")


def _full_disk(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.drive()
    graph.record()
    closed = graph.saved()
    graph.record()
    limits = resource.prlimit(graph.pid("recorder"), resource.RLIMIT_FSIZE)
    resource.prlimit(graph.pid("recorder"), resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        graph.client.wait_until(lambda: (status := graph.status_of("recorder")) and status.level == b"\x02", 5.0,
                                "the recorder to report the error on /diagnostics")
        ok, reason = graph.client.trigger(topics.RECORDER_SUCCESS)
    finally:
        resource.prlimit(graph.pid("recorder"), resource.RLIMIT_FSIZE, limits)
    named = "failed" in reason and graph.contract.topics.ee_pose in reason
    started, _ = graph.client.trigger(topics.RECORDER_START)
    graph.client.trigger(topics.RECORDER_DISCARD)
    with Bag(closed) as bag:
        whole = bool(bag.collect(graph.contract.topics.ee_pose))
    return Outcome(not ok and named and started and whole,
                   f"success {'REPORTED' if ok else 'refused'}: {reason[:60]}...; next start {'works' if started else 'FAILS'}")


def _read_only_disk(graph: FaultGraph) -> Outcome:
    graph.begin()
    child = graph.processes.start_node(MODULES["recorder"], "read_only", ["--ros-args", "-r", "__node:=read_only"],
                                       output_directory=READ_ONLY)
    try:        # however long a process takes to start on a busy machine, this is what it says
        graph.client.wait_until(lambda: "cannot write in output_directory" in child.tail(), START_TIMEOUT_S, "the complaint")
        ok, reason = graph.client.trigger("/read_only/start")
    finally:
        graph.processes.stop("read_only")
    return Outcome(READ_ONLY in child.tail() and not ok, f"told at its start; recording is refused: {reason}")


FAULTS = (
    Fault("kill_recorder", "kill -9 of the recorder in the middle of an episode",
          f"Finished episodes stay whole; the open one is repaired at the next start and lacks its last {LOSS_S:g} s at most.",
          RECORDED, _kill_recorder),
    Fault("disk_full", "the disk takes no more bytes in the middle of an episode",
          "A failed write is never reported as a success: /recorder/success refuses and names the topics, finished episodes "
          "stay whole, and the recorder goes on when there is space.", RECORDED, _full_disk),
    Fault("disk_read_only", "the recorder is started on a folder in which nothing can be written",
          "It says so at once, with the folder, and starts no episode.", RECORDED, _read_only_disk),
)
