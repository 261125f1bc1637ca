"""The compiled kernels are the torch operations, bit for bit, in every thread and process, and with numba missing."""

import os
import platform
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fanin.sampling import Normal, TruncatedNormal, Uniform, caching, device, fill_, filling, regions
from fanin.sampling.polynomials import DOUBLE, SINGLE
from fanin.sampling.threads import share

INFINITY = float("inf")
LAWS = [
    Uniform(-0.3, 0.7),
    Normal(0.1, 0.02),
    TruncatedNormal(0.0, 0.02, -0.04, 0.04),
    TruncatedNormal(0.0, 1.0, -INFINITY, INFINITY),
    TruncatedNormal(0.0, 1.0, -3.0, -2.0),
    TruncatedNormal(1.0, 2.0, 11.0, INFINITY),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
KEY = 0xFEDCBA9876543210

# Whole groups and parts of them, runs below and above the length that is drawn in place, more runs than a block
# holds groups, indices beyond 2³² and 2³⁸ (where the second counter word begins).
REGIONS = [
    ((4096,), (4096,), (0,)),
    ((100_003,), (100_003,), (0,)),
    ((5000,), (2**40,), (2**38 - 2500,)),
    ((70, 3), (70, 1000), (0, 63)),
    ((9, 900), (9, 1000), (0, 33)),
    ((3, 2500), (3, 4096), (0, 1)),
    ((2, 3, 70, 2), (2**11, 2**11, 2**9, 4), (2**10, 5, 11, 1)),
]


@pytest.fixture
def threads():
    kept = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(kept)


def reference(law, dtype, shape, whole, offset, lane=0, part=0):
    drawn = torch.empty(shape, dtype=dtype)
    precision = DOUBLE if dtype is torch.float64 else SINGLE
    device.fill(drawn.view(-1), law, KEY, regions.region(shape, whole, offset), precision, lane, part)
    return drawn


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "whole", "offset"), REGIONS, ids=str)
def test_kernels_are_the_torch_operations(law, dtype, shape, whole, offset):
    drawn = fill_(torch.empty(shape, dtype=dtype), law, KEY, global_shape=whole, offset=offset, lane=4, part=7)
    assert torch.equal(drawn, reference(law, dtype, shape, whole, offset, lane=4, part=7))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_number_of_threads_does_not_matter(count, threads):
    shape, whole = (3, 70_000), (3, 70_001)
    for law, dtype in zip(LAWS, DTYPES * 2, strict=True):
        threads(1)
        expected = reference(law, dtype, shape, whole, (0, 0))
        threads(count)
        assert torch.equal(fill_(torch.empty(shape, dtype=dtype), law, KEY, global_shape=whole), expected)


def test_bfloat16_ties_go_to_even():
    # Uniform on [1, 1 + 2⁻⁷ · 4) with 24 bits: float32 values that lie halfway between bfloat16 neighbours occur.
    law = Uniform(1.0, 1.03125)
    single = fill_(torch.empty(2**18), law, KEY)
    halfway = (single.view(torch.int32) & 0xFFFF) == 0x8000
    assert halfway.sum() > 0
    assert torch.equal(fill_(torch.empty(2**18, dtype=torch.bfloat16), law, KEY), single.bfloat16())


def test_many_callers_at_once(threads):
    threads(2)
    size = 150_000
    expected = [fill_(torch.empty(size), LAWS[1], key) for key in range(12)]
    with ThreadPoolExecutor(6) as callers:
        drawn = list(callers.map(lambda key: fill_(torch.empty(size), LAWS[1], key), range(12)))
    assert all(map(torch.equal, drawn, expected))


def test_writing_is_seen_by_autograd():
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    fill_(weight, LAWS[0], KEY)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors_can_be_filled():
    with torch.inference_mode():
        drawn = fill_(torch.empty(100), LAWS[0], KEY)
    assert torch.equal(drawn, reference(LAWS[0], torch.float32, (100,), (100,), (0,)))


def test_an_error_in_a_thread_arrives_and_stops_the_others(threads):
    threads(3)
    done = []

    def work(piece):
        if piece == 10:
            raise ValueError("piece 10")
        done.append(piece)

    with pytest.raises(ValueError, match="piece 10"):
        share(work, iter(range(10**6)))
    assert len(done) < 10**6


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_torch_operations_on_a_cpu_without_the_kernels(law, monkeypatch):
    expected = fill_(torch.empty(100, 30).T, law, KEY, global_shape=(30, 1000), offset=(0, 50))
    monkeypatch.setattr(filling, "compiled", lambda: None)
    assert torch.equal(fill_(torch.empty(100, 30).T, law, KEY, global_shape=(30, 1000), offset=(0, 50)), expected)


DIGEST = """
import hashlib, os, signal, sys, torch
from fanin.sampling import Normal, TruncatedNormal, fill_, orthogonal_rows

def digest():
    torch.set_num_threads(2)
    tensors = [
        fill_(torch.empty(3, 70_000), Normal(0.0, 1.0), 5),
        fill_(torch.empty(200, dtype=torch.bfloat16), TruncatedNormal(0.0, 1.0, -4.0, 2.0), 5).float(),
        orthogonal_rows(70, 90, 5),
    ]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
"""


PROCESSORS = {"generic": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}}
if platform.machine() in ("x86_64", "AMD64"):
    PROCESSORS["fused"] = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}


def run(script: str, **environment: str) -> str:
    """Run a script after `DIGEST` in a new process, which a hang would not survive, and return what it printed."""
    code = DIGEST + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def expected() -> str:
    names: dict[str, Any] = {}
    kept = torch.get_num_threads()
    exec(DIGEST, names)
    found = names["digest"]()
    torch.set_num_threads(kept)
    return found


def test_importing_does_not_import_numba():
    assert run("print('numba' in sys.modules)") == "False"


def test_forked_children_draw_the_same(expected):
    script = """
        mine = digest()                      # the pool now has threads that a child will not have
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os.write(writer, digest().encode())
            os._exit(0)
        print(mine, os.read(reader, 64).decode(), os.waitpid(child, 0)[1])
    """
    assert run(script) == f"{expected} {expected} 0"


def test_missing_numba_warns_once_and_changes_no_value(expected):
    script = """
        import warnings
        sys.modules["numba"] = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print(digest(), digest(), len(caught), "many times slower" in str(caught[0].message))
    """
    assert run(script) == f"{expected} {expected} 1 True"


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_processor_does_not_matter(processor, expected, tmp_path):
    """Compile for lesser processors: other vector widths, other tiles, and one that could fuse products and sums."""
    assert run("print(digest())", **PROCESSORS[processor], NUMBA_CACHE_DIR=str(tmp_path)) == expected


def test_kernels_work_where_no_cache_can_be_written():
    script = "print(fill_(torch.empty(3), Normal(0.0, 1.0), 5).tolist())"
    assert run(script, NUMBA_CACHE_DIR=os.devnull + "/cache") == str(
        fill_(torch.empty(3), Normal(0.0, 1.0), 5).tolist()
    )


def test_kernels_are_kept_apart_for_each_state_of_the_sources(tmp_path, monkeypatch):
    kernels = caching.directory(str(tmp_path))
    assert kernels is not None
    assert kernels.parent == tmp_path
    monkeypatch.setattr(caching, "_SOURCES", tmp_path)
    other = caching.directory.__wrapped__(str(tmp_path))
    (tmp_path / "polynomials.py").write_text("changed")
    assert len({kernels, other, caching.directory.__wrapped__(str(tmp_path))}) == 3
    assert caching.directory(os.devnull) is None
