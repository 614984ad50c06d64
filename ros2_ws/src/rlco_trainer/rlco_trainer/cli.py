"""The `rlco` command."""

import argparse
import sys
from pathlib import Path

from rlco_common.errors import RlcoError


def main(arguments: list[str] | None = None) -> int:
    """Entry point; named errors become one line on stderr and exit status 1."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except RlcoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; each command imports what it needs only when it runs."""
    parser = argparse.ArgumentParser(
        prog="rlco", description="RL-based sim-real co-training (RL-Co): from teleoperation to a deployed policy.",
        epilog="'rlco COMMAND --help' explains a command. Start with 'rlco doctor', then 'rlco demo'.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _doctor(commands)
    _demo(commands)
    _record(commands)
    _demos(commands)
    _dataset(commands)
    _train(commands)
    _eval(commands)
    _deploy(commands)
    return parser


def _command(commands, name: str, run, summary: str, **kwargs) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".",
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)
    parser.set_defaults(run=run)
    return parser


def _contract_option(parser) -> None:
    parser.add_argument("--contract", default="panda_tabletop", help="name of a shipped contract, or path of a YAML file")


def _doctor(commands) -> None:
    def run(options):
        from rlco_trainer.doctor import diagnose, render

        findings = diagnose(options.contract)
        print(render(findings))
        return int(any(finding.go is False for finding in findings))

    _contract_option(_command(commands, "doctor", run, "say go or no-go for this machine, with cause and remedy"))


def _demo(commands) -> None:
    def run(options):
        from rlco_trainer.demo import SCALES, run_demo

        run_demo(options.out, SCALES[options.scale], fresh=options.fresh)

    parser = _command(commands, "demo", run, "run the whole method on the stand-in robot and write a report")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory of everything it makes")
    parser.add_argument("--scale", choices=["full", "mini"], default="full",
                        help="full: the demo; mini: the same steps, too small to learn, for a check of two minutes")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on where a stopped demo was")


def _record(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.sessions import record_episodes

        record_episodes(load_contract(options.contract), options.out, task=options.task, domain=options.domain,
                        count=options.count, noise=options.noise)

    parser = _command(commands, "record", run, "record demonstrations of the scripted operator on the stand-in, over ROS")
    parser.add_argument("task", help="task of the contract, for example push_cube")
    parser.add_argument("-n", "--count", type=int, default=20, help="successful episodes to record")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bags")
    parser.add_argument("--domain", default="standin", help="domain that the bridge simulates")
    parser.add_argument("--noise", type=float, default=0.1, help="relative noise on the operator's motions")
    _contract_option(parser)


def _demos(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.dataset.simulated import write_simulated_demos

        write_simulated_demos(load_contract(options.contract), options.out, task=options.task, domain=options.domain,
                              count=options.count, noise=options.noise, workers=options.workers,
                              overwrite=options.overwrite)

    parser = _command(commands, "demos", run, "generate simulated demonstrations with the scripted expert")
    parser.add_argument("task", help="task of the contract, for example push_cube")
    parser.add_argument("-n", "--count", type=int, default=1000, help="successful episodes to write")
    parser.add_argument("--out", type=Path, required=True, help="directory of the LeRobot dataset")
    parser.add_argument("--domain", default="twin", help="twin, standin, or a domain YAML")
    parser.add_argument("--noise", type=float, default=0.1, help="relative noise on the expert's actions")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    _contract_option(parser)


def _dataset(commands) -> None:
    tools = _command(commands, "dataset", None, "build datasets from bags, and look at them").add_subparsers(
        title="dataset commands", metavar="COMMAND", required=True)

    def build(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.dataset.build import build_dataset

        print(build_dataset(load_contract(options.contract), options.bags, options.out,
                            overwrite=options.overwrite).text())

    parser = _command(tools, "build", build, "make a LeRobot v3 dataset from recorded bags")
    parser.add_argument("bags", nargs="+", type=Path, help="episode bags, or directories that hold them")
    parser.add_argument("--out", type=Path, required=True, help="directory of the dataset")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    _contract_option(parser)

    def info(options):
        from rlco_trainer.dataset.build import describe_dataset

        print(describe_dataset(options.dataset))

    _command(tools, "info", info, "print what a dataset holds").add_argument("dataset", type=Path)


def _train(commands) -> None:
    stages = _command(commands, "train", None, "train a policy: Stage I, then Stage II").add_subparsers(
        title="stages", metavar="STAGE", required=True)

    def add(name: str, summary: str, run) -> None:
        parser = _command(stages, name, run, summary)
        parser.add_argument("config", help=f"YAML file, or the name of a shipped one such as push_cube_{name}")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a field, for example ppo.clip=0.1")

    def stage1(options):
        from rlco_trainer.config import StageOneConfig, load_stage_config
        from rlco_trainer.stage1 import train_stage1

        print(train_stage1(load_stage_config(StageOneConfig, options.config, options.overrides)))

    def stage2(options):
        from rlco_trainer.config import StageTwoConfig, load_stage_config
        from rlco_trainer.stage2 import train_stage2

        print(train_stage2(load_stage_config(StageTwoConfig, options.config, options.overrides)))

    add("stage1", "supervised co-training on real and simulated demonstrations; resumes a stopped run", stage1)
    add("stage2", "RL in the twin, anchored to the real demonstrations; resumes a stopped run", stage2)


def _eval(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_common.records import success_rate
        from rlco_common.seeds import EVALUATION
        from rlco_trainer.evaluation import evaluate

        trials = evaluate(options.checkpoint, options.name or options.checkpoint.parent.name, load_contract(options.contract),
                          task=options.task, domain=options.domain, seeds=EVALUATION[: options.trials],
                          records=options.records, workers=options.workers)
        print(f"{options.domain}: success {success_rate(trials)}; records in {options.records}")

    parser = _command(commands, "eval", run, "evaluate a checkpoint in-process on paired initial states")
    parser.add_argument("checkpoint", type=Path, help="policy directory, for example runs/demo/rl_co/policy")
    parser.add_argument("--task", default="push_cube")
    parser.add_argument("--domain", default="standin", help="twin, standin, or a domain YAML")
    parser.add_argument("--trials", type=int, default=200, help="number of initial states; the first ones are always the same")
    parser.add_argument("--records", type=Path, default=Path("runs/trials.jsonl"), help="JSON lines that trials are added to")
    parser.add_argument("--name", default="", help="name of this arm in the records; default: the run's directory")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    _contract_option(parser)


def _deploy(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_common.records import success_rate
        from rlco_common.seeds import EVALUATION
        from rlco_trainer.sessions import deploy_episodes

        trials = deploy_episodes(load_contract(options.contract), options.checkpoint, options.out, task=options.task,
                                 domain=options.domain, seeds=EVALUATION[: options.trials], lockstep=options.lockstep)
        print(f"over ROS on {options.domain}: success {success_rate(trials)}; bags and records in {options.out}")

    parser = _command(commands, "deploy", run, "run a checkpoint over ROS through the gate on a simulated robot")
    parser.add_argument("checkpoint", type=Path, help="policy directory, for example runs/demo/rl_co/policy")
    parser.add_argument("--task", default="push_cube")
    parser.add_argument("--domain", default="standin", help="domain that the bridge simulates")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="directory of bags and records")
    parser.add_argument("--lockstep", action="store_true", help="lock step instead of real time")
    _contract_option(parser)


if __name__ == "__main__":
    sys.exit(main())
