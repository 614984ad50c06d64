"""`rlco fault`: break something on purpose in the running graph, and see whether what was promised holds."""

import tempfile
from pathlib import Path

from rlco_trainer.commands.base import command, contract_option


def add(commands) -> None:
    parser = command(commands, "fault", _run, "break something on purpose in the graph on the stand-in robot, and say whether "
                     "the promise for that case held")
    parser.epilog = ("Starts simulator, gate, recorder, an operator's device and a policy as separate processes, moves the "
                     "arm, injects the fault while it moves, and measures. Exit status 0: every promise held; 1: one did "
                     "not, or could not be tried. Example: rlco fault camera_delay kill_gate")
    parser.add_argument("name", nargs="*", help="faults to try, or all; --list explains each")
    parser.add_argument("--list", action="store_true", help="list the faults and what is promised for each, and start nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there as JSON")
    parser.add_argument("--out", type=Path, help="directory for bags and logs (default: a temporary one, removed at the end)")
    parser.add_argument("--checkpoint", type=Path, help="policy to try the faults on (default: an untrained one)")
    contract_option(parser)


def _run(options) -> int:
    from rlco_common.errors import ConfigError
    from rlco_trainer.faults.base import verdict_line, verdicts_json
    from rlco_trainer.faults.runner import catalogue, chosen, run_faults

    if options.list:
        print("\n".join(f"{fault.name}: {fault.does}\n    {fault.promise}" for fault in catalogue().values()))
        return 0
    if not options.name:
        raise ConfigError(f"name a fault, or all; there are {', '.join(catalogue())}. 'rlco fault --list' explains them")
    faults = chosen(options.name)
    width = max(len(fault.name) for fault in faults)
    with tempfile.TemporaryDirectory(prefix="rlco_fault_") as scratch:
        print(f"starting the graph for {len(faults)} fault(s); logs in {(options.out or Path(scratch)) / 'logs'}", flush=True)
        verdicts = run_faults(faults, options.out or Path(scratch), contract_source=options.contract,
                              checkpoint=options.checkpoint,
                              on_verdict=lambda verdict: print(verdict_line(verdict, width), flush=True))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(verdicts_json(verdicts) + "\n", encoding="utf-8")
    held = sum(verdict.status == "held" for verdict in verdicts)
    print(f"{held} of {len(verdicts)} promises held")
    return int(held < len(verdicts))
