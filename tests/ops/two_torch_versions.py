"""Shows that one built extension serves several PyTorch versions: not part of the suite, run by hand.

    python tests/ops/two_torch_versions.py PYTHON [PYTHON ...]

Each PYTHON is an interpreter of the same Python version with another PyTorch. All import the very file that lies
in this checkout and must give the same digits as the definition.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import json, sys
import torch
from piip.ops import deform_attn, pyramid_resize, reference, _extension
assert _extension._C is not None, _extension.LOAD_ERROR
torch.manual_seed(0)
shapes = [(5, 7), (3, 4)]
inputs = [torch.randn(2, 47, 2, 12), torch.rand(2, 9, 2, 2), torch.randn(2, 9, 2, 2, 3, 2), torch.randn(2, 9, 2, 6)]
grads = []
for op, dtype in ((deform_attn, torch.float32), (reference.deform_attn, torch.float64)):
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in inputs]
    op(leaves[0], shapes, *leaves[1:]).square().sum().backward()
    grads.append([leaf.grad.double() for leaf in leaves])
error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*grads))
level = pyramid_resize(torch.arange(900.0).view(1, 1, 30, 30), scale_factors=[0.5])[0]
assert error < 1e-5 and level.shape == (1, 1, 15, 15), error
print(json.dumps({"torch": torch.__version__, "file": _extension._C.__file__, "gradient_error": error}))
"""


def main(interpreters: list[str]) -> None:
    reports = []
    for interpreter in interpreters:
        run = subprocess.run([interpreter, "-c", CHECK], cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{interpreter} failed:\n{run.stderr}")
        reports.append(json.loads(run.stdout.splitlines()[-1]))
    files = {report["file"] for report in reports}
    versions = {report["torch"] for report in reports}
    if len(files) != 1 or len(versions) != len(interpreters):
        sys.exit(f"expected one file and {len(interpreters)} PyTorch versions, got {files} and {versions}")
    digest = hashlib.sha256(Path(files.pop()).read_bytes()).hexdigest()[:16]
    lines = [f"torch {r['torch']}: largest gradient error {r['gradient_error']:.1e}" for r in reports]
    sys.stdout.write("\n".join([f"one file, sha256 {digest}...", *lines, ""]))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
