"""What tracing promises of the model: it is left exactly as it was, whatever happens, and wrappers do not matter."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn

from conftest import global_random_state
from fanin.errors import InputsError, TraceError
from fanin.measuring import measure
from fanin.tracing import trace
from zoo import MODELS, Asking, Caching, Counting, Failing, Idle, InPlace, Leaving, Random, Writing


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything that a module tree holds, by value, with the identity and the version of each tensor."""
    return {path: _plain(vars(part)) for path, part in module.named_modules()}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        numbers = None if value.is_meta else value.detach().clone().flatten().tolist()
        return (type(value).__name__, id(value), value._version, tuple(value.shape), value.requires_grad, numbers)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(part) for part in value]
    return id(value) if isinstance(value, nn.Module) or callable(value) else repr(value)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_and_the_random_state_are_left_as_they_were(name: str, training: bool) -> None:
    build, inputs = MODELS[name]
    model = build().train(training)
    before, random_state = snapshot(model), global_random_state()
    graph = trace(model, inputs)
    assert snapshot(model) == before
    assert global_random_state() == random_state
    assert len(graph) == len(list(model.parameters()))


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_also_after_a_failure_and_an_interrupt(error: BaseException) -> None:
    model = Failing(error)
    before, random_state = snapshot(model), global_random_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises((InputsError, KeyboardInterrupt), match=r"RuntimeError: no|^$"):
        trace(model, torch.zeros(2, 8))
    assert snapshot(model) == before
    assert global_random_state() == random_state
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert not torch.is_inference_mode_enabled()
    assert torch.ones(1).add(1).item() == 2, "a dispatch mode was left on"


class Shy(nn.Module):
    """Runs, but not where somebody watches."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("not here")
        result: torch.Tensor = self.fc(x)
        return result


def test_a_model_that_runs_but_cannot_be_recorded_is_known_by_its_modules() -> None:
    with torch.random.fork_rng(devices=[]):
        model = Shy()
    graph = trace(model, torch.zeros(2, 8))
    assert graph.source == "modules"
    assert [note.split(":")[0] for note in graph.notes[:3]] == [
        "fake run failed",
        "optimistic run failed",
        "real run failed",
    ]


def test_inputs_that_the_model_refuses_are_an_error_that_tells_how_to_give_a_mapping() -> None:
    with pytest.raises(InputsError, match=r"float32 2×9"):
        trace(Shy(), torch.zeros(2, 9))
    with pytest.raises(InputsError, match=r"inputs=\(batch,\)"):
        trace(Shy(), {"y": torch.zeros(2, 8)})


def test_inputs_are_left_as_they_were() -> None:
    inputs = torch.full((2, 8), 3.0, requires_grad=True)
    trace(InPlace(), (inputs,))
    assert inputs._version == 0
    assert inputs.requires_grad


def test_a_warm_cache_does_not_hide_parameters() -> None:
    model = Caching().eval()
    model(torch.zeros(2, 5, 8))
    assert trace(model, torch.zeros(2, 5, 8))["table"].role == "position"


class Tabled(nn.Module):
    """Keeps constants in a plain dict, which only a run with them can look up."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.tables = {"pos": torch.ones(4)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x) + self.tables["pos"]
        return result


def test_a_plain_dict_of_tensors_that_the_model_needs_is_kept() -> None:
    model = Tabled()
    graph = trace(model, torch.zeros(2, 4))
    assert (graph.source, graph["linear.weight"].role) == ("fake", "linear")
    assert graph.notes == ("run with the tensors in its plain dicts, without which the model fails",)
    signals = measure(model, torch.zeros(2, 4))
    assert signals.has_gradients
    assert signals.notes == graph.notes
    assert torch.equal(model.tables["pos"], torch.ones(4))


def test_a_hook_that_the_model_needs_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(2, 2))
    model[0].register_forward_hook(lambda _module, _args, output: output[:, :2])
    graph = trace(model, torch.zeros(2, 4))
    assert (graph.source, graph["1.weight"].output) == ("fake", True)
    assert "its hooks that are plain functions" in graph.notes[0]
    assert measure(model, torch.zeros(2, 4)).notes == graph.notes
    with pytest.raises(InputsError, match=r"float32 2×5"):
        trace(model, torch.zeros(2, 5))


