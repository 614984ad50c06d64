"""The objects of pick_place, as primitives. Origins lie at the middle of the height; sizes suit an 8 cm wide gripper."""

from rlco_sim_bridge.tasks.base import Body, Part, box

BAR_HALF_M = 0.0125     # half width and half height of the bars of L, T and cross


def _bar(color, half_length_m, along, position):
    half = (half_length_m, BAR_HALF_M) if along == "x" else (BAR_HALF_M, half_length_m)
    return box((*half, BAR_HALF_M), color, (*position, 0.0))


SHAPES = {
    "cube": Body((box((0.02, 0.02, 0.02), "cube"),), 0.02),
    "ball": Body((Part("sphere", (0.024,), "ball"),), 0.024),
    "cylinder": Body((Part("cylinder", (0.02, 0.03), "cylinder"),), 0.03),
    "box": Body((box((0.015, 0.035, 0.02), "box"),), 0.02),
    # a bar of 8 cm along y with a shorter one of 3.5 cm sticking out along +x: at its end, or at its middle
    "L_shape": Body((_bar("L_shape", 0.04, "y", (-0.0125, 0.0)), _bar("L_shape", 0.0175, "x", (0.0175, -0.0275))), BAR_HALF_M),
    "T_shape": Body((_bar("T_shape", 0.04, "y", (-0.0125, 0.0)), _bar("T_shape", 0.0175, "x", (0.0175, 0.0))), BAR_HALF_M),
    "cross": Body((_bar("cross", 0.04, "y", (0.0, 0.0)), _bar("cross", 0.04, "x", (0.0, 0.0))), BAR_HALF_M),
}
