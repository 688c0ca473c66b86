"""A name for a model's weights that no others have.

It must not know what kind of model it is.
"""

import hashlib
from pathlib import Path


def weights_digest(folder: Path) -> str:
    """Twelve characters that depend on every byte of the folder's safetensors files."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