def test_a_hook_that_talks_to_other_processes_is_never_called() -> None:
    called: list[Any] = []

    def gather(*args: Any) -> None:
        called.append(args)

    gather.__module__ = "torch.distributed.fsdp"
    model = nn.Linear(4, 4)
    model.register_forward_pre_hook(gather)
    with pytest.raises(InputsError, match=r"float32 2×5"):
        trace(model, torch.zeros(2, 5))
    assert trace(model, torch.zeros(2, 4)).source == "fake"
    assert not called


class Positioned(nn.Module):
    """Positions made once for each shape, for all models of the process, as in transformers' detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    @staticmethod
    @lru_cache(maxsize=4)
    def positions(shape: torch.Size) -> tuple[torch.Tensor, ...]:
        return (torch.arange(shape[-1]) / shape[-1],)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.positions(x.shape)[0]


def test_no_tensor_without_data_stays_in_a_cache_of_functions() -> None:
    model, x = Positioned(), torch.randn(2, 4)
    Positioned.positions(torch.Size([3, 4]))
    trace(model, x)
    expected = model.linear(x) + torch.arange(4) / 4
    torch.testing.assert_close(model(x), expected)
    trace(model, x)
    torch.testing.assert_close(model(x), expected)
    assert Positioned.positions.cache_info().hits, "what was remembered of a real run stays"


def test_nor_in_one_that_was_written_after_the_first_run() -> None:
    trace(nn.Linear(4, 4), torch.zeros(2, 4))
    model, x = Positioned(), torch.randn(2, 4)
    model.positions = lru_cache(Positioned.positions.__wrapped__)
    trace(model, x)
    torch.testing.assert_close(model(x), model.linear(x) + torch.arange(4) / 4)


class Tally:
    """State that cannot be copied."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0


class Tallied(nn.Module):
    """Counts its calls where no copy can keep them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.tally = nn.Linear(4, 4), Tally()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.tally.lock:
            self.tally.calls += 1
        result: torch.Tensor = self.linear(x)
        return result


def test_state_that_cannot_be_copied_is_told() -> None:
    model = Tallied()
    note = "Tallied.tally, a Tally, could not be copied (TypeError): what the model writes there stays"
    graph = trace(model, torch.zeros(2, 4))
    assert graph.notes == (note,)
    assert measure(model, torch.zeros(2, 4), graph=graph).notes == (note,)


def test_hooks_of_the_user_are_not_called_and_stay() -> None:
    seen: list[Any] = []
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda *args: seen.append(args))
    graph = trace(model, torch.zeros(2, 4))
    assert graph["0.weight"].activation == "relu"
    assert seen == []
    model(torch.zeros(2, 4))
    assert len(seen) == 1


def test_two_threads_do_not_disturb_each_other() -> None:
    graphs: dict[str, Any] = {}

    def work(name: str, model: nn.Module, size: int) -> None:
        graphs[name] = trace(model, torch.zeros(2, size))

    models = {"a": nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "b": nn.Sequential(nn.Linear(6, 6), nn.SiLU())}
    threads = [threading.Thread(target=work, args=(n, m, m[0].in_features)) for n, m in models.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: graph["0.weight"].activation for name, graph in graphs.items()} == {"a": "tanh", "b": "silu"}


@pytest.mark.parametrize(
    ("build", "source", "name", "after"),
    [
        (Counting, "fake", "conv.weight", "relu"),
        (Random, "fake", "layer.weight", "none"),
        (Asking, "optimistic", "small.weight", "relu"),
        (Leaving, "real", "first.weight", "relu"),
        (Writing, "fake", "layer.weight", "sigmoid"),
        (InPlace, "fake", "second.weight", "tanh"),
    ],
)
def test_each_way_of_running_is_reached(build: Callable[[], nn.Module], source: str, name: str, after: str) -> None:
    graph = trace(build(), MODELS[build.__name__][1])
    assert (graph.source, graph[name].activation) == (source, after)
    assert bool(graph.notes) == (source != "fake")


def test_what_only_training_uses_is_found_and_what_nothing_uses_is_said() -> None:
    graph = trace(Idle().eval(), torch.zeros(2, 8))
    assert graph["auxiliary.weight"].exercised
    assert graph["auxiliary.weight"].evidence.startswith("in training only")
    assert not graph["forgotten"].exercised
    assert graph["forgotten"].confidence <= 0.5
    assert any("training only" in note for note in graph.notes)


class Helped(nn.Module):
    """A residual net with a second one beside it that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.helper = (nn.ModuleList([nn.Linear(8, 8) for _ in range(count)]) for count in (2, 5))

    def forward(self, x: torch.Tensor) -> Any:
        ways = (self.body, self.helper) if self.training else (self.body,)
        return tuple(functools.reduce(lambda stream, layer: stream + layer(stream.relu()), way, x) for way in ways)


