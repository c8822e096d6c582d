"""Floating-point operations of matrix products: of a model as traced, of a program as compiled.

A multiply-add counts as two. Nothing else is counted: at these sizes all else is a percent.
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vlrep_jax.plan import hlo

_WINDOW = re.compile(r"(\w+)=([0-9x_\-]+)")


def forward(model, image_shape: tuple[int, ...], context_length: int) -> dict[str, int]:
    """FLOPs of one picture and one text through a model in training: {'image': n, 'text': m}.

    A model that reads both together adds those of its 'decoder', or of its 'fusion' for one pair;
    training judges three of every row that is judged. Towers are counted whole, as published counts
    are: attention causal or not, and the last layer at every position though only one may be
    computed. Patches that training drops are not counted.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, context_length), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def init(key, *inputs, method=None):
        # What makes the parameters computes every position; `Transformer` else leaves some out.
        rngs = {"params": key, "dropout": key}
        return model.init(rngs, *inputs, train=True, method=method)

    def traced(method, *inputs):
        return of_jaxpr(jax.make_jaxpr(partial(init, method=method))(key, *inputs).jaxpr)

    flops = {"image": traced("encode_image", images), "text": traced("encode_text", tokens)}
    params = jax.eval_shape(init, key, images, tokens)["params"]
    for part in ("decoder", "fusion"):
        if part in params:
            flops[part] = traced(None, images, tokens) - sum(flops.values())
    return flops


def of_jaxpr(jaxpr) -> int:
    """FLOPs of a traced program's products; loops of unknown length count once."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            depth = math.prod(lhs[i] for i in contracting)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            out = math.prod(equation.outvars[0].aval.shape)
            total += 2 * out * math.prod(kernel) // outputs
        elif name == "cond":
            total += max(of_jaxpr(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(of_jaxpr, _inner(params)))
    return total


def of_program(program: hlo.Program) -> int:
    """FLOPs of one execution of a compiled program on one device, as often as loops run."""
    inside = {}  # of the computations of fusions, which are called from many places

    def of_instruction(instruction, computation):
        if instruction.opcode in ("dot", "convolution"):
            return _product(program, computation, instruction)
        if instruction.opcode == "fusion":
            return sum(of_fusion(name) for name in instruction.called("calls"))
        return 0

    def of_fusion(name):
        if name not in inside:
            lines = program.computations[name]
            inside[name] = sum(of_instruction(instruction, name) for instruction in lines)
        return inside[name]

    return sum(
        times * of_instruction(instruction, computation)
        for instruction, times, computation in hlo.executed(program)
    )


def _inner(params):
    """The traced programs among an operation's parameters; of a function's rules for its own."""
    for value in params.values():
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def _product(program, computation, instruction):
    """FLOPs of a `dot` or a `convolution`, which is what the TPU compiler makes of a product."""
    out = hlo.dimensions(instruction.shape)
    lhs, rhs = (hlo.dimensions(x.shape) for x in program.operands(computation, instruction)[:2])
    if instruction.opcode == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", instruction.rest)[1]
        return 2 * math.prod(out) * math.prod(lhs[int(i)] for i in contracting.split(",") if i)
    lhs_labels, rhs_labels, out_labels = re.search(
        r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest
    ).groups()
    total = 2 * out[out_labels.index("b")] * out[out_labels.index("f")] * rhs[rhs_labels.index("i")]
    found = re.search(r"window=\{([^}]*)\}", instruction.rest)
    window = dict(_WINDOW.findall(found[1])) if found else {}
    for i, label in enumerate(sorted(label for label in out_labels if label.isdigit())):
        # Of dimension i; an option that is not written is 1, and padding 0.
        options = {name: text.split("x")[i] for name, text in window.items()}
        total *= _taps(
            inputs=lhs[lhs_labels.index(label)],
            outputs=out[out_labels.index(label)],
            size=int(options.get("size", 1)),
            stride=int(options.get("stride", 1)),
            pad=int(options.get("pad", "0_0").split("_")[0]),
            lhs_dilate=int(options.get("lhs_dilate", 1)),
            rhs_dilate=int(options.get("rhs_dilate", 1)),
        )
    return total


def _taps(*, inputs, outputs, size, stride, pad, lhs_dilate, rhs_dilate):
    """Pairs of an output and a kernel position along one dimension that meet an input, not padding.

    Batched products are convolutions in which almost all pairs meet none.
    """
    at = np.arange(outputs)[:, None] * stride + np.arange(size)[None] * rhs_dilate - pad
    return int(((at >= 0) & (at <= (inputs - 1) * lhs_dilate) & (at % lhs_dilate == 0)).sum())
