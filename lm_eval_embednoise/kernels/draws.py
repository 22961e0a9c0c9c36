"""Standard vectors at given counters, and hidden states with them added: C and PyTorch.

A law has mean 0 and variance 1: Gaussian, or uniform on ±√3. Integers are computed in int64 with
wrap-around, and numbers from them by additions, multiplications, divisions and square roots in
float64, one rounding each. IEEE 754 fixes every step, so both versions are equal bit for bit, and
PyTorch's on every device. (Library logarithms and cosines, which Box–Muller needs, differ between
vector widths and devices.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.kernels.arguments import address, refusal

_MASK = 0xFFFFFFFF
_ROUND_M = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
LAWS = ("gaussian", "uniform")  # in C by their number
_CHUNK = 1 << 15  # numbers drawn at a time: intermediates stay in the processor's cache
_CHUNK_GPU = 1 << 22  # the same on a GPU, where a dozen such arrays of 64-bit numbers exist at once


def vectors(keys: Tensor, positions: Tensor, dim: int, law: str = "gaussian") -> Tensor:
    """Vectors of independent numbers of mean 0 and variance 1, one for each row and position.

    Args:
        keys: int64 [rows, 2] of 32-bit words.
        positions: int64 [rows, pos].
        dim: length of a vector.
        law: one of `LAWS`.

    Returns:
        float32 [rows, pos, dim].

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place.
    """
    if positions.ndim != 2:
        raise refusal("positions", positions, torch.int64, "rows, pos")
    rows, count = positions.shape
    out = torch.empty(rows, count, dim, dtype=torch.float32)
    build.functions("draws").vectors(
        LAWS.index(law),
        rows,
        count,
        dim,
        address("keys", keys, torch.int64, (rows, 2)),
        address("positions", positions, torch.int64, (rows, count)),
        out.data_ptr(),
    )
    return out


def vectors_torch(keys: Tensor, positions: Tensor, dim: int, law: str = "gaussian") -> Tensor:
    """`vectors` in PyTorch's operations, on any device."""
    of_words = {"gaussian": _normal_from_words, "uniform": _uniform_from_words}[law]
    blocks = -(-dim // 4)
    rows, pos = positions.shape
    flat_keys = keys[:, None, :].expand(rows, pos, 2).reshape(-1, 2)
    flat_positions = positions.reshape(-1)
    out = torch.empty(rows * pos, blocks * 4, dtype=torch.float32, device=keys.device)
    coordinate = torch.arange(blocks, device=keys.device)[None, :]
    chunk = _CHUNK if keys.device.type == "cpu" else _CHUNK_GPU
    step = max(1, chunk // (blocks * 4))
    for start in range(0, rows * pos, step):
        part = slice(start, start + step)
        position = flat_positions[part, None].expand(-1, blocks)
        zero = torch.zeros_like(position)
        words = philox(
            (coordinate.expand_as(position), position, zero, zero), flat_keys[part, None]
        )
        out[part] = of_words(words).reshape(-1, blocks * 4)
    return out[:, :dim].reshape(rows, pos, dim)


def add_noise(
    hidden: Tensor, keys: Tensor, positions: Tensor, std: Tensor, law: str = "gaussian"
) -> tuple[Tensor, Tensor]:
    """Hidden states + std · vectors, and how strong that is.

    Args:
        hidden: float32 [rows, pos, dim].
        keys: int64 [rows, 2] of 32-bit words.
        positions: int64 [rows, pos].
        std: float32 [rows, pos]; nothing is drawn where it is 0.
        law: one of `LAWS`.

    Returns:
        [rows, pos, dim], and float64 [rows, 2]: the sum of ‖noise‖ / ‖hidden‖ over the positions
        with noise, and their number.

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place.
    """
    if hidden.ndim != 3:
        raise refusal("hidden", hidden, torch.float32, "rows, pos, dim")
    rows, count, dim = hidden.shape
    out = torch.empty(rows, count, dim, dtype=torch.float32)
    ratios = torch.empty(rows, 2, dtype=torch.float64)
    build.functions("draws").add_noise(
        LAWS.index(law),
        rows,
        count,
        dim,
        address("keys", keys, torch.int64, (rows, 2)),
        address("positions", positions, torch.int64, (rows, count)),
        address("std", std, torch.float32, (rows, count)),
        address("hidden", hidden, torch.float32, hidden.shape),
        out.data_ptr(),
        ratios.data_ptr(),
    )
    return out, ratios


def add_noise_torch(
    hidden: Tensor, keys: Tensor, positions: Tensor, std: Tensor, law: str = "gaussian"
) -> tuple[Tensor, Tensor]:
    """`add_noise` in PyTorch's operations, on any device."""
    drawn = vectors_torch(keys, positions, hidden.shape[-1], law)
    return add_drawn(hidden, std[:, :, None] * drawn)


def add_drawn(hidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`add_noise` for noise that is drawn already, float32 [rows, pos, dim]; hidden of any type."""
    epsilon = noise.norm(dim=-1)
    ratio = epsilon / hidden.float().norm(dim=-1).clamp_min(1e-30)
    sums = torch.stack([ratio.sum(dim=1), (epsilon > 0).sum(dim=1)], dim=1)
    return hidden + noise.to(hidden.dtype), sums.double()


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> Tensor:
    """Philox-4x32-10.

    Args:
        counter: four int64 tensors of 32-bit words, all of one shape [...].
        key: int64 [..., 2] of 32-bit words, broadcastable.

    Returns:
        int64 [..., 4] of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key[..., 0], key[..., 1]
    for _ in range(10):
        p0, p1 = c0 * _ROUND_M[0], c2 * _ROUND_M[1]  # 64-bit products, kept modulo 2**64
        c0, c1, c2, c3 = (
            (p1 >> 32 & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            (p0 >> 32 & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


# Wichura's algorithm AS 241 (PPND16, Applied Statistics 37, 1988): the inverse of the normal
# distribution function as rational functions; the branch beyond |z| = 6.7 can't be reached with
# 32-bit uniforms, whose smallest value is 2**-33.
_CENTRE_NUM = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
_CENTRE_DEN = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
_TAIL_NUM = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
_TAIL_DEN = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)
_LN2 = 0.6931471805599453


def _normal_from_words(words: Tensor) -> Tensor:
    """Standard normals (float32) from 32-bit words by the inverse distribution function."""
    u = (words.to(torch.float64) + 0.5) * 2.0**-32
    q = u - 0.5
    r = 0.180625 - q * q
    centre = q * (_horner(_CENTRE_NUM, r) / _horner(_CENTRE_DEN, r))
    t = torch.sqrt(-_log(torch.minimum(u, 1.0 - u))) - 1.6
    tail = _horner(_TAIL_NUM, t) / _horner(_TAIL_DEN, t)
    tail = torch.where(q < 0, -tail, tail)
    return torch.where(q.abs() <= 0.425, centre, tail).to(torch.float32)


def _uniform_from_words(words: Tensor) -> Tensor:
    """Uniform numbers of variance 1 (float32) from 32-bit words: (2u − 1)·√3."""
    u = (words.to(torch.float64) + 0.5) * 2.0**-32
    return ((2.0 * u - 1.0) * 1.7320508075688772).to(torch.float32)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value.mul_(x).add_(coefficient)  # two roundings: never a fused multiply-add
    return value


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of x in (0, 1) to 1e-12, from operations that IEEE 754 rounds exactly."""
    mantissa, exponent = torch.frexp(x)  # mantissa in [1/2, 1)
    s = (mantissa * 1.4142135623730951 - 1.0) / (mantissa * 1.4142135623730951 + 1.0)
    odd = tuple(2.0 / n for n in range(17, 0, -2))
    return s * _horner(odd, s * s) + (exponent.to(torch.float64) - 0.5) * _LN2
