"""The tutorial's path for all tasks and both compact policies, small: from recording to takeover and report.

    python benchmarks/deployment.py --out runs/bench_deployment            # about 40 minutes on two idle cores; can be resumed
    python benchmarks/deployment.py --tasks push_cube --policies flow      # one cell, about 5 minutes

Training is short on purpose: this measures the path, not the method. For every cell it prints success in the twin, on the
stand-in in-process and over ROS in real time, and from one more episode in which an operator takes over, hands back and
finishes: how long the dead-man took to reach the gate, latency of the policy, gaps between its chunks, and the corrections that
`rlco dataset build` makes of the bag.
"""

import os

os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from pipeline import POLICIES, markdown, prepare, rlco, stage_one
from std_msgs.msg import Bool

from rlco_common import topics
from rlco_common.contract import Contract, load_contract
from rlco_common.records import read_records, wilson
from rlco_common.ros import COMMAND_QOS, STATE_QOS
from rlco_common.seeds import EVALUATION
from rlco_sim_bridge.tasks import TASKS
from rlco_trainer.sessions import PolicySeat, enable_policy, open_session

DRIVES_S = 1.5      # how long the policy has the arm before the operator takes it
HOLDS_S = 1.2       # how long the operator has it the first time; shorter corrections are not learned from


def train_and_evaluate(out: Path, task: str, policy: str, options) -> Path:
    """Both stages and the evaluations of a cell; the folder of its results."""
    cell, real, sim = out / policy, out / "real", out / "sim"
    if not (cell / "sft" / "policy").exists():
        rlco("train", "stage1", f"{task}_stage1", f"out={cell / 'sft'}", f"real={real}", f"sim={sim}",
             f"steps={options.steps}", "held_out=2", *stage_one(task, policy))
    if not (cell / "rl_co" / "policy").exists():
        rlco("train", "stage2", f"{task}_stage2", f"out={cell / 'rl_co'}", f"start={cell / 'sft' / 'policy'}",
             f"real={real}", f"replay.demos={sim}", f"time_limit_s={options.stage2}", "min_initial_success=0", "held_out=2")
    for domain in ("twin", "standin"):
        rlco("eval", cell / "rl_co" / "policy", "--task", task, "--domain", domain, "--trials", options.trials,
             "--records", cell / "trials.jsonl")
    if not (cell / "deploy" / "trials.jsonl").exists():
        rlco("deploy", cell / "rl_co" / "policy", "--task", task, "--trials", options.ros_trials, "--out", cell / "deploy")
    return cell


class Listener:
    """What the graph says of gate, dead-man, commands and policy."""

    def __init__(self, client, contract: Contract):
        self.client = client
        self.gate = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self.deadman = client.subscribe(Bool, topics.TELEOP_DEADMAN, COMMAND_QOS)
        self.targets = client.subscribe(PoseStamped, contract.topics.target_pose, COMMAND_QOS)
        self.diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)

    def wait_source(self, source: str) -> None:
        self.client.wait_until(lambda: _sources(self.gate.messages[-1:]) == [source], 20, f"the gate to follow {source}")

    def policy(self, key: str) -> list[float]:
        """All values of a key in the policy's diagnostics."""
        return [float(value.value) for message in self.diagnostics.messages for status in message.status
                if status.name == "policy" for value in status.values if value.key == key and value.value]


def _sources(messages) -> list[str]:
    return [value.value for message in messages for value in message.status[0].values if value.key == "source"]


