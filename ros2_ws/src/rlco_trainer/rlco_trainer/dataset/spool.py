"""Finished episodes on disk, one file each, so that a stopped generation or build goes on where it was."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlco_common.episode import metadata_from_json
from rlco_common.errors import ConfigError, DataError
from rlco_trainer.dataset.packed import PackedEpisode

_RECIPE = "recipe.json"
_FILES = "files:"       # all PNG files of a camera, one after the other
_ENDS = "ends:"         # where each of them ends
_NOTE = ".note.json"


class EpisodeSpool:
    """Episodes by key in `directory`, all made by the same `recipe` (JSON values). Every file is complete or absent.

    Raises ConfigError when the directory holds episodes of another recipe. A note is a JSON text of its own by key, such as
    what became of a bag.
    """

    def __init__(self, directory: Path, recipe: dict, contract_text: str):
        self._directory = directory
        self._contract_text = contract_text     # once, not in every file
        path = directory / _RECIPE
        if path.exists() and (held := json.loads(path.read_text(encoding="utf-8"))) != recipe:
            changed = ", ".join(f"{key}: {held.get(key)} -> {recipe.get(key)}" for key in sorted(held.keys() | recipe.keys())
                                if held.get(key) != recipe.get(key))
            raise ConfigError(f"{directory} holds a stopped generation with other settings ({changed}); use those, or delete "
                              "the directory")
        directory.mkdir(parents=True, exist_ok=True)
        self._write(path, json.dumps(recipe, indent=1).encode())

    def keys(self) -> list[str]:
        """Keys of the episodes that are there, sorted as text."""
        return sorted(path.stem for path in self._directory.glob("*.npz"))

    def put(self, key: str, episode: PackedEpisode) -> None:
        """Keep an episode, in place of the one that the key may hold."""
        path = self._directory / f"{key}.npz"
        part = path.with_suffix(".part")
        about = {"metadata": replace(episode.metadata, contract="").to_json(), "digest": episode.digest,
                 "record": episode.record}
        with part.open("wb") as stream:
            np.savez(stream, proprioception=episode.proprioception, actions=episode.actions, stamps_ns=episode.stamps_ns,
                     ages_s=episode.ages_s, about=np.array(json.dumps(about)),
                     **{_FILES + name: np.frombuffer(b"".join(files), np.uint8) for name, files in episode.images.items()},
                     **{_ENDS + name: np.cumsum([len(file) for file in files]) for name, files in episode.images.items()})
        part.rename(path)

    def note(self, key: str, values: dict[str, Any]) -> None:
        self._write(self._directory / f"{key}{_NOTE}", json.dumps(values).encode())

    def notes(self) -> dict[str, dict[str, Any]]:
        """All notes by key."""
        return {path.name.removesuffix(_NOTE): json.loads(path.read_text(encoding="utf-8"))
                for path in self._directory.glob(f"*{_NOTE}")}

    def episodes(self, keys: Iterable[str]) -> Iterator[PackedEpisode]:
        """The kept episodes of `keys`. Raises DataError naming a file that cannot be read."""
        for key in keys:
            path = self._directory / f"{key}.npz"
            try:
                with np.load(path) as data:
                    yield self._read(data, str(path))
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{path} cannot be read ({error}); delete it and start again") from error

    def remove(self) -> None:
        shutil.rmtree(self._directory)

    def _read(self, data, where: str) -> PackedEpisode:
        about = json.loads(str(data["about"]))
        metadata = replace(metadata_from_json(about["metadata"], where), contract=self._contract_text)
        images = {}
        for name in (name.removeprefix(_FILES) for name in data.files if name.startswith(_FILES)):
            whole, ends = data[_FILES + name].tobytes(), data[_ENDS + name].tolist()
            images[name] = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return PackedEpisode(images, data["proprioception"], data["actions"], data["stamps_ns"], data["ages_s"], metadata,
                             about["digest"], about["record"])

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.rename(path)
