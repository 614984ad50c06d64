"""What the gate adds on the way of a command to the arm, how soon it stops, and whether it ever stops for nothing.

latency   The gate node and a plain rclpy relay in one run. This process is operator, policy and arm at 100 Hz: every twist
          has a speed of its own, so that the first target that moves at that speed is known to be its effect. From before
          the publish call to the arrival of the target, on the monotonic clock; the relay tells what transport costs.
stops     From a stop (service, console, released dead-man, silent operator) to the last target that moved, by the stamps of
          the targets. For the silent operator the contract's command_timeout_s is subtracted. Promise: p99 at most one
          period of the gate and 20 ms.
trips     The pure gate, accelerated, fed with expert episodes of all tasks (commands and measured poses of the simulator)
          as policy chunks at the control rate and as twists at 100 Hz, and with keyboard jogging. Arrivals have jitter.

Run: make bench-gate
"""

import argparse
import heapq
import http.client
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from std_msgs.msg import Bool
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.contract import Contract, load_contract
from rlco_common.gate import GateState, Refusal
from rlco_common.gate_drives import RealTimeGate
from rlco_common.limiter import Limit
from rlco_common.messages import pose_from_msg
from rlco_common.pose import Pose, compose_delta, delta_between
from rlco_common.processes import Processes
from rlco_common.ros import COMMAND_QOS, STATE_QOS, chunk_to_msg, pose_to_msg, stamp_from_ns
from rlco_common.ros_client import RosClient
from rlco_teleop.devices.keyboard import DEADMAN, MOTIONS, KeyboardSettings, Keys

DOMAIN_ID = 1 + os.getpid() % 90
GATE = "rlco_teleop.nodes.gate_node"
START = Pose([0.5, 0.0, 0.25], [1.0, 0.0, 0.0, 0.0])
PLAIN_IN, PLAIN_OUT = "/plain/twist", "/plain/target"
CODES = 200                     # speeds that tell twists apart
CODE_M_S = 2e-4                 # one from the next
RATE_HZ = 100.0
QUIET_NS = 150_000_000          # an arm whose target stood still this long has stopped
WINDOW_S = 5.0                  # of the latency measurement; other work on the machine comes in bursts


def speed_of(number: int) -> float:
    """Speed along x of twist `number`: all different within two ramps, the second of which leads back."""
    ramp, code = divmod(number, CODES)
    return (1 - 2 * (ramp % 2)) * (code + 1) * CODE_M_S


def twist(speed_m_s: float) -> TwistStamped:
    message = TwistStamped()
    message.header.stamp = stamp_from_ns(time.time_ns())
    message.twist.linear.x = speed_m_s
    return message


@dataclass
class Effects:
    """Finds, in a sequence of values, the first effect of each coded command."""

    sent_ns: dict[int, int] = field(default_factory=dict)       # code -> when, while its effect is awaited
    latencies_ms: list[float] = field(default_factory=list)
    windows: list[float] = field(default_factory=list)          # p99 of each window
    _window: int = 0

    def end_window(self) -> None:
        if len(self.latencies_ms) > self._window:
            self.windows.append(float(np.percentile(self.latencies_ms[self._window :], 99)))
            self._window = len(self.latencies_ms)

    def send(self, speed: float) -> None:
        self.sent_ns[round(speed / CODE_M_S)] = time.monotonic_ns()

    def arrive(self, speed: float) -> None:
        now_ns = time.monotonic_ns()
        sent_ns = self.sent_ns.pop(round(speed / CODE_M_S), None)
        if sent_ns is not None:
            self.latencies_ms.append((now_ns - sent_ns) / 1e6)

    def row(self, name: str, sent: int) -> str:
        p50, p99 = np.percentile(self.latencies_ms, [50, 99])
        return (f"| {name} | {sent} | {p50:.2f} | {p99:.2f} | {np.median(self.windows):.2f} | {min(self.windows):.2f} | "
                f"{max(self.latencies_ms):.1f} | {sent - len(self.latencies_ms)} |")


