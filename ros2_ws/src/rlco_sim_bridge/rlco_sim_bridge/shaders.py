"""SAPIEN's shaders without the work that changes no pixel of our scenes and that a CPU renderer pays for dearly.

Our scenes have no environment map, so its reflections are black; the table that they need takes 10 s to fill in every process
that takes a picture. Nothing is transparent, no surface has a normal map, and there is no picture behind the scene to compose
with. A pixel of the shadow needs 9 reads of the shadow map rather than 25, and none where the light does not fall. Together a
picture at 128 px takes a third less time.
"""

import hashlib
import re
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import sapien
from mani_skill.render.shaders import PREBUILT_SHADER_CONFIGS, ShaderConfig

from rlco_sim_bridge.cache import cached_folder

_COLOR_FORMATS = {"minimal": "r8g8b8a8unorm", "default": "r32g32b32a32sfloat"}
_POSITION_FORMATS = {"minimal": "r16g16b16a16sint", "default": "r32g32b32a32sfloat"}

# The mean over 5 x 5 neighbouring texels, each interpolated, is a sum over 6 x 6 texels whose outer rows and columns count
# in part: 3 x 3 reads of 2 x 2 texels. A read gives x lower left, y lower right, z upper right, w upper left, with v downwards.
_SHADOW = """
float ShadowMapPCF(sampler2D depths, vec3 place, float resolution, float texel, float spacing) {
  vec2 part = fract(place.xy * resolution + 0.5f);
  float lit = 0.0f;
  for (int row = 0; row < 3; ++row) {
    vec2 down = row == 0 ? vec2(1 - part.y, 1) : row == 1 ? vec2(1) : vec2(1, part.y);
    for (int column = 0; column < 3; ++column) {
      vec2 along = column == 0 ? vec2(1 - part.x, 1) : column == 1 ? vec2(1) : vec2(1, part.x);
      vec4 depth = textureGather(depths, place.xy + spacing * texel * vec2(2 * column - 2, 2 * row - 2));
      vec4 seen = vec4(greaterThanEqual(depth, vec4(place.z)));
      lit += down.x * dot(along, seen.wz) + down.y * dot(along, seen.xy);
    }
  }
  return lit / 25;
}
"""
_NORMAL_ONLY = """layout(location = 3) %s vec3 %sNormal;
"""

TABLE = "*/*.frag"      # the files that read the table of reflections
# file -> (pattern, replacement); `.` matches newlines
EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    TABLE: ((r"[^\n]*uniform sampler2D samplerBRDFLUT;", ""), (r"texture\(samplerBRDFLUT,[^;]*?\)\.xy", "vec2(0.0)")),
    "common/shadow.glsl": ((r"const int PCF_SampleCount.*", _SHADOW),),
    "minimal/gbuffer.vert": (
        (r"layout\(location = 3\) out vec3 objectCoord;.*?outTbn;\n", _NORMAL_ONLY % ("out", "out")),
        (r"  objectCoord = position;\n", ""),
        (r"  vec3 outTangent = .*", "  outNormal = normalize(normalMatrix * normal);\n}\n"),
    ),
    "minimal/gbuffer.frag": (
        (r"layout\(location = 3\) in vec3 objectCoord;.*?inTbn;\n", _NORMAL_ONLY % ("in", "in")),
        (r"    if \(\(materialBuffer\.textureMask & 4\).*?vec3\(0, 0, 1\)\);\n    \}", "    normal = normalize(inNormal);"),
        (r"  if \(albedo\.a == 0\) \{.*?\}\n", ""),      # a discard rules out early depth tests
        (r"  vec3 wnormal = .*?(?=  color \+= sceneBuffer\.ambientLight)", ""),
        (r"(?<=float visibility = )(?=ShadowMapPCF\(\s*samplerDirectional)", "dot(normal, -lightDir) <= 0 ? 0.0f : "),
        (r"outColorRaw", "outColor"),       # nothing behind it shows through
    ),
}
DROPPED = ("minimal/composite.vert", "minimal/composite0.frag")


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


def edited_packs(folder: Path, edits: dict[str, tuple[tuple[str, str], ...]], dropped: Sequence[str] = ()) -> None:
    """Write SAPIEN's packs into `folder`, edited (file pattern -> (pattern, replacement)) and without the files `dropped`."""
    source = Path(sapien.__file__).parent / "vulkan_shader"
    for pack in ("common", *_COLOR_FORMATS):
        shutil.copytree(source / pack, folder / pack)
    for path in dropped:
        (folder / path).unlink()
    for files, replacements in edits.items():
        for path in folder.glob(files):
            text = path.read_text(encoding="utf-8")
            for pattern, replacement in replacements:
                text = re.sub(pattern, replacement, text, flags=re.DOTALL)
            path.write_text(text, encoding="utf-8")


def _packs() -> Path:
    version = hashlib.sha256(repr((sapien.__version__, EDITS, DROPPED)).encode()).hexdigest()[:12]
    return cached_folder(f"shaders_{version}", lambda folder: edited_packs(folder, EDITS, DROPPED))
