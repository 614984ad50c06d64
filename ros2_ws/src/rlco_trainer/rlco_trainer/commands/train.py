"""`rlco train`: Stage I and Stage II."""

from importlib import import_module

from rlco_trainer.commands.base import command


def add(commands) -> None:
    stages = command(commands, "train", None, "train a policy: Stage I, then Stage II").add_subparsers(
        title="stages", metavar="STAGE", required=True)

    def add(name: str, summary: str, config_class: str) -> None:
        def run(options):
            """Train until done or interrupted; an interrupted run has saved and says how to go on."""
            from rlco_trainer import config as configs
            from rlco_trainer.control import RunControl, stopped_by_signals

            config = configs.load_stage_config(getattr(configs, config_class), options.config, options.overrides)
            if options.plan:
                plan = getattr(import_module("rlco_trainer.plan"), f"plan_{name}")
                print(plan(config).text())
                return
            train = getattr(import_module(f"rlco_trainer.{name}"), f"train_{name}")
            with stopped_by_signals(RunControl()) as control:
                policy = train(config, control=control)
            if control.stopped:
                print(f"stopped; the same command goes on from the last step. The policy so far: {policy}")
                raise SystemExit(130)
            print(policy)

        parser = command(stages, name, run, summary)
        parser.add_argument("config", help=f"YAML file, or the name of a shipped one such as push_cube_{name}")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a field, for example ppo.clip=0.1")
        parser.add_argument("--plan", action="store_true", help="train nothing: say how much memory and time the run takes "
                            "here, measured with a few steps; refuses a run that does not fit")

    add("stage1", "supervised co-training on real and simulated demonstrations; resumes a stopped run", "StageOneConfig")
    add("stage2", "RL in the twin, anchored to the real demonstrations; resumes a stopped run", "StageTwoConfig")
