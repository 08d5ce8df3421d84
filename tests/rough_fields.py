"""Fields on a grid that are hard to extract a surface from."""

import numpy as np


def waves(seed, resolution, frequency):
    """A random smooth field on the grid; high frequencies hide from the coarse grid."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.linspace(0, 1, resolution + 1)] * 3, indexing="ij"), axis=-1)
    directions = rng.normal(size=(3, 6)) * frequency
    return np.cos(axes @ directions + rng.uniform(0, 6, 6)) @ rng.normal(size=6)


def rough_fields(seed, resolution):
    """Fields of which interpolation tells little; some reach the faces of the grid, some do not.

    Yields
    ------
    float64 (resolution + 1,) * 3
        Positive inside.
    """
    rng = np.random.default_rng(seed)
    axis = np.linspace(-0.5, 0.5, resolution + 1)
    ball = 0.4 - np.sqrt(sum(x**2 for x in np.meshgrid(axis, axis, axis)))
    noise = rng.normal(size=ball.shape)
    yield noise
    yield ball + 0.02 * noise
    yield ball + 0.2 * noise
    yield ball + 0.2 + 0.05 * noise  # leaves the grid
    yield waves(seed, resolution, 30)
    yield np.round(noise)  # many values on the threshold
    yield np.round(8 * ball)
    yield np.where(rng.random(ball.shape) < 0.01, 100 * noise, ball)
    yield np.where(rng.random(ball.shape) < 0.003, 2.0, -1.0)
