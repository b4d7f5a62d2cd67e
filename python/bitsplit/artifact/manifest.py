"""The description inside a file: what is stored, how to put it back, and hashes to check it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from bitsplit.document import Document, explain
from bitsplit.errors import ArtifactError
from bitsplit.network.baking import Form
from bitsplit.report.results import QuantizationReport

FORMAT = 1
"""Version of the file format; it rises when older versions of bitsplit could misread a file."""

_FIELD = "bitsplit"


class StoredGrid(Document):
    """Integer levels low .. high of a code that is ``bits`` wide; whether its scales have to be 2^k, or one
    for all channels."""

    bits: int = Field(ge=2, le=8)
    low: int
    high: int
    power_of_two: bool = False
    per_tensor: bool = False


class StoredLayer(Document):
    """One quantized layer.

    Attributes:
        name: of the module.
        shape, dtype: of the weight.
        weight: its levels; None when the weight is stored as it is.
        input: levels of the input quantizer; None when there is none.
        channel_axis: of the input, for input quantizers with one scale per channel.
        input_owner: the layer under whose name the input quantizer is stored; several layers may share one.
        block, argument: the module on which the input quantizer acts, and on which of the tensors that it is
            called with; None: on the layer's own input.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    weight: StoredGrid | None = None
    input: StoredGrid | None = None
    channel_axis: int | None = None
    input_owner: str | None = None
    block: str | None = None
    argument: int | None = None


class Manifest(Document):
    """Everything in a file that is not a tensor.

    Attributes:
        format: version of the file format.
        model_class: class of the model, for messages only.
        layers: the quantized layers.
        folded_norms: norms whose work the layers before them do.
        plain_layers: layers that computed their weight and now store it, with the form they took.
        report: plan, recipe, errors, data and versions of the run.
        hashes: SHA-256 of every stored tensor: its type, shape and bytes.
    """

    format: int
    model_class: str
    layers: tuple[StoredLayer, ...]
    folded_norms: tuple[str, ...]
    plain_layers: dict[str, Form]
    report: QuantizationReport
    hashes: dict[str, str]

    def to_header(self) -> dict[str, str]:
        """The manifest as the one text field of a safetensors header, with its own hash."""
        content = self.model_dump(mode="json")
        field = {"format": self.format, "sha256": _content_hash(content), "manifest": content}
        return {_FIELD: json.dumps(field, ensure_ascii=False)}

    @classmethod
    def from_header(cls, header: dict[str, str] | None, where: str) -> Manifest:
        """Read and check what ``to_header`` wrote; ``where`` names the file in messages."""
        if not header or _FIELD not in header:
            raise ArtifactError(f"{where} was not written by bitsplit: it has no manifest")
        try:
            field = json.loads(header[_FIELD])
            version, expected, content = int(field["format"]), field["sha256"], field["manifest"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{where} is damaged: its manifest cannot be read ({error})") from error
        if version > FORMAT:
            raise ArtifactError(
                f"{where} has format {version}; this bitsplit reads formats up to {FORMAT}: use a newer one"
            )
        if _content_hash(content) != expected:
            raise ArtifactError(f"{where} is damaged or was altered: its manifest does not match its hash")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ArtifactError(f"the manifest of {where} is not valid: {explain(error)}") from error


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 over type, shape and bytes."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _content_hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
