"""Generated episodes on disk, one file each, so that a stopped generation goes on where it was."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlco_common.episode import metadata_from_json
from rlco_common.errors import ConfigError, DataError
from rlco_trainer.dataset.episode import AlignedEpisode

_RECIPE = "recipe.json"
_IMAGE = "image:"


class EpisodeSpool:
    """Episodes by seed in `directory`, all made by the same `recipe` (JSON values).

    Raises ConfigError when the directory holds episodes of another recipe. A file is complete or absent.
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
        path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")

    def seeds(self) -> list[int]:
        """Seeds of the episodes that are there, ascending."""
        return sorted(int(path.stem) for path in self._directory.glob("*.npz"))

    def put(self, episode: AlignedEpisode) -> None:
        """Keep an episode under its metadata's seed."""
        metadata = replace(episode.metadata, contract="")
        path = self._directory / f"{metadata.seed}.npz"
        part = path.with_suffix(".part")
        with part.open("wb") as stream:
            np.savez(stream, proprioception=episode.proprioception, actions=episode.actions, stamps_ns=episode.stamps_ns,
                     ages_s=episode.ages_s, metadata=np.array(metadata.to_json()),
                     **{_IMAGE + name: images for name, images in episode.images.items()})
        part.rename(path)

    def episodes(self, seeds: list[int]) -> Iterator[AlignedEpisode]:
        """The kept episodes of `seeds`. Raises DataError naming a file that cannot be read."""
        for seed in seeds:
            path = self._directory / f"{seed}.npz"
            try:
                with np.load(path) as data:
                    metadata = metadata_from_json(str(data["metadata"]), str(path))
                    images = {name.removeprefix(_IMAGE): data[name] for name in data.files if name.startswith(_IMAGE)}
                    yield AlignedEpisode(images, data["proprioception"], data["actions"], data["stamps_ns"], data["ages_s"],
                                         replace(metadata, contract=self._contract_text))
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{path} cannot be read ({error}); delete it and start again") from error

    def remove(self) -> None:
        shutil.rmtree(self._directory)
