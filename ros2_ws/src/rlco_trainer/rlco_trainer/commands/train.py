"""`rlco train`: Stage I and Stage II."""

from rlco_trainer.commands.base import command


def add(commands) -> None:
    stages = command(commands, "train", None, "train a policy: Stage I, then Stage II").add_subparsers(
        title="stages", metavar="STAGE", required=True)

    def add(name: str, summary: str, run) -> None:
        parser = command(stages, name, run, summary)
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
