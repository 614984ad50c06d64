"""`rlco shadow`: what a policy would have done where an operator drove."""

from pathlib import Path

from rlco_trainer.commands.base import command, contract_option


def add(commands) -> None:
    parser = command(commands, "shadow", _run, "run a policy on recorded operation without connecting it; its action error "
                     "against the operator by phase, as a page")
    parser.add_argument("source", type=Path, help="episode bag, folder of bags, or dataset")
    parser.add_argument("--checkpoint", type=Path, required=True, help="policy directory, for example runs/demo/rl_co/policy")
    parser.add_argument("--out", type=Path, default=Path("runs/shadow.html"), help="the HTML page to write")
    contract_option(parser)


def _run(options) -> None:
    from rlco_common.contract import load_contract
    from rlco_trainer.shadow import shadow

    print(shadow(load_contract(options.contract), options.source, options.checkpoint, options.out))
