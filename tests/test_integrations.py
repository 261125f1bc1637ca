"""Callbacks and writers, driven against the real packages: what they see, and that a run does not notice them."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fanin
from fanin.diagnoses import Diagnosis
from fanin.errors import InputsError
from fanin.integrations import tensorboard
from fanin.integrations.starts import Gate, UnhealthyStart

with warnings.catch_warnings():
    # What these packages say of others when they are imported is theirs.
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    import transformers

    from fanin.integrations import lightning as lightning_start
    from fanin.integrations import transformers as transformers_start

# These packages warn of much in each other; of fanin's own warnings none passes unseen.
pytestmark = pytest.mark.filterwarnings("ignore", "error:fanin could not", "error:the model does not")

STEPS = 6


def pairs() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(64, 16, generator=generator), torch.randint(4, (64,), generator=generator))


class Module(pl.LightningModule):
    """A classifier with all that draws or keeps count: dropout, batch norm, noise, a log, a buffer."""

    def __init__(self, constant: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
        if constant:
            nn.init.constant_(self.net[0].weight, 0.1)
        self.losses: list[float] = []
        self.batches: list[float] = []
        self.draws: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        noise = torch.randn_like(x) * random.random() * np.random.rand()  # noqa: NPY002
        loss = functional.cross_entropy(self(x + 0.1 * noise), y)
        self.log("loss", loss)
        self.losses.append(float(loss.detach()))
        self.batches.append(float(x.sum()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Manual(Module):
    """One that cannot take a step without a trainer."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert self.trainer.global_step >= 0
        return super().training_step(batch, batch_idx)


def fit(module: pl.LightningModule, *callbacks: Any, **settings: Any) -> pl.Trainer:
    """Train for a few steps, everything seeded, on shuffled batches whose order the global state decides."""
    pl.seed_everything(3, verbose=False)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "accelerator": "cpu", "max_steps": STEPS, **settings}
    trainer = pl.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, DataLoader(pairs(), batch_size=8, shuffle=True))
    return trainer


@pytest.fixture(autouse=True)
def quiet_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of its own, and the global states as they were: these runs are users' and seed what they like."""
    monkeypatch.chdir(tmp_path)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_run_does_not_notice(precision: str) -> None:
    def run(*callbacks: Any) -> tuple[Module, torch.Tensor]:
        torch.manual_seed(1)
        module = Module()
        fit(module, *callbacks, precision=precision)
        return module, torch.get_rng_state()

    check = lightning_start.StartCheck()
    (alone, state), (checked, state_checked) = run(), run(check)
    assert check.diagnosis is not None
    assert check.diagnosis.signals.precision == ("bfloat16" if precision == "bf16-mixed" else "")
    assert len(alone.losses) == STEPS
    assert alone.losses == checked.losses
    assert alone.batches == checked.batches
    assert torch.equal(state, state_checked)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, checked.state_dict()[name]), name


def test_lightning_measures_the_training_step_on_the_first_batch() -> None:
    check = lightning_start.StartCheck()
    module = Module()
    fit(module, check)
    assert check.diagnosis is not None
    signals = check.diagnosis.signals
    assert signals.loss_from == "model"
    assert signals.loss == pytest.approx(module.losses[0], rel=0.5), "the same batch, without dropout"
    assert {"net.0", "net.4"} <= {layer.name for layer in signals.layers}
    assert signals.parameter("net.0.weight").reached
    assert signals.samples == 8


@pytest.mark.parametrize("level", ["error", "warning"])
def test_lightning_stops_before_the_first_step(level: Any, tmp_path: Path) -> None:
    module = Module(constant=True)
    before = module.net[0].weight.detach().clone()
    with pytest.raises(UnhealthyStart, match=r"F101 error: net\.0\.weight") as caught:
        fit(module, lightning_start.StartCheck(level=level, report=tmp_path / "start.json"))
    assert module.losses == []
    assert torch.equal(module.net[0].weight, before)
    assert "F101" in caught.value.diagnosis.codes
    assert Diagnosis.from_json((tmp_path / "start.json").read_text()) == caught.value.diagnosis


