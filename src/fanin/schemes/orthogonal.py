"""Orthogonal schemes: Haar-distributed matrices, and their convolutional forms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fanin.errors import SchemeError, compose
from fanin.fans import Axes, Fans, Shape
from fanin.schemes.base import Expected, Matrix, Scheme, matrix_of, register, require_choice, require_number


@register
@dataclass(frozen=True, slots=True)
class Orthogonal(Scheme):
    """``gain · Q`` with Q Haar-distributed: orthonormal rows or columns, whichever are fewer.

    A convolution's kernel is flattened to ``(out/groups, in/groups · ∏k)``, a transposed one's to
    ``(out/groups · ∏k, in/groups)``; each block of a packed weight, each group and each expert gets a matrix of its
    own. Entries have std ``gain / √max(rows, columns)``. A square matrix keeps every
    length, forward and backward; a tall one keeps lengths but its units have second moment ``columns/rows``.

    Source: Saxe, McClelland & Ganguli 2014; Haar by Householder reflections, Stewart 1980.

    >>> Orthogonal().expected(Fans(256, 512)).std
    0.04419417...

    Differs from torch, which takes a packed or a grouped weight for one matrix: its gates are then not orthogonal,
    and a depthwise kernel shrinks with the number of channels.
    """

    gain: float = 1.0
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number("Orthogonal", "gain", self.gain)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        return Expected(0.0, abs(self.gain) / math.sqrt(max(matrix_of(fans, shape, axes).flat)))

    def scaled(self, factor: float) -> Orthogonal:
        return Orthogonal(self.gain * factor)

    @property
    def label(self) -> str:
        return "orthogonal" + ("" if self.gain == 1 else f" × {self.gain:.4f}")

    @property
    def sources(self) -> tuple[str, ...]:
        return ("saxe2014",)


@register
@dataclass(frozen=True, slots=True)
class ScaledOrthogonal(Scheme):
    """Scaled uniform orthogonal: `Orthogonal` times ``√(max(rows, columns)/fan_in)``, which is ``max(√(out/in), 1)``.

    A tall weight is scaled up so that the mean square of its units, not the length of the vector, is kept:
    with gain 1 every layer maps unit second moment to unit second moment, whatever its shape.

    Source: Martens et al. 2021, "SUO". Its published PyTorch code takes a linear weight for ``(in, out)``.

    >>> ScaledOrthogonal().expected(Fans(256, 512)).std
    0.0625
    """

    gain: float = 1.0
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number("ScaledOrthogonal", "gain", self.gain)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        return Expected(0.0, abs(self.gain) / math.sqrt(fans.fan_in))

    def scaled(self, factor: float) -> ScaledOrthogonal:
        return ScaledOrthogonal(self.gain * factor)

    @property
    def label(self) -> str:
        return "scaled orthogonal" + ("" if self.gain == 1 else f" × {self.gain:.4f}")

    @property
    def sources(self) -> tuple[str, ...]:
        return ("martens2021",)


@register
@dataclass(frozen=True, slots=True)
class CentredOrthogonal(Scheme):
    """`ScaledOrthogonal` whose rows sum to zero, so that the mean of what a weight takes in goes no further.

    Behind a sigmoid all units have mean ½, which a random weight turns into a shift of its outputs, more than twice as
    large as the signal (0.5 against a spread of 0.21). A matrix of ``n`` columns is made of a scaled orthogonal one of
    ``n − 1``, turned into the space that is orthogonal to ``(1, …, 1)``: it keeps the mean square of whatever has mean
    zero over its units.

    Source: fanin's own; the same as biases of ``−½ · ∑W`` at the start, for sigmoids ``4 (σ − ½)`` of gain 1.

    >>> CentredOrthogonal().expected(Fans(256, 512)).std
    0.0625
    """

    gain: float = 1.0
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number("CentredOrthogonal", "gain", self.gain)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        return Expected(0.0, abs(self.gain) / math.sqrt(fans.fan_in))

    def scaled(self, factor: float) -> CentredOrthogonal:
        return CentredOrthogonal(self.gain * factor)

    @property
    def label(self) -> str:
        return "centred orthogonal" + ("" if self.gain == 1 else f" × {self.gain:.4f}")

    @property
    def sources(self) -> tuple[str, ...]:
        return ("saxe2014",)


@register
@dataclass(frozen=True, slots=True)
class DeltaOrthogonal(Scheme):
    """An orthogonal matrix at the kernel's centre, zeros elsewhere: an isometry of feature maps.

    With stride 1, circular padding and out ≥ in the convolution keeps every length exactly. Needs odd kernels.

    Source: Xiao et al. 2018, algorithm 2 (where out ≥ in is required; a wide weight gets orthonormal rows here,
    which keeps the gradient's length instead).

    >>> DeltaOrthogonal().expected(Fans(72, 72), (8, 8, 3, 3)).std
    0.11785113...
    """

    gain: float = 1.0
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number("DeltaOrthogonal", "gain", self.gain)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        matrix = matrix_of(fans, shape, axes)
        return Expected(0.0, abs(self.gain) / math.sqrt(max(matrix.rows, matrix.columns) * matrix.kernel))

    def scaled(self, factor: float) -> DeltaOrthogonal:
        return DeltaOrthogonal(self.gain * factor)

    @property
    def label(self) -> str:
        return "delta orthogonal" + ("" if self.gain == 1 else f" × {self.gain:.4f}")

    @property
    def sources(self) -> tuple[str, ...]:
        return ("xiao2018",)


@register
@dataclass(frozen=True, slots=True)
class LooksLinear(Scheme):
    """``[[Q, −Q], [−Q, Q]]``, so that a layer and the rectifier before it start as one linear map.

    The second half of the outputs is the first half's negative. Behind such a layer a next one takes in φ(z) and φ(−z)
    and makes of them ``Q · (φ(z) − φ(−z))``, which is ``Q z`` for ReLU, GELU, SiLU and softplus. Q is scaled orthogonal
    (see `ScaledOrthogonal`), as tall and as wide as half of the weight, rounded up; odd rows and columns lack a mirror
    image. The unit second moment that the gain refers to is that of z.

    Args:
        gain: of the linear map.
        mirrored: False for a layer whose inputs are not mirrored, as the first of a network is: ``[Q, −Q]`` stacked.

    Source: Balduzzi et al. 2017, who name it and use it with both signs of a ReLU joined.

    >>> LooksLinear(mirrored=False).expected(Fans(256, 256)).std, LooksLinear().expected(Fans(512, 256)).std
    (0.0625, 0.0625)
    """

    gain: float = 1.0
    mirrored: bool = True
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number("LooksLinear", "gain", self.gain)
        require_choice("LooksLinear", "mirrored", self.mirrored, (True, False))

    def half(self, matrix: Matrix) -> Matrix:
        """The matrix Q within one of this scheme's."""
        columns = -(-matrix.columns // 2) if self.mirrored else matrix.columns
        return matrix._replace(rows=-(-matrix.rows // 2), columns=columns)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        matrix = matrix_of(fans, shape, axes)
        share = self.half(matrix).columns / matrix.columns if matrix.columns else 1.0
        return Expected(0.0, abs(self.gain) / math.sqrt(fans.fan_in * share))

    def scaled(self, factor: float) -> LooksLinear:
        return LooksLinear(self.gain * factor, self.mirrored)

    @property
    def label(self) -> str:
        return "looks linear" + ("" if self.gain == 1 else f" × {self.gain:.4f}")

    @property
    def sources(self) -> tuple[str, ...]:
        return ("balduzzi2017",)


def require_two_columns(matrix: Matrix) -> None:
    """Refuse a matrix of one column, whose only row that sums to zero is zero.

    Raises:
        SchemeError: it has one.
    """
    if matrix.flat[1] == 1:
        raise SchemeError(
            compose(
                "a weight that takes in one number",
                "two inputs at least",
                "a row of one number sums to zero only where it is zero",
                "fanin.schemes.ScaledOrthogonal()",
            )
        )


def require_odd_kernel(shape: Shape, axes: Axes) -> None:
    """Refuse a kernel without a centre.

    Raises:
        SchemeError: a kernel axis has even length.
    """
    kernel = [shape[axis] for axis in axes.kernel_axes(len(shape))]
    if any(size % 2 == 0 for size in kernel):
        raise SchemeError(
            compose(
                f"a kernel of {' × '.join(map(str, kernel))}",
                "odd kernel sizes",
                "the matrix is placed at the kernel's centre, and an even kernel has none",
                "fanin.schemes.Orthogonal()",
            )
        )
