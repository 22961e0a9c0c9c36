"""Where to write the names of points so that they cover neither each other nor the points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RADII = (9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 65.0, 85.0, 110.0, 140.0, 180.0, 230.0)
_ANGLES = np.deg2rad([0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240])


def place(
    points: NDArray[np.float64],
    sizes: NDArray[np.float64],
    bounds: tuple[float, float, float, float],
    obstacles: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Centres for labels, all in pixels.

    Each label takes the cheapest spot around its point: near, inside the bounds, clear of earlier
    labels and of obstacles. Crowded points go first, since they have the least choice.

    Args:
        points: what is labelled, [labels, 2].
        sizes: width and height of each label, [labels, 2].
        bounds: left, bottom, right, top of the room for labels.
        obstacles: rectangles not to be covered, as left, bottom, right, top, [m, 4].

    Returns:
        Centres, [labels, 2].
    """
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    order = np.argsort([-np.sum(np.exp(-row / 40)) for row in distance], kind="stable")
    centres = np.full_like(points, np.nan)
    in_the_way, written = obstacles.reshape(-1, 4), np.empty((0, 4))
    for i in order:
        spots = _spots(points[i], sizes[i])
        boxes = np.concatenate([spots - sizes[i] / 2, spots + sizes[i] / 2], axis=1)
        left, bottom, right, top = bounds
        outside = (
            (boxes[:, 0] < left)
            | (boxes[:, 1] < bottom)
            | (boxes[:, 2] > right)
            | (boxes[:, 3] > top)
        )
        far = np.linalg.norm(spots - points[i], axis=1)
        covered = _overlap(boxes, written).sum(1)
        # Written labels must not be covered at all, obstacles as little as can be.
        cost = far / 40 + 1e5 * outside + 1e4 * (covered > 0) + covered
        cost += _overlap(boxes, in_the_way).sum(1)
        best = int(np.argmin(cost))
        centres[i] = spots[best]
        label = np.concatenate([centres[i] - sizes[i] / 2 - 2, centres[i] + sizes[i] / 2 + 2])
        written = np.concatenate([written, label[None]])
    return centres


def _spots(point: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Candidate centres: the label's edge is `radius` pixels from the point in each direction."""
    directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
    return np.concatenate([point + directions * (radius + size / 2) for radius in _RADII])


def _overlap(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shared area of each box with each other, [boxes, others]."""
    width = np.minimum(boxes[:, None, 2], others[None, :, 2]) - np.maximum(
        boxes[:, None, 0], others[None, :, 0]
    )
    height = np.minimum(boxes[:, None, 3], others[None, :, 3]) - np.maximum(
        boxes[:, None, 1], others[None, :, 1]
    )
    return np.maximum(width, 0) * np.maximum(height, 0)
