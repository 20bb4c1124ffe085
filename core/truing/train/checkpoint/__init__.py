"""Checkpoints: safetensors and JSON, sealed by a manifest of hashes, never half written."""

from truing.train.checkpoint.manifest import MANIFEST, DamagedError, Manifest, read_manifest, step_of, verify
from truing.train.checkpoint.store import CheckpointError, CheckpointStore, Contents

__all__ = [
    "MANIFEST",
    "CheckpointError",
    "CheckpointStore",
    "Contents",
    "DamagedError",
    "Manifest",
    "read_manifest",
    "step_of",
    "verify",
]
