"""The page on the value contract: its numbers are the code's, and what it says in words is enough to draw them.

The second half of this file writes the contract again from the page, element by element, without the package.
"""

import hashlib
import json
import math
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from fanin.sampling import Normal, TruncatedNormal, Uniform, fill_, key, orthogonal_rows, philox
from fanin.sampling.polynomials import DOUBLE, SINGLE

PAGE = (Path(__file__).parent.parent / "docs" / "value-contract.md").read_text(encoding="utf-8")
COEFFICIENTS, VECTORS = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))

LAWS = {"uniform": Uniform, "normal": Normal, "truncated_normal": TruncatedNormal}
NAMES = ["logarithm", "sine", "cosine", "middle", "tail", "tail_below"]


@pytest.mark.parametrize("precision", [SINGLE, DOUBLE], ids=lambda precision: precision.name)
def test_coefficients_are_those_of_the_code(precision):
    listed = COEFFICIENTS[precision.name]
    for name in [*NAMES, "log_two"]:
        assert np.array_equal(np.array(listed[name], precision.scalar), np.array(getattr(precision, name)))


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: f"{vector['seed']}-{vector['name']}")
def test_keys(vector):
    assert f"{key(vector['seed'], vector['name']):016x}" == vector["key"]
    assert f"{written_key(vector['seed'], vector['name']):016x}" == vector["key"]


