"""SAPIEN's shaders without their table for reflections of an environment map.

Our scenes have no environment map, so that table changes no pixel, but a CPU renderer computes for 10 s to fill it, in
every process that takes a picture.
"""

import re
import shutil
from functools import lru_cache
from pathlib import Path

import sapien
from mani_skill.render.shaders import PREBUILT_SHADER_CONFIGS, ShaderConfig

from rlco_sim_bridge.cache import cached_folder

_COLOR_FORMATS = {"minimal": "r8g8b8a8unorm", "default": "r32g32b32a32sfloat"}
_POSITION_FORMATS = {"minimal": "r16g16b16a16sint", "default": "r32g32b32a32sfloat"}
_TABLE_DECLARATION = re.compile(r"^.*uniform sampler2D samplerBRDFLUT;.*$", re.MULTILINE)
_TABLE_USE = re.compile(r"texture\(samplerBRDFLUT,[^;]*\)\.xy")


@lru_cache(maxsize=2)
def shader_config(name: str) -> ShaderConfig:
    """ManiSkill's configuration of our variant of the pack `name`: "minimal" (fast) or "default" (for people)."""
    stock = PREBUILT_SHADER_CONFIGS[name]
    return ShaderConfig(str(_packs() / name), stock.texture_names, stock.shader_pack_config, stock.texture_transforms)


def activate(name: str) -> None:
    """Make pack `name` the one of the cameras that are created next."""
    sapien.render.set_camera_shader_dir(shader_config(name).shader_pack)
    sapien.render.set_picture_format("Color", _COLOR_FORMATS[name])
    sapien.render.set_picture_format("ColorRaw", _COLOR_FORMATS[name])
    sapien.render.set_picture_format("PositionSegmentation", _POSITION_FORMATS[name])


def _packs() -> Path:
    source = Path(sapien.__file__).parent / "vulkan_shader"

    def fill(folder: Path):
        for pack in ("common", *_COLOR_FORMATS):
            shutil.copytree(source / pack, folder / pack)
        for path in [*folder.rglob("*.frag"), *folder.rglob("*.glsl")]:
            text = _TABLE_DECLARATION.sub("", path.read_text(encoding="utf-8"))
            path.write_text(_TABLE_USE.sub("vec2(0.0)", text), encoding="utf-8")

    return cached_folder(f"shaders_sapien_{sapien.__version__}", fill)
