"""Makes Triton's interpreter run AITER's kernels; for processes that only interpret."""

from __future__ import annotations

import ast
import functools
from typing import Any

import numpy as np

from tunegen.evaluate import interpreter as bf16_interpreter


@functools.cache
def prepare() -> None:
    """What AITER's kernels ask of the interpreter and it does not have: arithmetic in bfloat16, which it does on the
    bits; ``floor`` as a method; ``not`` of a tensor, which it takes for Python's; and assumptions that do not hold
    (that the number of the first program is above 0), which it checks.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    bf16_interpreter._prepare_worker()
    arithmetic = (np.add, np.subtract, np.multiply, np.divide)
    convert, operate = interpreter._convert_float, interpreter.InterpreterBuilder.binary_op

    def binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if left.dtype.scalar != tl.bfloat16 or operation not in arithmetic:
            return operate(self, left, right, operation)
        wide = [convert(side.data, tl.bfloat16, tl.float32, None).view(np.float32) for side in (left, right)]
        result = convert(operation(*wide), tl.float32, tl.bfloat16, None)
        return interpreter.TensorHandle(result, tl.bfloat16)

    # Triton is not typed.
    class Transformer(interpreter.ASTTransformer):  # type: ignore[misc]  # Triton has no types
        def visit_Assign(self, node: ast.Assign) -> Any:  # noqa: N802 (the name that ast looks for)
            node.value = self.visit(node.value)
            return super().visit_Assign(node)

        def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:  # noqa: N802
            self.generic_visit(node)
            if not isinstance(node.op, ast.Not):
                return node
            return ast.Compare(left=node.operand, ops=[ast.Eq()], comparators=[ast.Constant(value=False)])

    def floor(self: Any) -> Any:
        # Of tl, as it is when a kernel runs: the interpreter puts its own there.
        return tl.floor(self)

    def create_assume(self: Any, condition: Any) -> None:
        pass

    interpreter.InterpreterBuilder.create_assume = create_assume
    interpreter.FunctionRewriter.ast_transformer = Transformer()
    interpreter.InterpreterBuilder.binary_op = binary_op
    tl.tensor.floor = floor