@pytest.mark.parametrize("vector", VECTORS["words"], ids=lambda vector: f"{vector['group']}-{vector['lane']}")
def test_words(vector):
    drawn = philox.group_words(int(vector["key"], 16), vector["group"], vector["lane"], vector["part"], vector["low"])
    assert [f"{word:08x}" for word in drawn[:: len(drawn) // len(vector["words"])]] == vector["words"]


def identify(vector):
    return f"{vector['law']}{tuple(vector['numbers'])}-{vector['dtype']}"


@pytest.mark.parametrize("vector", VECTORS["values"], ids=identify)
def test_values(vector):
    law, count = LAWS[vector["law"]](*map(float, vector["numbers"])), len(vector["values"])
    drawn = torch.empty(count, dtype=getattr(torch, vector["dtype"]))
    fill_(drawn, law, int(vector["key"], 16), global_shape=vector["shape"], offset=[vector["index"]])
    assert [hexadecimal(value) for value in drawn.tolist()] == vector["values"]


def test_orthogonal_values():
    vector = VECTORS["orthogonal"]
    drawn = orthogonal_rows(*vector["shape"], int(vector["key"], 16), part=vector["part"])
    assert [[value.hex() for value in row] for row in drawn.tolist()] == vector["values"]


def hexadecimal(value):
    return [value.real.hex(), value.imag.hex()] if isinstance(value, complex) else value.hex()


# ── The contract, written again from the page ─────────────────────────────────────────────────────────────────────


def written_key(seed, name):
    text = b"fanin" + (1).to_bytes(4, "little") + (seed % 2**64).to_bytes(8, "little") + name.encode("utf-8")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def written_word(tensor_key, element, lane=0, part=0, low=0):
    group, j = divmod(element, 64)
    b = 16 * group + j % 16
    x, k = [b % 2**32, b // 2**32, 2 * lane + low, part], [tensor_key % 2**32, tensor_key // 2**32]
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(q >> 32) ^ x[1] ^ k[0], q % 2**32, (p >> 32) ^ x[3] ^ k[1], p % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x[j // 16]


def upper_tail(z):
    return mpmath.erfc(z / mpmath.sqrt(2)) / 2 if z <= 13 else mpmath.mpf(0)


class Written:
    """One element at a time, in numpy scalars, which round after each operation."""

    def __init__(self, name):
        self.real = np.dtype(name).type
        self.double = name == "float64"
        self.bits, self.mantissa = (53, 53) if self.double else (32, 24)
        self.coefficients = {key: self.real(value) for key, value in COEFFICIENTS[name].items()}

    def word(self, tensor_key, element):
        high = written_word(tensor_key, element)
        return (high << 32 | written_word(tensor_key, element, low=1)) >> 11 if self.double else high

    def horner(self, name, x):
        *rest, total = self.coefficients[name]
        for coefficient in reversed(rest):
            total = total * x + coefficient
        return total

    def log(self, x):
        m, k = np.frexp(x)
        root_half = np.uint64(0x3FE6A09E667F3BCD).view(np.float64) if self.double else np.uint32(0x3F3504F3).view("f4")
        if m < root_half:
            m, k = self.real(m * 2), k - 1
        s = (m - self.real(1)) / (m + self.real(1))
        return self.real(k) * self.coefficients["log_two"] + s * self.horner("logarithm", s * s)

    def uniform(self, tensor_key, element, low, high):
        u = self.real(self.word(tensor_key, element) >> (self.bits - self.mantissa)) * self.real(2.0**-self.mantissa)
        start = self.real(low) if float(self.real(low)) >= low else np.nextafter(self.real(low), self.real(np.inf))
        top = self.real(high) if float(self.real(high)) < high else np.nextafter(self.real(high), self.real(-np.inf))
        return min(u * self.real(high - low) + start, top)

    def normal(self, tensor_key, element, mean, std):
        first = element if element % 64 < 32 else element - 32
        u = self.real(self.word(tensor_key, first)) * self.real(2.0**-self.bits) + self.real(2.0 ** -(self.bits + 1))
        r = np.sqrt(self.real(-2) * self.log(u))
        turned = (self.word(tensor_key, first + 32) + 2 ** (self.bits - 3)) % 2**self.bits
        quadrant, inside = divmod(turned, 2 ** (self.bits - 2))
        x = self.real(inside - 2 ** (self.bits - 3)) * self.real(2.0 ** (2 - self.bits))
        s, c = x * self.horner("sine", x * x), self.horner("cosine", x * x)
        cosine, sine = [(c, s), (-s, c), (-c, -s), (s, -c)][quadrant]
        return (r * (cosine if element == first else sine)) * self.real(std) + self.real(mean)

    def truncated_normal(self, tensor_key, element, mean, std, low, high):
        with mpmath.workdps(50):
            a, b = ((mpmath.mpf(cut) - mean) / std for cut in (low, high))
            side = -1 if b <= 0 else 1
            a, b = (a, b) if side > 0 else (-b, -a)
            above, below, turn = upper_tail(b), mpmath.mpf(0), 0
            mass = upper_tail(a) - above
            if a < 0:
                below = upper_tail(-a)
                mass = 1 - below - above
                turn = min(round(float((0.5 - below) / mass) * 2**self.bits), 2**self.bits - 1)
            below, above = (self.real(float(p)) if p >= 2.0**-126 else self.real(0) for p in (below, above))
            step = self.real(float(mass) / 2**self.bits)
        w = self.word(tensor_key, element)
        half = self.real(0.5)
        if w < turn:
            x = -self.distance((self.real(w) + half) * step + below)
        else:
            x = self.distance((self.real(2**self.bits - 1 - w) + half) * step + above) * self.real(side)
        value = x * self.real(std) + self.real(mean)
        return self.real(min(max(float(value), low), high))

    def distance(self, q):
        one, two, four = map(self.real, (1, 2, 4))
        if q < self.real(0.0013):
            r = np.sqrt(-self.log(q))
            return self.horner("tail", r) / self.horner("tail_below", r)
        return (one - q * two) * self.horner("middle", -self.log((q * four) * (one - q)))


@pytest.mark.parametrize("vector", [v for v in VECTORS["values"] if v["dtype"] in ("float32", "float64")], ids=identify)
def test_the_page_is_enough_for_values(vector):
    written, numbers = Written(vector["dtype"]), [float(number) for number in vector["numbers"]]
    for place, expected in enumerate(vector["values"]):
        value = getattr(written, vector["law"])(int(vector["key"], 16), vector["index"] + place, *numbers)
        assert float(value).hex() == expected


def written_product(a, b):
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for begin in range(0, a.shape[1], 256):
        partial = np.zeros_like(total)
        for k in range(begin, min(begin + 256, a.shape[1])):
            partial = partial + np.outer(a[:, k], b[k]).astype(np.float32)
        total = total + partial
    return total


def written_block(x, first):
    """Return V and the signs for the rows of one block, whose columns are counted from its first row."""
    signs = []
    for i, row in enumerate(x):
        row[:i] = 0
        squares = row * row
        while len(squares) > 1:
            half = math.ceil(len(squares) / 2)
            squares = np.append(squares[: len(squares) - half] + squares[half:], squares[len(squares) - half : half])
        signs.append(np.float32(-1 if row[i] < 0 else 1))
        row /= np.sqrt(squares[0])
        row[i] += signs[-1]
    return x.T, signs


def test_the_page_is_enough_for_orthogonal_matrices():
    n, k, tensor_key = 300, 70, 77
    field = fill_(torch.empty(k, n), Normal(0.0, 1.0), tensor_key, lane=2).numpy()
    q, all_signs = np.eye(n, k, dtype=np.float32), []
    for first in (64, 0):
        v, signs = written_block(field[first : first + 64, first:].copy(), first)
        all_signs = signs + all_signs
        gram, t = written_product(v.T, v), np.eye(len(signs), dtype=np.float32)
        for i in reversed(range(len(signs))):
            t[i] = t[i] / (gram[i, i] * np.float32(0.5))
            for a in range(i):
                t[a] = t[a] - gram[a, i] * t[i]
        corner = q[first:, first:]
        corner -= written_product(v, written_product(t, written_product(v.T, corner)))
    assert np.array_equal(q * -np.array(all_signs), orthogonal_rows(n, k, tensor_key).numpy())
