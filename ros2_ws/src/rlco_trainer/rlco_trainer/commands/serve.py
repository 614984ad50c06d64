"""`rlco serve`: a checkpoint on a machine with a GPU, for robots elsewhere."""

from pathlib import Path

from rlco_trainer.commands.base import command


def add(commands) -> None:
    parser = command(commands, "serve", _run, "serve a checkpoint to policy nodes on other machines (openpi's websocket "
                     "protocol); the environment variable RLCO_API_KEY sets a key that clients must know")
    parser.add_argument("checkpoint", type=Path, help="policy directory, for example runs/demo/rl_co/policy")
    parser.add_argument("--host", default="localhost", help="address to listen on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs")
    parser.add_argument("--temperature", type=float, default=0.0, help="randomness of the actions; 0 is deterministic")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")


def _run(options) -> int:
    import os
    from contextlib import closing

    import torch

    from rlco_common.errors import ConfigError
    from rlco_common.signals import stop_requested
    from rlco_policy.remote.client import API_KEY
    from rlco_policy.remote.server import PolicyServer

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    key = os.environ.get(API_KEY, "")
    with stop_requested() as stop, closing(PolicyServer(
            options.checkpoint, options.host, options.port, api_key=key, temperature=options.temperature,
            device=options.device)) as server:
        served = server.served
        print(f"serving {served.policy} ({options.checkpoint}) on ws://{options.host}:{server.port}; "
              + (f"clients need {API_KEY}" if key else "no key is asked for"), flush=True)
        stop.wait()
    return 0
