"""`rlco train`: Stage I and Stage II."""

from rlco_trainer.commands.base import command


def add(commands) -> None:
    stages = command(commands, "train", None, "train a policy: Stage I, then Stage II").add_subparsers(
        title="stages", metavar="STAGE", required=True)

    def add(name: str, summary: str, train) -> None:
        parser = command(stages, name, train, summary)
        parser.add_argument("config", help=f"YAML file, or the name of a shipped one such as push_cube_{name}")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a field, for example ppo.clip=0.1")

    def run(train, config):
        """Train until done or interrupted; an interrupted run has saved and says how to go on."""
        from rlco_trainer.control import RunControl, stopped_by_signals

        with stopped_by_signals(RunControl()) as control:
            policy = train(config, control=control)
        if control.stopped:
            print(f"stopped; the same command goes on from the last step. The policy so far: {policy}")
            raise SystemExit(130)
        print(policy)

    def stage1(options):
        from rlco_trainer.config import StageOneConfig, load_stage_config
        from rlco_trainer.stage1 import train_stage1

        run(train_stage1, load_stage_config(StageOneConfig, options.config, options.overrides))

    def stage2(options):
        from rlco_trainer.config import StageTwoConfig, load_stage_config
        from rlco_trainer.stage2 import train_stage2

        run(train_stage2, load_stage_config(StageTwoConfig, options.config, options.overrides))

    add("stage1", "supervised co-training on real and simulated demonstrations; resumes a stopped run", stage1)
    add("stage2", "RL in the twin, anchored to the real demonstrations; resumes a stopped run", stage2)
