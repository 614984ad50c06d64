"""Procedural textures, so that the package ships no image files."""

import numpy as np

SIZE = 512


def wood(color: tuple[float, float, float], seed: int = 7) -> np.ndarray:
    """uint8 [512, 512, 4] RGBA: grain along the second axis, in shades of `color` (RGB in [0, 1])."""
    rng = np.random.default_rng(seed)
    shade = np.zeros((SIZE, SIZE))
    for rows, columns, weight in ((6, 3, 0.5), (24, 6, 0.5), (96, 12, 0.35), (256, 32, 0.2)):
        shade += weight * _smooth_noise(rng, rows, columns)
    rings = np.sin(2 * np.pi * (np.linspace(0, 5, SIZE)[:, None] + 1.2 * shade))
    tone = 1.0 + 0.22 * shade + 0.10 * rings
    rgb = np.clip(np.asarray(color) * tone[..., None], 0.0, 1.0)
    return np.dstack([rgb * 255, np.full((SIZE, SIZE), 255)]).astype(np.uint8)


def _smooth_noise(rng, rows: int, columns: int) -> np.ndarray:
    """[SIZE, SIZE] noise in about [-1, 1]: a random grid of rows x columns, interpolated with a cosine ramp."""
    grid = rng.uniform(-1.0, 1.0, (rows + 1, columns + 1))

    def blend(count):
        position = np.linspace(0, count, SIZE, endpoint=False)
        index = position.astype(int)
        return index, 0.5 - 0.5 * np.cos(np.pi * (position - index))

    row, row_weight = blend(rows)
    column, column_weight = blend(columns)
    top = grid[row][:, column] * (1 - column_weight) + grid[row][:, column + 1] * column_weight
    bottom = grid[row + 1][:, column] * (1 - column_weight) + grid[row + 1][:, column + 1] * column_weight
    return top * (1 - row_weight[:, None]) + bottom * row_weight[:, None]
