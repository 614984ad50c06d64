"""`rlco export`: checkpoints in the layouts of other projects."""

from pathlib import Path

from rlco_trainer.commands.base import command


def add(commands) -> None:
    targets = command(commands, "export", None, "write a checkpoint or a run for another project").add_subparsers(
        title="targets", metavar="TARGET", required=True)
    _weights(targets, "openvla", "an openvla policy as a checkpoint of OpenVLA's own code, adapters merged", _openvla)
    _weights(targets, "lerobot", "a pi05 policy as a LeRobot checkpoint with its processors, adapters merged", _lerobot)
    _rlinf(targets)


def _weights(targets, name: str, summary: str, write) -> None:
    def run(options):
        from rlco_policy.checkpoint import load_policy

        print(write(load_policy(options.checkpoint), options.out))

    parser = command(targets, name, run, summary)
    parser.add_argument("checkpoint", type=Path, help="policy directory, for example runs/demo/rl_co/policy")
    parser.add_argument("out", type=Path, help="new folder")


def _rlinf(targets) -> None:
    def run(options):
        from rlco_trainer.rlinf_export import export_rlinf

        folder, differences = export_rlinf(options.run_, options.out, cluster_root=options.cluster_root,
                                           overrides=options.overrides)
        print(folder)
        print("not carried over, because RLinf's recipe does it otherwise:", *differences, sep="\n- ")

    parser = command(targets, "rlinf", run, "a Stage II run of pi05 for RLinf: data, weights, statistics and configuration")
    parser.add_argument("run_", metavar="RUN", help="directory of a Stage II run, or its YAML before it has been started")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a field of the run's configuration")
    parser.add_argument("--cluster-root", default="", help="where the folder will lie on the cluster; empty: as written here")


def _openvla(policy, out: Path) -> Path:
    from rlco_policy.openvla.export import write_openvla
    from rlco_policy.openvla.policy import OpenVla

    return write_openvla(_require(policy, OpenVla, "openvla"), out)


def _lerobot(policy, out: Path) -> Path:
    from rlco_policy.pi05.export import write_lerobot
    from rlco_policy.pi05.policy import Pi05

    return write_lerobot(_require(policy, Pi05, "pi05"), out)


def _require(policy, cls: type, name: str):
    from rlco_common.errors import ConfigError

    if not isinstance(policy, cls):
        raise ConfigError(f"this export is for {name} policies; the checkpoint holds a {type(policy).__name__}")
    return policy
