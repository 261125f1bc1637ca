"""What measuring costs, beside a plain forward and backward of the same model on the same batch.

Plain and measured runs take turns, so that a change of the machine's load hits both; the ratio of the medians is
printed. Processor time is counted, not the clock's. The trace is not part of it: it is made once for a model.

    python benchmarks/measuring.py [--rounds 5] [--batch 16] [--threads 1] [--write]

``--write`` puts what is printed into `docs/speed.md`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fanin.measuring import measure
from fanin.tracing import trace
from fanin.tracing.tracer import as_call
from pages import put

PAGE = Path(__file__).resolve().parent.parent / "docs" / "speed.md"

Case = tuple[str, nn.Module, Any]


def cases(batch: int) -> Iterator[Case]:
    """Models of different kinds, each with a batch."""
    import timm
    import torchvision
    import transformers

    images = torch.randn(batch, 3, 224, 224)
    layers = [layer for _ in range(20) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    yield "MLP, 20 × 1024, batch 256", nn.Sequential(*layers), torch.randn(256, 1024)
    yield "torchvision/resnet18", torchvision.models.resnet18(), images
    yield "timm/vit_tiny_patch16_224", timm.create_model("vit_tiny_patch16_224"), images
    yield "timm/convnext_atto", timm.create_model("convnext_atto"), images
    config = transformers.GPT2Config(n_layer=6, n_embd=384, n_head=6, vocab_size=8192)
    tokens = torch.randint(0, 8192, (batch, 128))
    yield "GPT-2, 6 × 384, 128 tokens", transformers.GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}


def plain_step(model: nn.Module, inputs: Any) -> None:
    """A forward and a backward as a training step has them."""
    args, kwargs = as_call(inputs)
    output = model(*args, **kwargs)
    loss = output if isinstance(output, torch.Tensor) else output.loss
    loss.mean().backward()
    model.zero_grad()


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into docs/speed.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    where = f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, batch {options.batch}"
    lines = [f"{where}, {time.strftime('%Y-%m-%d')}", f"{'model':32} {'plain s':>8} {'measured s':>11} {'ratio':>6}"]
    print(*lines, sep="\n")
    for name, model, inputs in cases(options.batch):
        graph = trace(model, inputs)
        plain, measured = [], []
        for round_number in range(options.rounds + 1):
            times = (
                seconds(lambda model=model, inputs=inputs: plain_step(model, inputs)),
                seconds(lambda model=model, inputs=inputs, graph=graph: measure(model, inputs, graph=graph)),
            )
            if round_number:  # the first of each warms up
                plain.append(times[0])
                measured.append(times[1])
        middle, beside = statistics.median(plain), statistics.median(measured)
        lines.append(f"{name:32} {middle:8.3f} {beside:11.3f} {beside / middle:6.2f}")
        print(lines[-1], flush=True)
    if options.write:
        put(PAGE, "measuring", "\n".join(("```text", *lines, "```")))


if __name__ == "__main__":
    main()
