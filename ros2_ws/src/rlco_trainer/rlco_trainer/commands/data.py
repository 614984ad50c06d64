"""`rlco record`, `rlco demos`, `rlco dataset`: where demonstrations come from."""

from pathlib import Path

from rlco_trainer.commands import dataset
from rlco_trainer.commands.base import chosen_variation, command, contract_option, variation_option


def add(commands) -> None:
    _record(commands)
    _demos(commands)
    dataset.add(commands)


def _record(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.sessions import record_episodes

        record_episodes(load_contract(options.contract), options.out, task=options.task, domain=options.domain,
                        count=options.count, noise=options.noise, variation=chosen_variation(options))

    parser = command(commands, "record", run, "record demonstrations of the scripted operator on the stand-in, over ROS")
    parser.add_argument("task", help="task of the contract, for example push_cube")
    parser.add_argument("-n", "--count", type=int, default=20, help="successful episodes to record")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bags")
    parser.add_argument("--domain", default="standin", help="domain that the bridge simulates")
    variation_option(parser)
    parser.add_argument("--noise", type=float, default=0.1, help="relative noise on the operator's motions")
    contract_option(parser)


def _demos(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.dataset.simulated import write_simulated_demos

        frames = write_simulated_demos(
            load_contract(options.contract), options.out, task=options.task, domain=options.domain, count=options.count,
            noise=options.noise, workers=options.workers, expert=options.expert, variation=chosen_variation(options),
            skip=options.skip, overwrite=options.overwrite)
        print(f"{options.out}: {options.count} episodes, {frames} frames")

    parser = command(commands, "demos", run, "generate simulated demonstrations with an expert; goes on where it was stopped")
    parser.add_argument("task", help="task of the contract, for example push_cube")
    parser.add_argument("-n", "--count", type=int, default=1000, help="successful episodes to write; failures are rejected")
    parser.add_argument("--out", type=Path, required=True, help="directory of the LeRobot dataset")
    parser.add_argument("--domain", default="twin", help="twin, standin, or a domain YAML")
    parser.add_argument("--noise", type=float, default=0.1, help="relative noise on the expert's actions")
    parser.add_argument("--expert", choices=["scripted", "planned"], default="scripted",
                        help="planned: collision-free motion planning, for pick_place")
    variation_option(parser)
    parser.add_argument("--skip", type=int, default=0, metavar="N",
                        help="leave out the first N seeds: other scenes than those of a dataset that was made without it")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    contract_option(parser)
