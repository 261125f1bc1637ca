"""The definition: keys and words, against published vectors and against arithmetic done by hand."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fanin.errors import SchemeError
from fanin.sampling import device, philox

VECTORS = json.loads((Path(__file__).parent / "data" / "philox4x32.json").read_text())["vectors"]


def numbers(words: list[str]) -> list[int]:
    return [int(word, 16) for word in words]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['rounds']}-{vector['counter'][0]}")
def test_published_vectors(vector):
    counter = np.array(numbers(vector["counter"]), np.uint32)
    words = philox.philox4x32(counter, tuple(numbers(vector["key"])), vector["rounds"])
    assert words.tolist() == numbers(vector["words"])


def test_key_is_blake2b_of_version_seed_and_name():
    text = b"fanin" + bytes([1, 0, 0, 0]) + bytes([7, 1, 0, 0, 0, 0, 0, 0]) + "größe".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    assert philox.key(263, "größe") == sum(byte << (8 * place) for place, byte in enumerate(digest))


def test_key_separates_seeds_and_names():
    keys = {philox.key(seed, name) for seed in (-1, 0, 1, 256, 2**63) for name in ("", "a", "b", "ab", "a.b")}
    assert len(keys) == 25
    assert philox.key(-1, "a") == philox.key(2**64 - 1, "a")


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 0.5, "0", None])
def test_key_refuses_what_is_no_seed(seed):
    with pytest.raises(SchemeError, match="write instead: seed=0"):
        philox.key(seed, "w")


def test_key_refuses_an_unknown_version():
    with pytest.raises(SchemeError, match="version=2 of the value contract"):
        philox.key(0, "w", version=2)


@pytest.mark.parametrize("lane", [philox.VALUES, philox.IMAGINARY, philox.MATRIX])
@pytest.mark.parametrize("low", [False, True])
def test_torch_words_are_the_definition(lane, low):
    key = philox.key(3, "w")
    groups = [0, 1, 17, 2**28 - 1, 2**28, 2**31 + 5, 2**57 - 1]  # 2²⁸ groups fill the first counter word
    expected = np.stack([philox.group_words(key, group, lane, 9, low) for group in groups])
    drawn = device.words(key, torch.tensor(groups), lane, 9, low)
    assert np.array_equal(drawn.numpy(), expected)


def test_a_word_sits_where_the_layout_says():
    key, element = philox.key(0, "w"), 64 * 5 + 37
    counter, word = 16 * 5 + 37 % 16, 37 // 16
    words = philox.philox4x32(np.array([counter, 0, 2, 4], np.uint32), philox.key_words(key))
    assert philox.group_words(key, element // 64, lane=1, part=4)[element % 64] == words[word]


def test_streams_do_not_overlap():
    key = philox.key(0, "w")
    streams = [(0, 0, False), (0, 0, True), (1, 0, False), (1, 0, True), (2, 0, False), (2, 1, False), (4, 0, False)]
    words = {int(word) for lane, part, low in streams for word in philox.group_words(key, 0, lane, part, low)}
    assert len(words) == 64 * len(streams)
