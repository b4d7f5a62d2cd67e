"""What the analysis knows about operations, by base name (see ``record.Op``)."""

from __future__ import annotations

import math

import torch

from bitsplit.network.record import Op, Record, Ref, Value


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Products: which two arguments are multiplied and summed over.
PRODUCTS: dict[str, tuple[int, int]] = {
    "convolution": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "linear": (0, 1),
    "addmm": (1, 2),
    "addbmm": (1, 2),
    "baddbmm": (1, 2),
    "addmv": (1, 2),
    "_trilinear": (0, 1),
    "embedding": (1, 0),
    "deform_conv2d": (0, 1),
    "_scaled_dot_product_flash_attention_for_cpu": (0, 1),
    "_scaled_dot_product_flash_attention": (0, 1),
    "_scaled_dot_product_efficient_attention": (0, 1),
    "_scaled_dot_product_cudnn_attention": (0, 1),
    "_scaled_dot_product_fused_attention_overrideable": (0, 1),
    "_scaled_dot_product_attention_math": (0, 1),
}

# The output holds the elements of the first argument, every one once, in some order or type.
REARRANGING = _names(
    """
    view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze flatten unflatten
    clone contiguous _to_copy to detach alias lift_fresh movedim numpy_T pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle expand_as positive
    """
)

# Zeros or copies of border elements are added around the first argument.
PADDING = _names(
    """
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d _pad_circular pad
    """
)

ADDITIONS = frozenset({"add", "sub", "rsub"})

# Normalisation of channels by stored statistics.
NORMS = frozenset({"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training"})

# Which rows come out, how many, and in which order, hangs on values: the last digit of one can change it.
# The results are values and their places; one value and its place; places; what lies under masks.
ORDERING = frozenset({"topk", "sort"})
REDUCING = _names("max min median nanmedian mode kthvalue cummax cummin")
CHOOSING = _names(
    "nms nonzero argmax argmin _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive"
)
MASKING = _names("masked_select masked_scatter index index_put")
MASK_TYPES = (torch.bool, torch.uint8)

# Python gets a number; a whole one counts rows, or decides what runs.
COUNTING = frozenset({"_local_scalar_dense"})

# Two branches of the network meet in these.
JOINS = ADDITIONS | {"mul", "cat", "stack", "maximum", "minimum"}

# Results are never negative, whatever the input.
_NONNEGATIVE = _names(
    """
    relu relu6 sigmoid hardsigmoid softmax _softmax abs square exp exp2 sqrt softplus norm
    linalg_vector_norm zero zeros zeros_like new_zeros ones ones_like new_ones rand rand_like
    """
)

# Results are not negative when no tensor argument is.
_KEEPING = REARRANGING | _names(
    """
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d
    avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d
    adaptive_max_pool2d adaptive_max_pool3d mean sum amax amin max min cat stack mul div maximum minimum
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
    upsample_trilinear3d _upsample_bilinear2d_aa slice select narrow split split_with_sizes chunk unbind
    expand repeat gather index index_select flip roll im2col unfold reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d where sort topk cumsum
    grid_sampler_2d hardswish reciprocal rsqrt rot90 tril triu
    """
)


# Weights may take part in these without sums of products: offsets, gains, tables, normalisation.
HARMLESS = NORMS | ADDITIONS | _NONNEGATIVE | _KEEPING | PADDING
HARMLESS |= _names("native_layer_norm native_group_norm _fused_rms_norm tanh pow lerp addcmul copy neg")


def selected(op: Op, record: Record, consumers: list[list[int]]) -> list[Value]:
    """The masks or places by which ``op`` selects rows by values; none where it does not.

    A mask under which one value is written selects nothing.
    """
    if op.name in MASKING:
        one = op.name == "index_put" and math.prod(record.values[refs(op.args[2])[0]].shape) == 1
        read = [] if one else [record.values[value] for value in op.inputs]
        return [value for value in read if value.dtype in MASK_TYPES]
    if op.name in REDUCING:  # whose places are hardly ever read
        return [record.values[value] for value in op.outputs[1:] if consumers[value]]
    written = op.outputs if op.name in ORDERING | CHOOSING else ()
    return [record.values[v] for v in written if not record.values[v].dtype.is_floating_point]


def operand(op: Op, position: int, name: str) -> object:
    """Argument ``position`` of ``op``, or the one passed by ``name``; None when absent."""
    return op.args[position] if position < len(op.args) else op.kwargs.get(name)


def _scalars_nonnegative(op: Op) -> bool:
    """No number among the arguments of an element-wise operation is negative."""
    values = (*op.args, *op.kwargs.values())
    return all(v >= 0 for v in values if isinstance(v, (int, float)) and not isinstance(v, bool))


def is_nonnegative(op: Op, inputs_nonnegative: bool, source_nonnegative: bool) -> bool:
    """Whether the result of ``op`` is proven to be at least zero.

    inputs_nonnegative: every tensor argument is.  source_nonnegative: the last tensor argument is (what is
    copied).
    """
    if op.name in _NONNEGATIVE:
        return True
    if op.name == "pow":
        exponent = operand(op, 1, "exponent")
        return inputs_nonnegative or (isinstance(exponent, (int, float)) and exponent % 2 == 0)
    if op.name in ("clamp", "hardtanh", "clamp_min"):
        low = operand(op, 1, "min" if op.name != "hardtanh" else "min_val")
        return inputs_nonnegative or (isinstance(low, (int, float)) and low >= 0)
    if op.name == "threshold":
        threshold, value = operand(op, 1, "threshold"), operand(op, 2, "value")
        return threshold >= 0 and value >= 0
    if op.name == "constant_pad_nd":
        return inputs_nonnegative and (operand(op, 2, "value") or 0) >= 0
    if op.name == "copy":
        return source_nonnegative
    if op.name in ("arange", "fill", "full", "full_like", "new_full", "scalar_tensor"):
        return not op.inputs[1:] and _scalars_nonnegative(op)
    if op.name in ("add", "mul", "div", "leaky_relu", "silu", "gelu", "addcmul", "addcdiv"):
        return inputs_nonnegative and _scalars_nonnegative(op)
    return op.name in _KEEPING and bool(op.inputs) and inputs_nonnegative


def refs(arguments: object) -> list[int]:
    """The values among ``arguments`` (nested lists and tuples allowed)."""
    if isinstance(arguments, Ref):
        return [arguments.value]
    if isinstance(arguments, (list, tuple)):
        return [value for argument in arguments for value in refs(argument)]
    return []