def take_over(out: Path, contract: Contract, task: str) -> dict:
    """One recorded episode: the policy drives, an operator takes the arm, hands it back, and finishes. Its figures."""
    seat = PolicySeat()

    def driver(processes):
        processes.start_node("rlco_teleop.nodes.teleop_node", device="scripted")
        return seat.open(processes, str(out / "rl_co" / "policy"))

    with open_session(contract, out / "takeover", task=task, domain="standin", lockstep=False, operator="both",
                      driver=driver) as session:
        client, listener = session.client, Listener(session.client, contract)
        client.wait_active("/teleop", 120.0)
        session.reset(EVALUATION[50])
        enable_policy(client)
        client.spin_for(DRIVES_S)
        listener.deadman.clear()
        listener.gate.clear()
        client.must_trigger(topics.OPERATOR_START)
        listener.wait_source("OPERATOR")
        pressed = next(at for at, m in zip(listener.deadman.arrivals_ns, listener.deadman.messages, strict=True) if m.data)
        taken = next(at for at, m in zip(listener.gate.arrivals_ns, listener.gate.messages, strict=True)
                     if _sources([m]) == ["OPERATOR"])
        client.spin_for(HOLDS_S)
        client.must_trigger(topics.OPERATOR_STOP)
        listener.wait_source("NOBODY")
        enable_policy(client)
        client.spin_for(DRIVES_S)
        outcome = session.operate()
        client.must_trigger(topics.RECORDER_SUCCESS if outcome["success"] else topics.RECORDER_FAIL)
        return {"takeover_ms": (taken - pressed) * 1e-6, "latency_ms": 1e3 * statistics.median(listener.policy("latency_s")),
                "gaps": int(max(listener.policy("gaps"))), "finished": outcome["success"]}


def corrections(out: Path) -> int:
    """Episodes that a dataset of the takeover's bag holds."""
    built = subprocess.run([sys.executable, "-m", "rlco_trainer.cli", "dataset", "build", str(out / "takeover"), "--out",
                            str(out / "corrections"), "--ignore-audit", "--overwrite"], capture_output=True, text=True)
    sidecar = out / "corrections" / "meta" / "rlco.json"
    return len(json.loads(sidecar.read_text())["episodes"]) if built.returncode == 0 else 0


def cell_figures(out: Path, contract: Contract, task: str, policy: str) -> dict:
    figures = {"task": task, "policy": f"compact_{policy}"}
    for key, path, domain in (("twin", "trials.jsonl", "twin"), ("standin", "trials.jsonl", "standin"),
                              ("ros", "deploy/trials.jsonl", "standin")):
        trials = [trial for trial in read_records(out / path) if trial.domain == domain]
        figures[key] = sum(trial.success for trial in trials), len(trials)
    if not (out / "takeover.json").exists():
        for attempt in range(3):        # the policy or its operator may end the episode before all of it was seen
            try:
                taken = take_over(out, contract, task) | {"attempts": attempt + 1}
                break
            except Exception as error:
                print(f"takeover, attempt {attempt + 1}: {error}", flush=True)
        else:
            raise SystemExit(f"no takeover of {task} {policy} went through")
        (out / "takeover.json").write_text(json.dumps(taken))
    return figures | json.loads((out / "takeover.json").read_text()) | {"corrections": corrections(out)}


def table(rows: list[dict]) -> str:
    heads = ("task", "policy", "twin", "stand-in", "stand-in over ROS", "takeover", "policy's latency", "gaps",
             "ended in success", "corrections")
    return markdown(heads, ([
        row["task"], f"`{row['policy']}`", *(str(wilson(*row[key])) for key in ("twin", "standin")),
        f"{row['ros'][0]} of {row['ros'][1]}", f"{row['takeover_ms']:.0f} ms", f"{row['latency_ms']:.0f} ms", str(row["gaps"]),
        "yes" if row["finished"] else "no", str(row["corrections"]),
    ] for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench_deployment"))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=POLICIES)
    parser.add_argument("--real", type=int, default=12, help="recorded demonstrations of a task")
    parser.add_argument("--sim", type=int, default=80, help="simulated demonstrations of a task")
    parser.add_argument("--steps", type=int, default=400, help="of Stage I")
    parser.add_argument("--stage2", type=float, default=60.0, help="seconds of Stage II")
    parser.add_argument("--trials", type=int, default=30, help="evaluated in-process, in each domain")
    parser.add_argument("--ros-trials", type=int, default=3, help="deployed over ROS in real time")
    options = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    contract, rows = load_contract(), []
    for task in options.tasks:
        out = options.out / task
        prepare(out, task, options.real, options.sim)
        for policy in options.policies:
            started = time.monotonic()
            cell = train_and_evaluate(out, task, policy, options)
            rows.append(cell_figures(cell, contract, task, policy))
            rlco("report", cell, "--out", cell / "report.html")
            print(f"{time.monotonic() - started:.0f} s\n{table(rows[-1:])}", flush=True)
    print(f"\n{table(rows)}\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    (options.out / "figures.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