def test_what_only_training_uses_has_streams_weights_and_operations_of_its_own() -> None:
    graph = trace(Helped(), torch.zeros(2, 8))
    body, helper = ([node for node in graph if node.name.startswith(part)] for part in ("body", "helper"))
    assert {node.stream_depth for node in body if node.is_weight} == {2}
    for key in ("stream", "depth"):
        assert not {getattr(node, key) for node in body if node.is_weight} & {getattr(node, key) for node in helper}
    assert max(op.index for node in body for op in node.ops) < min(op.index for node in helper for op in node.ops)


def test_a_model_on_meta_is_traced_without_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 400_000), nn.GELU(), nn.Linear(400_000, 10))
    graph = trace(model, torch.zeros(1, 100_000, device="meta"))
    assert graph.source == "fake"
    assert graph["0.weight"].activation == "gelu"


def test_a_compiled_model_has_the_names_of_the_plain_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plain = trace(model, torch.zeros(2, 4))
    assert trace(torch.compile(model, backend="eager"), torch.zeros(2, 4)) == plain
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]
    inner = trace(model, torch.zeros(2, 4))
    assert [node.name for node in inner] == [node.name for node in plain]
    assert inner["0.weight"].activation == "relu"


FORK = """
import os, signal, torch
from fanin.tracing import trace

def train():
    model(torch.zeros(2, 4)).sum().backward()

model = torch.nn.Linear(4, 2)
with torch.inference_mode():
    assert trace(model, torch.zeros(2, 4)).source == "fake"
train()
child = os.fork()
if not child:
    signal.alarm(30)
    train()
    os._exit(0)
raise SystemExit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork") or torch.accelerator.is_available(), reason="autograd has threads there")
def test_a_process_forked_after_a_trace_can_train() -> None:
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


def test_a_lazy_model_is_refused_with_the_line_to_write() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once a process that lazy modules are young
        model = nn.LazyLinear(3)
    with pytest.raises(TraceError, match="once, before fanin"):
        trace(model, torch.zeros(2, 4))


@pytest.fixture(scope="module")
def process_group() -> Any:
    """One process that is a group of its own."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))


def test_distributed_data_parallel(process_group: None) -> None:
    model = _net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert trace(wrapped, torch.zeros(2, 4)) == trace(model, torch.zeros(2, 4))


def test_fully_sharded(process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = _net()
    plain = trace(model, torch.zeros(2, 4))
    mesh = init_device_mesh("cpu", (1,))
    for part in (model[0], model[3], model):
        fully_shard(part, mesh=mesh)
    sharded = trace(model, torch.zeros(2, 4))
    assert [(n.name, n.shape, n.role, n.activation) for n in sharded] == [
        (n.name, n.shape, n.role, n.activation) for n in plain
    ]
    assert sharded.source == "fake"


def test_activation_checkpointing() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = _net()
    plain = trace(model, torch.zeros(2, 4))
    model[0] = checkpoint_wrapper(model[0])
    graph = trace(model, torch.zeros(2, 4))
    assert [(node.name, node.activation) for node in graph] == [(node.name, node.activation) for node in plain]
