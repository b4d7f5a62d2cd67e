"""Files: a quantized network in one safetensors file."""

from bitsplit.artifact.loading import load
from bitsplit.artifact.manifest import Manifest
from bitsplit.artifact.saving import save
from bitsplit.artifact.storage import read_manifest

__all__ = ["Manifest", "load", "read_manifest", "save"]
