"""Published model folders: where they are, their weights in one file or in shards, and the small files beside them."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from rlco_common.errors import DataError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = ("*.json", "*.model", "*.py", "*.txt", "*.jinja")
SMALL_BYTES = 64 << 20
SAMPLED_BYTES = 4096


class ModelFolder:
    """A folder with safetensors weights, a config.json and a tokenizer, in the layout of the public hub."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def open(cls, name: str, revision: str = "") -> "ModelFolder":
        """A local folder, or a repository of the hub, which is downloaded once. Raises DataError with the way out."""
        path = Path(name).expanduser()
        if path.is_dir():
            return cls(path.absolute())
        from huggingface_hub import snapshot_download

        try:
            return cls(Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.safetensors", *SMALL_FILES])))
        except Exception as error:
            raise DataError(f"'{name}' is neither a folder here nor could it be fetched from the hub ({error}). Download it "
                            "where there is a network, and give the folder") from error

    def json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path}: no such file; the folder is not a whole checkpoint")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not valid JSON: {error}") from error

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path)

    @cached_property
    def shards(self) -> dict[str, str]:
        """Weight name -> file name."""
        if (self.path / INDEX).is_file():
            return dict(self.json(INDEX)["weight_map"])
        with self._open_file(SINGLE) as file:
            return {name: SINGLE for name in file.keys()}   # noqa: SIM118 - not a dict

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the wanted weights, one at a time, shard by shard."""
        wanted = set(self.shards if names is None else names)
        for shard in sorted({self.shards[name] for name in wanted}):
            with self._open_file(shard) as file:
                for name in sorted(wanted & set(file.keys())):
                    yield name, file.get_tensor(name)

    def small_files(self) -> dict[str, bytes]:
        """Configuration, tokenizer and code: what a copy of the checkpoint needs beside its weights."""
        paths = {path for pattern in SMALL_FILES for path in self.path.glob(pattern)} - {self.path / INDEX}
        return {path.name: path.read_bytes() for path in sorted(paths) if path.stat().st_size <= SMALL_BYTES}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and the first bytes of every weight: tells two checkpoints apart in seconds."""
        digest = hashlib.sha256()
        for shard in sorted(set(self.shards.values())):
            with (self.path / shard).open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = stream.read(size)
                digest.update(header)
                for entry in json.loads(header).values():
                    if "data_offsets" in entry:
                        stream.seek(8 + size + entry["data_offsets"][0])
                        digest.update(stream.read(min(SAMPLED_BYTES, entry["data_offsets"][1] - entry["data_offsets"][0])))
        return digest.hexdigest()[:16]

    def _open_file(self, name: str):
        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path}: no such file; the checkpoint is incomplete")
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as error:
            raise DataError(f"{path}: unreadable weights: {error}") from error


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder, exactly as its tokenizer.json says. Raises DataError when there is none."""
    path = Path(folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file. Tokenizers are not part of this project: copy tokenizer.json from the model's "
                        "page (some models ask you to accept their terms first)")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def write_weights(weights: dict[str, Tensor], directory: Path, shard_bytes: int = 7_000_000_000) -> None:
    """Write model.safetensors, or shards and their index where that would be larger than `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    metadata = {"format": "pt"}
    if len(shards) == 1:
        _save(shards[0], directory / SINGLE, metadata)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, directory / file, metadata)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path, metadata)


def load_named(module: torch.nn.Module, weights: Iterable[tuple[str, Tensor]], dtypes: dict[str, torch.dtype]) -> set[str]:
    """Put weights into a module by name, each in its `dtypes`; tensors on the meta device are replaced by them.

    Returns the names that were put. Raises DataError on a name the module lacks or another shape.
    """
    own, done = module.state_dict(keep_vars=True), set()
    for name, tensor in weights:
        if name not in own or own[name].shape != tensor.shape:
            expected = f"has shape {list(own[name].shape)}" if name in own else "does not exist"
            raise DataError(f"the checkpoint's {name} {list(tensor.shape)} {expected} in the model; give the model's sizes in "
                            "the policy's config")
        value = tensor.to(dtypes[name])
        if own[name].is_meta:
            value = value.clone() if value is tensor else value     # see checkpoint: alignment
            module.load_state_dict({name: value}, strict=False, assign=True)
        else:
            with torch.no_grad():
                own[name].copy_(value)
        done.add(name)
    return done
