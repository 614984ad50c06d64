"""From the `checkpoint` parameter to a runner that is ready: a directory runs here, a ws:// address on its server."""

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_policy.execution import AsynchronousExecution, SynchronousExecution
from rlco_policy.worker import Execution, Runner

SCHEMES = ("ws://", "wss://")


def open_runner(checkpoint: str, contract: Contract, *, temperature: float = 0.0, threads: int = 1,
                device: str = "cpu", timeout_s: float = 2.0) -> Runner:
    """A warm runner. Raises ConfigError, DataError, ContractMismatch or PolicyServerError saying what does not fit."""
    if not checkpoint:
        raise ConfigError("parameter checkpoint is empty; give the directory of a policy, such as runs/demo/rl_co/policy, "
                          "or the address of a policy server, such as ws://localhost:8000")
    if checkpoint.startswith(SCHEMES):
        from rlco_policy.remote.client import RemoteRunner

        runner = RemoteRunner(checkpoint, contract, timeout_s=timeout_s)
    else:
        import torch  # here, because a robot whose policy runs elsewhere has none

        from rlco_policy.checkpoint import load_policy
        from rlco_policy.runner import PolicyRunner

        if device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"device {device}: torch sees no GPU here; use device cpu, or run the policy on a server "
                              "(rlco serve) and give its address as the checkpoint")
        torch.set_num_threads(threads)
        runner = PolicyRunner(load_policy(checkpoint, contract).to(device), contract, temperature)
    runner.warm_up()
    return runner


def choose_execution(runner: Runner, contract: Contract, *, asynchronous: bool, max_slowdown: int = 4) -> Execution:
    """How the runner's chunks follow each other."""
    if not asynchronous:
        return SynchronousExecution(runner.chunk, contract.control_period_ns)
    return AsynchronousExecution(runner.horizon, runner.chunk, contract.control_period_ns, guided=runner.guided,
                                 latency_ns=round(runner.latency_s * 1e9), max_slowdown=max_slowdown)