def test_lightning_warns_and_goes_on() -> None:
    module = Module(constant=True)
    with pytest.warns(UserWarning, match="F101"):
        fit(module, lightning_start.StartCheck(action="warn"))
    assert len(module.losses) == STEPS
    module = Module(constant=True)
    fit(module, lightning_start.StartCheck(ignore=["F1", "F4", "F3"]))
    assert len(module.losses) == STEPS


def test_lightning_check_that_fails_ends_no_run() -> None:
    module = Manual(constant=True)
    with pytest.warns(UserWarning, match="could not check the start"):
        fit(module, check := lightning_start.StartCheck())
    assert check.diagnosis is None
    assert len(module.losses) == STEPS
    assert module._trainer is not None

    def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(output, batch[1])

    check = lightning_start.StartCheck(inputs=lambda batch: batch[0], loss=loss)
    with pytest.raises(UnhealthyStart, match="F101"):
        fit(Manual(constant=True), check)


def test_lightning_checks_once_and_not_when_it_resumes(tmp_path: Path) -> None:
    counted: list[str] = []

    class Counting(lightning_start.StartCheck):
        def _subject(self, module: Any, batch: Any) -> Any:
            counted.append("check")
            return super()._subject(module, batch)

    trainer = fit(Module(), Counting(), max_steps=-1, max_epochs=2)
    assert counted == ["check"]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = pl.Trainer(
        callbacks=[Counting()], max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    again.fit(Module(), DataLoader(pairs(), batch_size=8), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert counted == ["check"]


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Random tokens, and a record of which were asked for."""

    def __init__(self, labels: bool = True) -> None:
        self.tokens = torch.randint(100, (48, 12), generator=torch.Generator().manual_seed(0))
        self.labels = labels
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked.append(index)
        row = self.tokens[index]
        return {"input_ids": row, **({"labels": row} if self.labels else {})}


def gpt2(constant: bool = False) -> Any:
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=4, use_cache=False)
    model = transformers.GPT2LMHeadModel(config)
    if constant:
        nn.init.constant_(model.transformer.h[1].mlp.c_fc.weight, 0.02)
    return model


def train(model: Any, data: Tokens, *callbacks: Any, **settings: Any) -> list[float]:
    """The losses of a run of the transformers Trainer with dropout and shuffled batches."""
    options: dict[str, Any] = {"output_dir": "out", "max_steps": STEPS, "per_device_train_batch_size": 4}
    options |= {"logging_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    options |= {"seed": 5, "learning_rate": 1e-2, **settings}
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**options),
        train_dataset=data,
        eval_dataset=Tokens(),
        callbacks=list(callbacks),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "settings",
    [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}, {"eval_on_start": True}, {"label_smoothing_factor": 0.1}],
    ids=lambda settings: next(iter(settings), "plain"),
)
def test_trainer_does_not_notice(settings: dict[str, Any]) -> None:
    def run(*callbacks: Any) -> tuple[list[float], list[int], torch.Tensor, dict[str, torch.Tensor]]:
        model, data = gpt2(), Tokens()
        losses = train(model, data, *callbacks, **settings)
        return losses, data.asked, torch.get_rng_state(), model.state_dict()

    check = transformers_start.StartCheck()
    alone, checked = run(), run(check)
    assert check.diagnosis is not None
    assert check.diagnosis.signals.has_gradients
    assert check.diagnosis.signals.precision == ("bfloat16" if "bf16" in settings else "")
    assert len(alone[0]) == STEPS
    assert alone[0] == checked[0]
    assert alone[1] == checked[1], "the same examples in the same order, none twice"
    assert torch.equal(alone[2], checked[2])
    assert all(torch.equal(value, checked[3][name]) for name, value in alone[3].items())


def test_trainer_measures_the_models_own_loss_on_the_first_batch() -> None:
    check, data = transformers_start.StartCheck(), Tokens()
    losses = train(gpt2(), data, check)
    assert check.diagnosis is not None
    signals = check.diagnosis.signals
    assert signals.loss_from == "model"
    assert signals.loss == pytest.approx(losses[0], rel=0.05)
    assert signals.samples == 4
    assert signals.uninformed == pytest.approx(np.log(100))


def test_trainer_stops_before_the_first_step(tmp_path: Path) -> None:
    model = gpt2(constant=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnhealthyStart, match=r"transformer\.h\.1\.mlp\.c_fc\.weight") as caught:
        train(model, Tokens(), transformers_start.StartCheck(report=tmp_path / "start.html"))
    assert "F101" in caught.value.diagnosis.codes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_pre_hooks
    assert "F101" in (tmp_path / "start.html").read_text()


def test_trainer_warns_and_goes_on() -> None:
    with pytest.warns(UserWarning, match="F101"):
        assert len(train(gpt2(constant=True), Tokens(), transformers_start.StartCheck(action="warn"))) == STEPS


def test_trainer_compiles_around_the_check() -> None:
    check = transformers_start.StartCheck()
    losses = train(gpt2(), Tokens(), check, torch_compile=True, torch_compile_backend="eager")
    assert len(losses) == STEPS
    assert check.diagnosis is not None


def test_trainer_is_not_checked_when_it_resumes() -> None:
    model = gpt2()
    state, args = transformers.TrainerState(global_step=3), transformers.TrainingArguments("out", use_cpu=True)
    check = transformers_start.StartCheck()
    check.on_train_begin(args, state, None, model=model)
    assert not model._forward_pre_hooks
    check.on_train_begin(args, transformers.TrainerState(), None, model=model)
    assert len(model._forward_pre_hooks) == 1
    check.on_train_end(args, state, None)
    assert not model._forward_pre_hooks


def test_gates_know_their_words() -> None:
    with pytest.raises(InputsError, match="'raise' or 'warn'"):
        lightning_start.StartCheck(action="stop")  # type: ignore[arg-type]
    with pytest.raises(InputsError, match="'error' or 'warning'"):
        Gate(level="note")  # type: ignore[arg-type]


def test_tensorboard_holds_profiles_and_findings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.constant_(model[0].weight, 0.1)
    diagnosis = fanin.diagnose(model, torch.randn(8, 16), loss=lambda output: output.square().mean())
    with SummaryWriter(tmp_path) as writer:
        tensorboard.write(diagnosis, writer, step=7)
    events = EventAccumulator(str(tmp_path)).Reload()
    rms = events.Scalars("fanin/activation_rms")
    assert [event.step for event in rms] == [0, 1, 2]
    assert [event.value for event in rms] == pytest.approx([layer.rms for layer in diagnosis.signals.layers])
    ratios = events.Scalars("fanin/weight_gradient_ratio")
    assert [event.step for event in ratios] == [0, 1, 2, 3]
    assert events.Scalars("fanin/loss")[0].step == 7
    (text,) = events.Tensors("fanin/findings/text_summary")
    assert "F101" in text.tensor_proto.string_val[0].decode()
    (layers,) = events.Tensors("fanin/layers/text_summary")
    assert "| 2 | `2` | linear |" in layers.tensor_proto.string_val[0].decode()


class Recorder:
    """What a writer is asked to write."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.tags.append(tag)

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        self.tags.append(tag)


def test_tensorboard_takes_signals_alone_and_leaves_out_what_was_not_measured() -> None:
    recorder = Recorder()
    tensorboard.write(fanin.measure(nn.Linear(4, 4)), recorder, prefix="start")
    assert set(recorder.tags) == {"start/weight_rms", "start/layers", "start/parameters"}


@pytest.mark.parametrize(
    ("package", "module"), [("transformers", "transformers"), ("lightning,pytorch_lightning", "lightning")]
)
def test_missing_package_is_said_with_the_line_to_install_it(package: str, module: str) -> None:
    code = (
        f"import sys\nfor name in {package.split(',')!r}: sys.modules[name] = None\nimport fanin.integrations.{module}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install ".[integrations]"' in done.stderr


def test_rest_of_fanin_imports_no_integration() -> None:
    code = "from fanin import *; import sys; print([name for name in sys.modules if 'fanin.integrations' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
