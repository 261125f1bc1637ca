"""Matrix products in the order that `products` states, in vector registers.

A tile of the product is summed in registers over one chunk of k, then added to memory. The order of the sums of each
element is the same for every size of tile, so a processor may have the size that suits its registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, config, types

from fanin.sampling.instructions import generic, instruction

_FEATURES = config.CPU_FEATURES if config.CPU_FEATURES is not None else binding.get_host_cpu_features().flatten()
_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx" in _FEATURES else 16
"""The width of a vector register of the processor that numba compiles for."""
ROWS = 4 if _BYTES == 32 else 8
"""Rows of a tile. With two registers a row they fill half of the registers; AVX has fewest."""


@instruction
def tile(
    context: Any, sign: Any, c: Any, c_at: Any, c_row: Any, a: Any, a_at: Any, a_row: Any, a_column: Any,
    b: Any, b_at: Any, b_row: Any, depth: Any,
) -> Any:  # fmt: skip
    """Add a tile of a · b to c, or subtract it where the literal `sign` is −1.

    The arrays are flat; `_at` is where the tile begins in them, `_row` and `_column` are strides. Rows of b and c are
    contiguous; a tile is `ROWS` high and two registers wide.
    """
    minus = sign.literal_value < 0
    signature = types.void(sign, c, c_at, c_row, a, a_at, a_row, a_column, b, b_at, b_row, depth)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar = context.get_value_type(c.dtype)
        alignment = c.dtype.bitwidth // 8
        lanes = _BYTES // alignment
        vector = ir.VectorType(scalar, lanes)
        _, c_array, c_at, c_row, a_array, a_at, a_row, a_column, b_array, b_at, b_row, depth = arguments
        base = {
            name: context.make_array(kind)(context, builder, array).data
            for name, kind, array in (("a", a, a_array), ("b", b, b_array), ("c", c, c_array))
        }

        def vector_at(name: str, index: Any) -> Any:
            return builder.bitcast(builder.gep(base[name], [index]), vector.as_pointer())

        def index(start: Any, count: int, stride: Any) -> Any:
            return builder.add(start, builder.mul(ir.Constant(start.type, count), stride))

        def splat(number: Any) -> Any:
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
            order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), order)

        one = ir.Constant(c_at.type, 1)
        zero = ir.Constant(vector, [0.0] * lanes)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(ROWS)]
        with cgutils.for_range(builder, depth) as loop:
            b_here = builder.add(b_at, builder.mul(loop.index, b_row))
            a_here = builder.add(a_at, builder.mul(loop.index, a_column))
            places = [vector_at("b", index(b_here, half * lanes, one)) for half in (0, 1)]
            row_b = [builder.load(place, align=alignment) for place in places]
            for row in range(ROWS):
                number = splat(builder.load(builder.gep(base["a"], [index(a_here, row, a_row)])))
                for half in (0, 1):
                    product = builder.fmul(number, row_b[half])
                    builder.store(builder.fadd(builder.load(sums[row][half]), product), sums[row][half])
        combine = builder.fsub if minus else builder.fadd
        for row in range(ROWS):
            for half in (0, 1):
                place = vector_at("c", index(index(c_at, row, c_row), half * lanes, one))
                before = builder.load(place, align=alignment)
                builder.store(combine(before, builder.load(sums[row][half])), place, align=alignment)
        return context.get_dummy_value()

    return signature, emit


def tile_columns(array: Any) -> int:
    """How many columns a tile of an array's type has."""
    raise NotImplementedError


@generic(tile_columns)
def _tile_columns(array: Any) -> Any:
    columns = 2 * _BYTES // int(array.dtype.bitwidth // 8)

    def count(array: Any) -> int:
        return columns

    return count
