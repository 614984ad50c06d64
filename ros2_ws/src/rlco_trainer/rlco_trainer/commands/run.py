"""`rlco eval`, `rlco deploy`: running a checkpoint."""

from pathlib import Path

from rlco_trainer.commands.base import chosen_variation, command, contract_option, variation_option


def add(commands) -> None:
    _eval(commands)
    _deploy(commands)


def _eval(commands) -> None:
    def run(options):
        if options.source.suffix in (".yaml", ".yml"):
            return _eval_protocol(options.source)
        return _eval_checkpoint(options)

    parser = command(commands, "eval", run, "evaluate policies on paired initial states: by a protocol file, or in short form")
    parser.add_argument("source", type=Path, metavar="PROTOCOL.yaml|CHECKPOINT",
                        help="protocol file: twin, stand-in or real table, in-process or over ROS. Or the short form: a policy "
                        "directory such as runs/demo/rl_co/policy, in-process, to which alone the options belong")
    parser.add_argument("--task", default="push_cube")
    parser.add_argument("--domain", default="standin", help="twin, standin, or a domain YAML")
    variation_option(parser)
    parser.add_argument("--trials", type=int, default=200, help="number of initial states; the first ones are always the same")
    parser.add_argument("--records", type=Path, default=Path("runs/trials.jsonl"), help="JSON lines that trials are added to")
    parser.add_argument("--name", default="", help="name of this arm in the records; default: the run's directory")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    contract_option(parser)


def _eval_protocol(path: Path) -> None:
    from rlco_trainer.evaluation import RECORDS, run_protocol
    from rlco_trainer.protocol import load_protocol
    from rlco_trainer.report import trials_text

    protocol = load_protocol(path)
    trials = run_protocol(protocol)
    print(f"{trials_text(trials)}\nrecords in {protocol.out / RECORDS}; a page: rlco report {protocol.out}")


def _eval_checkpoint(options) -> None:
    from rlco_common.contract import load_contract
    from rlco_common.records import success_rate
    from rlco_common.seeds import EVALUATION
    from rlco_trainer.evaluation import evaluate

    trials = evaluate(options.source, options.name or options.source.parent.name, load_contract(options.contract),
                      task=options.task, domain=options.domain, seeds=EVALUATION[: options.trials],
                      records=options.records, variation=chosen_variation(options), workers=options.workers)
    print(f"{options.domain}: success {success_rate(trials)}; records in {options.records}")


def _deploy(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_common.records import success_rate
        from rlco_common.seeds import EVALUATION
        from rlco_trainer.sessions import deploy_episodes

        trials = deploy_episodes(load_contract(options.contract), options.checkpoint, options.out, task=options.task,
                                 domain=options.domain, seeds=EVALUATION[: options.trials], variation=chosen_variation(options),
                                 lockstep=options.lockstep, asynchronous=not options.synchronous)
        print(f"over ROS on {options.domain}: success {success_rate(trials)}; bags and records in {options.out}")

    parser = command(commands, "deploy", run, "run a checkpoint over ROS through the gate on a simulated robot")
    parser.add_argument("checkpoint", help="policy directory, for example runs/demo/rl_co/policy, or address of a policy "
                        "server, for example ws://localhost:8000")
    parser.add_argument("--task", default="push_cube")
    parser.add_argument("--domain", default="standin", help="domain that the bridge simulates")
    variation_option(parser)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="directory of bags and records")
    parser.add_argument("--lockstep", action="store_true", help="lock step instead of real time")
    parser.add_argument("--synchronous", action="store_true", help="real time: let the arm wait for every chunk")
    contract_option(parser)
