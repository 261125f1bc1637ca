"""Where every value comes from: a key for (version, seed, name) and Philox4x32-10 over the element's index.

This module is the definition, written to be read. `cpu.py` and `device.py` compute the same words faster.
The whole contract, with test vectors, is on the page `docs/value-contract.md`.
"""

from __future__ import annotations

import hashlib
import operator

import numpy as np
import numpy.typing as npt

from fanin.errors import SchemeError, compose

VERSION = 1

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

GROUP = 64
"""Elements in a group: 16 counters of 4 words, so that one group fills the widest vector registers."""
COUNTERS = 16
"""Counters in a group. Element j of a group has word j // 16 of counter j % 16."""

VALUES = 0
"""The lane of real values, and of the real part of complex ones. A lane is a stream of its own under the same key."""
IMAGINARY = 1
"""The lane of imaginary parts."""
MATRIX = 2
"""The lane of the normal variates behind matrix-wide laws (see `haar`)."""
CHOICE = 4
"""The lane of second decisions about the same tensor: masks, permutations."""

UInt32Array = npt.NDArray[np.uint32]


def key(seed: int, name: str, version: int = VERSION) -> int:
    """Derive the 64-bit key of one named tensor.

    The key is the 8-byte BLAKE2b digest (RFC 7693, unkeyed), read little-endian, of

        "fanin" ‖ version as 4 bytes, little-endian ‖ seed mod 2⁶⁴ as 8 bytes, little-endian ‖ name in UTF-8

    Args:
        seed: −2⁶³ ≤ seed < 2⁶⁴; a negative seed is taken mod 2⁶⁴, as `torch.manual_seed` does.
        name: the parameter's name in the whole, unwrapped model.
        version: the version of the value contract.

    Raises:
        SchemeError: the seed is no integer or does not fit, or the version is unknown.

    >>> hex(key(0, "weight"))
    '0xb79de8c85e216c9'
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = None
    if number is None or not -(2**63) <= number < 2**64:
        raise SchemeError(
            compose(
                given=f"seed={seed!r}",
                needed="an integer from −2⁶³ to 2⁶⁴ − 1",
                why="the key is made from the seed's 64 bits",
                instead="seed=0",
            )
        )
    if version != VERSION:
        raise SchemeError(
            compose(
                given=f"version={version!r} of the value contract",
                needed=f"a version that this release can draw: {VERSION}",
                why="values of an unknown version would silently be other values",
                instead=f"version={VERSION}",
            )
        )
    text = b"fanin" + version.to_bytes(4, "little") + (number % 2**64).to_bytes(8, "little") + name.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def key_words(key: int) -> tuple[int, int]:
    """Split a 64-bit key into the two words of Philox, the low one first."""
    return key & MASK, key >> 32


def philox4x32(counter: UInt32Array, key: tuple[int, int], rounds: int = ROUNDS) -> UInt32Array:
    """Encrypt counters of shape (..., 4) to words of the same shape.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.

    >>> [f"{word:08x}" for word in philox4x32(np.zeros(4, np.uint32), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    x0, x1, x2, x3 = (counter[..., word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = np.uint64(MULTIPLIERS[0]) * x0, np.uint64(MULTIPLIERS[1]) * x2
        x0, x1, x2, x3 = (
            (product1 >> np.uint64(32)) ^ x1 ^ np.uint64(k0),
            product1 & np.uint64(MASK),
            (product0 >> np.uint64(32)) ^ x3 ^ np.uint64(k1),
            product0 & np.uint64(MASK),
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return np.stack([x0, x1, x2, x3], axis=-1).astype(np.uint32)


def counter_word(lane: int, low: bool) -> int:
    """Return the third counter word: twice the lane, plus one for the low words of double precision."""
    return 2 * lane + int(low)


def group_words(key: int, group: int, lane: int = VALUES, part: int = 0, low: bool = False) -> UInt32Array:
    """Return the 64 words of a group: word j belongs to the element with flat index 64 · group + j.

    The counters of the group are (b mod 2³², ⌊b / 2³²⌋, 2 · lane + low, part) for b = 16 · group + 0 … 15.

    Args:
        key: the 64-bit key of the tensor.
        group: flat index in the global tensor, in C order, divided by 64.
        lane: the stream under this key: `VALUES`, `IMAGINARY`, `MATRIX`, `CHOICE`.
        part: which matrix of several that share a parameter, for the matrix-wide laws.
        low: the low words that extend the first ones to 64 bits for double precision.

    >>> group_words(key(0, "weight"), 0).shape
    (64,)
    """
    block = np.arange(COUNTERS, dtype=np.uint64) + np.uint64(COUNTERS * group)
    counter = np.empty((COUNTERS, 4), np.uint32)
    counter[:, 0] = block & np.uint64(MASK)
    counter[:, 1] = block >> np.uint64(32)
    counter[:, 2] = counter_word(lane, low)
    counter[:, 3] = part
    return philox4x32(counter, key_words(key)).T.reshape(GROUP)