class Cell:
    """Operator, policy and arm of one gate process. The arm follows at once, and speaks at `state_hz`."""

    def __init__(self, contract: Contract, client: RosClient):
        self.contract, self.client, self.pose = contract, client, START
        self.previous: Pose | None = None
        self.moved_ns = 0
        self.on_target: Callable[[float], None] = lambda moved_m: None
        self.ee_pose = client.publisher(PoseStamped, contract.topics.ee_pose, STATE_QOS)
        self.twist = client.publisher(TwistStamped, topics.TELEOP_TWIST, COMMAND_QOS)
        self.deadman = client.publisher(Bool, topics.TELEOP_DEADMAN, COMMAND_QOS)
        self.chunk = client.publisher(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
        client.node.create_subscription(PoseStamped, contract.topics.target_pose, self._on_target, STATE_QOS)
        self.status = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        client.wait_active("/gate", 60.0)
        client.wait_until(lambda: self.twist.get_subscription_count() and self.ee_pose.get_subscription_count()
                          and self.deadman.get_subscription_count() and len(self.status), 10, "the gate's endpoints")

    def _on_target(self, message: PoseStamped) -> None:
        now_ns = time.monotonic_ns()
        pose, self.previous = pose_from_msg(message), self.pose if self.previous is None else self.previous
        moved_m = float(pose.position[0] - self.previous.position[0])
        if moved_m:
            self.moved_ns = now_ns
        self.previous = self.pose = pose
        self.on_target(moved_m)

    def speak(self) -> None:
        self.ee_pose.publish(pose_to_msg(self.pose, self.contract.robot.base_frame, time.time_ns()))

    def operate(self, speed_m_s: float) -> None:
        self.deadman.publish(Bool(data=True))
        self.twist.publish(twist(speed_m_s))

    def run(self, duration_s: float, steps: list[Callable[[int], None]], rate_hz: float = RATE_HZ) -> None:
        """Call each of the steps once per period, evenly spread over it, with the period's number."""
        start_s, slot_s = time.monotonic(), 1.0 / rate_hz / len(steps)
        for slot in range(round(duration_s * rate_hz) * len(steps)):
            self.client.spin_for(start_s + slot * slot_s - time.monotonic())
            steps[slot % len(steps)](slot // len(steps))

    def state(self) -> str:
        return self.status.last.status[0].message


# -- latency

def relay() -> None:
    """The control: what any rclpy node costs that turns one message into another."""
    with RosClient("plain_relay") as client:
        publisher = client.publisher(PoseStamped, PLAIN_OUT, COMMAND_QOS)

        def pass_on(message: TwistStamped) -> None:
            publisher.publish(pose_to_msg(Pose([message.twist.linear.x, 0, 0], START.quaternion), "", time.time_ns()))

        client.node.create_subscription(TwistStamped, PLAIN_IN, pass_on, COMMAND_QOS)
        while True:
            client.spin_for(3600.0)


def bench_latency(contract: Contract, directory: Path, duration_s: float) -> None:
    with Processes(directory, DOMAIN_ID) as processes, RosClient("bench", DOMAIN_ID, processes.check) as client:
        processes.start_node(GATE, rate_hz=RATE_HZ)
        processes.start("relay", [sys.executable, __file__, "--relay"])
        cell, through_gate, through_relay = Cell(contract, client), Effects(), Effects()
        plain = client.publisher(TwistStamped, PLAIN_IN, COMMAND_QOS, matched_s=10)
        client.node.create_subscription(PoseStamped, PLAIN_OUT, lambda m: through_relay.arrive(m.pose.position.x), STATE_QOS)
        client.wait_until(lambda: client.node.count_publishers(PLAIN_OUT), 10, "the relay")
        cell.on_target = lambda moved_m: through_gate.arrive(moved_m * RATE_HZ)

        def operate(number: int) -> None:
            through_gate.send(speed_of(number))
            cell.operate(speed_of(number))

        def ask_relay(number: int) -> None:
            through_relay.send(speed_of(number))
            plain.publish(twist(speed_of(number)))

        cell.run(1.0, [lambda number: cell.operate(0.0), lambda number: cell.speak(), ask_relay])
        through_relay.latencies_ms.clear()
        for window in range(round(duration_s / WINDOW_S)):
            first = round(window * WINDOW_S * RATE_HZ)
            cell.run(WINDOW_S, [lambda number, first=first: operate(first + number), lambda number: cell.speak(),
                                lambda number, first=first: ask_relay(first + number)])
            client.spin_for(0.1)
            through_gate.end_window()
            through_relay.end_window()
        counts = {item.key: item.value for item in cell.status.last.status[0].values if item.value.isdigit()}
        sent = round(duration_s * RATE_HZ)
        print(f"| 100 Hz | n | p50 ms | p99 ms | median p99 of {WINDOW_S:g} s | best p99 of {WINDOW_S:g} s | max ms | without "
              "effect of its own |\n|---|---|---|---|---|---|---|---|\n"
              f"{through_relay.row('plain rclpy relay', sent)}\n{through_gate.row('gate, twist to target', sent)}\n"
              f"refused or limited: {counts or 'nothing'}", flush=True)
        chunks = Effects()
        cell.deadman.publish(Bool(data=False))
        cell.run(0.5, [lambda number: cell.speak()])
        assert client.set_bool(topics.GATE_ENABLE_POLICY, True)[0]
        cell.on_target = lambda moved_m: chunks.arrive(moved_m * RATE_HZ)

        def decide(number: int) -> None:
            if number % 23 == 0:        # after the end of the one before, at ever other phases of the gate's period
                client.spin_for(0.0007 * (number // 23 % 10))
                there_and_back, code = divmod(number // 23, 2)[::-1]
                speed = (1 - 2 * there_and_back) * (code % CODES + 1) * CODE_M_S
                chunks.send(speed)
                action = np.array([speed * contract.control_period_s, 0, 0, 0, 0, 0, 1.0])
                cell.chunk.publish(chunk_to_msg(contract, [action], time.time_ns()))

        cell.run(duration_s, [decide, lambda number: cell.speak()])
        chunks.end_window()
        print(chunks.row("gate, chunk to first target", -(-round(duration_s * RATE_HZ) // 23)), flush=True)


# -- stops

@dataclass
class Stops:
    """A gate that is stopped again and again while it moves. Moves alternate in direction."""

    cell: Cell
    rate_hz: float
    console_port: int
    rng: np.random.Generator
    direction: int = 1
    stamps: list[tuple[int, float]] = field(default_factory=list)      # of the targets: (stamp, x)

    def listen(self) -> None:
        names = self.cell.contract.topics
        self.cell.client.node.create_subscription(PoseStamped, names.target_pose, lambda message: self.stamps.append(
            (message.header.stamp.sec * 10**9 + message.header.stamp.nanosec, message.pose.position.x)), STATE_QOS)

    def trial(self, kind: str) -> float:
        """Milliseconds from the stop to the last target that moved."""
        cell, client, speak = self.cell, self.cell.client, lambda number: self.cell.speak()
        operate = lambda number: cell.operate(0.1 * self.direction)     # noqa: E731
        self.stamps.clear()
        while not self.moves():
            cell.run(0.1, [operate, speak], self.rate_hz)
        cell.run(0.1 + self.rng.random() / self.rate_hz, [operate, speak], self.rate_hz)
        began_ns = time.time_ns()
        if kind == "service":
            assert client.trigger(topics.GATE_STOP)[0]
        elif kind == "console":
            connection = http.client.HTTPConnection("127.0.0.1", self.console_port, timeout=5)
            connection.request("POST", "/stop", headers={"Origin": f"http://127.0.0.1:{self.console_port}"})
            assert connection.getresponse().status == 200
            connection.close()
        elif kind == "released dead-man":
            cell.deadman.publish(Bool(data=False))
        goes_on = kind in ("service", "console")        # the operator drives on, and the arm stops nevertheless
        timeout_s = cell.contract.limits.command_timeout_s if kind == "silent operator" else 0.0
        cell.run(timeout_s + 0.2, [operate, speak] if goes_on else [speak], self.rate_hz)
        while self.stamps[-1][0] - self.moves()[-1] < QUIET_NS:
            cell.run(0.1, [operate, speak] if goes_on else [speak], self.rate_hz)
        last_ns = self.moves()[-1]
        self.begin_anew()
        self.direction *= -1
        return max(0.0, (last_ns - began_ns) / 1e6 - 1000 * timeout_s)

    def moves(self) -> list[int]:
        """Stamps of the targets that moved."""
        return [stamp for (stamp, x), (_, before) in zip(self.stamps[1:], self.stamps, strict=False) if x != before]

    def begin_anew(self) -> None:
        self.cell.deadman.publish(Bool(data=False))
        self.cell.client.wait_until(lambda: self.cell.client.trigger(topics.GATE_REARM)[0], 5, "re-arming")
        self.cell.previous = None


def bench_stops(contract: Contract, directory: Path, count: int) -> None:
    print("| stop, gate at | n | p50 ms | p99 ms | max ms | promise (p99) |\n|---|---|---|---|---|---|", flush=True)
    for rate_hz in (20.0, 100.0):
        with Processes(directory, DOMAIN_ID) as processes, RosClient("bench", DOMAIN_ID, processes.check) as client:
            processes.start_node(GATE, rate_hz=rate_hz)
            port = 8900 + os.getpid() % 90
            processes.start_node("rlco_teleop.nodes.console_node", port=port)
            cell = Cell(contract, client)
            stops = Stops(cell, rate_hz, port, np.random.default_rng(0))
            stops.listen()
            client.wait_active("/console", 90.0)
            for kind in ("service", "console"):
                stops.trial(kind)       # connects the clients
            for kind in ("service", "console", "released dead-man", "silent operator"):
                times_ms = [stops.trial(kind) for _ in range(count)]
                p50, p99 = np.percentile(times_ms, [50, 99])
                print(f"| {kind}, {rate_hz:g} Hz | {count} | {p50:.1f} | {p99:.1f} | {max(times_ms):.1f} | "
                      f"{1000 / rate_hz + 20:g} |", flush=True)


# -- false trips

@dataclass
class Replay:
    """A pure gate at 100 Hz on a clock of its own. Counts what must not happen while nothing is wrong."""

    contract: Contract
    rng: np.random.Generator
    seconds: float = 0.0
    trips: Counter = field(default_factory=Counter)
    limited: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.gate = RealTimeGate(self.contract, RATE_HZ)
        self.now_ns, self.period_ns = 10**9, round(1e9 / RATE_HZ)

    def begin(self) -> None:
        """A new episode."""
        self.gate.reset(self.now_ns)
        self.waiting: list[tuple[int, int, Callable[[int], None]]] = []      # (arrival, number, delivery)
        self.number = 0

    def send(self, deliver: Callable[[int], None], delay_s: float = 0.0) -> None:
        """Deliver a message after the jitter of a busy machine: 1 ms on average, and once in 2000 times 0.1 s."""
        hiccup_s = 0.1 if self.rng.random() < 5e-4 else 0.0
        arrival_ns = self.now_ns + round((delay_s + self.rng.exponential(1e-3) + hiccup_s) * 1e9)
        self.number += 1
        heapq.heappush(self.waiting, (arrival_ns, self.number, deliver))

    def step(self, expected: GateState | None) -> Pose | None:
        """One period; expected: the state in which the gate has to be."""
        self.now_ns += self.period_ns
        self.seconds += 1.0 / RATE_HZ
        while self.waiting and self.waiting[0][0] <= self.now_ns:
            arrival_ns, _, deliver = heapq.heappop(self.waiting)
            deliver(arrival_ns)
        command = self.gate.step(self.now_ns)
        if expected is not None and self.gate.state is not expected:
            self.trips[f"{self.gate.state.name} instead of {expected.name}"] += 1
        return None if command is None else command.target

    def finish(self) -> None:
        """Take over the gate's counts: a refusal is a trip, a limit that took effect is only told."""
        for cause, count in self.gate.counts.items():
            (self.trips if isinstance(cause, Refusal) or cause is Limit.TARGET_LEAD else self.limited)[cause.name] += count
        self.gate.counts.clear()

    def see(self, pose: Pose) -> None:
        stamp_ns = self.now_ns
        self.send(lambda at_ns: self.gate.on_state(pose, stamp_ns, at_ns))

    def hold_and_twist(self, values: np.ndarray) -> None:
        stamp_ns = self.now_ns
        self.send(lambda at_ns: self.gate.on_deadman(True, at_ns))
        self.send(lambda at_ns: self.gate.on_twist(values, stamp_ns, at_ns - stamp_ns, at_ns))


def between(poses: list[Pose], ticks: float) -> Pose:
    """The pose at a time in control ticks, on the straight way from one recorded pose to the next."""
    index = min(int(ticks), len(poses) - 2)
    share = min(max(ticks - index, 0.0), 1.0)
    return compose_delta(poses[index], delta_between(poses[index], poses[index + 1]) * share)


def replay_twists(replay: Replay, rollout) -> None:
    """The expert's actions as an operator's twists, 100 a second."""
    poses, steps = [o.ee_pose for o in rollout.observations], round(RATE_HZ * replay.contract.control_period_s)
    replay.begin()
    for tick in range(len(rollout.actions)):
        for part in range(steps):
            replay.see(between(poses, tick + part / steps))
            replay.hold_and_twist(rollout.actions[tick][:6] / replay.contract.control_period_s)
            replay.step(GateState.OPERATOR if tick or part > 15 else None)
    replay.finish()


def replay_chunks(replay: Replay, rollout) -> None:
    """The expert's actions as a policy's chunks of four ticks, with the time that a model takes."""
    contract, chunk = replay.contract, 4
    poses, steps = [o.ee_pose for o in rollout.observations], round(RATE_HZ * contract.control_period_s)
    think_s = replay.rng.uniform(0.03, 0.09)
    replay.begin()
    replay.see(poses[0])
    replay.step(None)
    assert replay.gate.enable_policy(True, replay.now_ns) is None
    for tick in range(len(rollout.actions)):
        for part in range(steps):
            replay.see(between(poses, max(0.0, tick + part / steps - think_s / contract.control_period_s)))
            if part == 0 and tick % chunk == 0:
                actions, stamp_ns = rollout.actions[tick : tick + chunk], replay.now_ns
                replay.send(lambda at_ns, actions=actions, stamp_ns=stamp_ns: replay.gate.on_chunk(
                    actions, stamp_ns, at_ns - stamp_ns, at_ns), think_s)
            replay.step(GateState.POLICY if tick else None)
    replay.finish()


def replay_keys(replay: Replay, duration_s: float) -> None:
    """A person at the keyboard: keys pressed, kept down and changed; the device asked 20 times a second."""
    settings, rng = KeyboardSettings(), replay.rng
    keys, pose = Keys(settings), START
    motions = [key for key in MOTIONS if len(key) == 1]
    replay.begin()
    keys.type(DEADMAN, replay.now_ns)
    key, until_s, next_repeat_s, repeat_s = "", 0.0, 0.0, 0.0
    for number in range(round(duration_s * RATE_HZ)):
        now_s = number / RATE_HZ
        if now_s >= until_s:
            key, until_s = (str(rng.choice(motions)) if rng.random() < 0.8 else ""), now_s + rng.uniform(0.1, 1.5)
            next_repeat_s = now_s
            repeat_s = 0.25         # the first repeat of a terminal comes late
        if key and now_s >= next_repeat_s:
            keys.type(key, replay.now_ns)
            next_repeat_s, repeat_s = now_s + repeat_s, 0.033
        if not keys.held(replay.now_ns):
            keys.type(DEADMAN, replay.now_ns)
        replay.see(pose)
        if number % 5 == 0:
            replay.hold_and_twist(keys.deflection(replay.now_ns) * settings.speeds)
        target = replay.step(GateState.OPERATOR if number > 20 else None)
        if target is not None:      # an arm that follows with a time constant of 80 ms
            pose = compose_delta(pose, delta_between(pose, target) * (1 - np.exp(-1 / RATE_HZ / 0.08)))
    replay.finish()


def bench_trips(contract: Contract, duration_s: float) -> int:
    """Replay; returns the number of trips."""
    from rlco_sim_bridge.pool import TwinPool
    from rlco_sim_bridge.tasks import TASKS

    rollouts = []
    for task in TASKS:
        with TwinPool(contract, task, "standin", scenes=1, workers=0, render=False) as pool:
            rollouts += list(pool.rollout_expert(range(900_000, 900_010), 0.1))
    print("| replay, 100 Hz | simulated s | false trips | limits that took effect |\n|---|---|---|---|", flush=True)
    total = 0
    for name, play in (("expert episodes as twists", replay_twists), ("expert episodes as chunks, 5 Hz", replay_chunks),
                       ("keyboard jogging", lambda replay, rollout: replay_keys(replay, 60.0))):
        replay = Replay(contract, np.random.default_rng(0))
        while replay.seconds < duration_s / 3:
            play(replay, rollouts[int(replay.rng.integers(len(rollouts)))])
        steps = round(replay.seconds * RATE_HZ)
        limited = ", ".join(f"{cause} {100 * count / steps:.2f} % of steps" for cause, count in replay.limited.items())
        tripped = f"{sum(replay.trips.values())} {dict(replay.trips) or ''}".strip()
        print(f"| {name} | {replay.seconds:.0f} | {tripped} | {limited or 'none'} |", flush=True)
        total += sum(replay.trips.values())
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--relay", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of the latency measurement")
    parser.add_argument("--stops", type=int, default=100, help="stops of each kind and rate")
    parser.add_argument("--replay", type=float, default=3600.0, help="simulated seconds of the search for false trips")
    parser.add_argument("--only", choices=("latency", "stops", "trips"), help="one part alone")
    options = parser.parse_args()
    if options.relay:
        relay()
    contract = load_contract()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    trips = 0
    with tempfile.TemporaryDirectory() as directory:
        if options.only in (None, "latency"):
            bench_latency(contract, Path(directory), options.duration)
        if options.only in (None, "stops"):
            bench_stops(contract, Path(directory), options.stops)
        if options.only in (None, "trips"):
            trips = bench_trips(contract, options.replay)
    print(f"load average after: {os.getloadavg()[0]:.1f}")
    return int(trips > 0)


if __name__ == "__main__":
    sys.exit(main())
