"""Everything private or unstable of torch that the tracer needs, in one place, with a self-test at first use."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

from fanin.errors import TraceError, compose


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which every torch operation arrives at ``__torch_dispatch__``, also from TorchScript and C++.

    It only gives torch's untyped class a type.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]


FALLBACK_NAMES = {
    "native_layer_norm": "layer_norm",
    "_fused_rms_norm": "rms_norm",
    "native_group_norm": "group_norm",
    "native_batch_norm": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_batch_norm_with_update": "batch_norm",
    "_batch_norm_no_update": "batch_norm",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_convolution": "convolution",
    "native_dropout": "dropout",
    "_unsafe_view": "view",
    "_reshape_alias": "reshape",
    "_to_copy": "to",
    "unsafe_chunk": "chunk",
    "unsafe_split": "split",
    "unsafe_split_with_sizes": "split_with_sizes",
    "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_cudnn_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math": "scaled_dot_product_attention",
    "_scaled_dot_product_fused_attention_overrideable": "scaled_dot_product_attention",
    "flex_attention": "scaled_dot_product_attention",
    "_embedding_bag": "embedding_bag",
    "_embedding_bag_forward_only": "embedding_bag",
    "special_expit": "sigmoid",
    "arctan": "atan",
    "absolute": "abs",
    "concat": "cat",
    "concatenate": "cat",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "clip": "clamp",
    "upsample_nearest2d": "interpolate",
    "upsample_bilinear2d": "interpolate",
    "upsample_bicubic2d": "interpolate",
    "_upsample_bilinear2d_aa": "interpolate",
    "_upsample_bicubic2d_aa": "interpolate",
}
"""Other spellings of an operation: aliases, and what composites decompose into where they do not arrive whole."""


def normalise(schema_name: str) -> str:
    """``aten::add_`` → ``add``; other namespaces keep theirs.

    >>> normalise("aten::relu_"), normalise("aten::_softmax"), normalise("mylib::scan")
    ('relu', 'softmax', 'mylib::scan')
    """
    space, _, name = schema_name.rpartition("::")
    if space not in ("aten", "prims", ""):
        return schema_name
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return FALLBACK_NAMES.get(name, name)


def fake_mode() -> Any:
    """A mode under which tensors have shapes and no data."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no data."""
    return isinstance(tensor, FakeTensor)


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for one of many samples, inside of ``torch.vmap``; never where torch cannot say so."""
    functorch = getattr(torch._C, "_functorch", None)
    ask = getattr(functorch, "is_batchedtensor", None)
    return bool(ask(tensor)) if ask is not None else False


def fake_like(mode: Any, tensor: torch.Tensor) -> torch.Tensor:
    """A fake CPU tensor of the same shape and memory format; the original may be on any device, or sharded."""
    strides: Sequence[int] | None = None
    if tensor.layout == torch.strided and not hasattr(tensor, "device_mesh"):
        strides = tensor.stride()
    if strides is None or 0 in strides:
        return fake_tensor(mode, tuple(tensor.shape), tensor.dtype)
    return fake_tensor(mode, tuple(tensor.shape), tensor.dtype, strides)


def fake_parameter(mode: Any, parameter: torch.Tensor) -> torch.Tensor:
    """A fake tensor that is an ``nn.Parameter``; its constructor would make a second one by way of ``detach``."""
    fake = fake_like(mode, parameter)
    fake.requires_grad_(parameter.requires_grad)
    fake._is_param = True
    return fake


def fake_tensor(
    mode: Any, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None
) -> torch.Tensor:
    """A fake CPU tensor, made directly: through the dispatcher it takes six times as long."""
    with no_modes():
        if strides is None:
            meta = torch.empty(shape, dtype=dtype, device="meta")
        else:
            meta = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return FakeTensor(mode, meta, torch.device("cpu"))


def made_on_meta(mode: Any, make: Callable[[], Any]) -> Any:
    """What a C++ kernel makes of fake tensors, without the bookkeeping of the fake mode: a tenth of its time."""
    with no_modes(), in_kernel_invocation_manager(mode):
        made = make()
    return _wrapped(mode, made)


def _wrapped(mode: Any, made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        return made if isinstance(made, FakeTensor) else FakeTensor(mode, made, torch.device("cpu"))
    return type(made)(_wrapped(mode, item) for item in made)


def storage_key(tensor: torch.Tensor) -> int:
    """What two tensors share when they are views of one memory; 0 where a tensor has no storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


@contextlib.contextmanager
def no_modes() -> Iterator[None]:
    """Compute for real, outside every dispatch mode."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        yield


@contextlib.contextmanager
def plain_execution() -> Iterator[None]:
    """No fused attention fast path, no compiler, no log of what fake tensors refuse; afterwards all as it was."""
    fast = torch.backends.mha.get_fastpath_enabled()
    log = logging.getLogger(FakeTensorMode.__module__)
    level = log.level
    torch.backends.mha.set_fastpath_enabled(False)
    log.setLevel(logging.CRITICAL)
    try:
        if "torch._dynamo" in sys.modules:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        log.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def settle_autograd() -> None:
    """Let autograd count its devices now, where there are none but the CPU.

    It counts them once, at the first backward. Fake tensors register a stand-in for CUDA; counted after them, autograd
    starts a thread for it, and refuses to work in any process forked later.
    """
    if not torch.accelerator.is_available():
        with no_modes(), torch.inference_mode(False), torch.enable_grad():
            torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]


def fsdp_original(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class that ``fully_shard`` made a subclass of; any other class as it is."""
    if not kind.__name__.startswith("FSDP") or len(kind.__mro__) < 3:
        return kind
    if any(base.__name__ == "FSDPModule" for base in kind.__bases__):
        return cast("type[torch.nn.Module]", kind.__bases__[-1])
    return kind


@cache
def check() -> bool:
    """Whether composite operations arrive whole, as they do in the torch versions that this was written for.

    Raises:
        TraceError: no operation arrives at all: this torch has another dispatcher.
    """
    settle_autograd()
    seen: list[str] = []

    class Probe(DispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            seen.append(normalise(func._schema.name))
            return func(*args, **(kwargs or {}))

    with fake_mode():
        weight = torch.empty(3, 2)
        with Probe(), torch.inference_mode():
            torch.nn.functional.layer_norm(torch.nn.functional.linear(torch.empty(1, 2), weight), (3,))
    if not any(name in seen for name in ("linear", "addmm", "mm")):
        raise TraceError(
            compose(
                f"torch {torch.__version__}, whose operations do not reach a dispatch mode (seen: {seen})",
                "a torch with TorchDispatchMode and FakeTensorMode, as 2.14",
                instead="fanin.plan(model) after pip install 'torch>=2.14'",
            )
        )
    return "linear" in seen and "layer_norm" in seen
