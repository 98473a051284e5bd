"""Compares the installed SDK with its wheel's RECORD: every file as published, and none added."""

import base64
import hashlib
import importlib.metadata
import pathlib

distribution = importlib.metadata.distribution("miosa")
recorded = {}
for file in distribution.files:
    if file.hash is not None:
        content = file.locate().read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).rstrip(b"=").decode()
        assert digest == file.hash.value, f"{file} was changed"
        recorded[pathlib.Path(file.locate()).resolve()] = digest

package = pathlib.Path(distribution.locate_file("miosa")).resolve()
there = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
assert there <= recorded.keys(), f"added: {sorted(map(str, there - recorded.keys()))}"
assert len(there) > 50, f"only {len(there)} files: this is not the SDK"
print(f"{len(recorded)} files are as published")
