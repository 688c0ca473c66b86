"""In a worker on a GPU Triton's float32 products are exact; seen in the code that it makes, without a GPU."""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from rollout_workers.config import RolloutConfig, engine_environment

COMPILE_A_PRODUCT = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def product(a, b, c, N: tl.constexpr):
    index = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c + index, tl.dot(tl.load(a + index), tl.load(b + index)))

pointers = {"a": "*fp32", "b": "*fp32", "c": "*fp32"}
source = ASTSource(fn=product, signature={**pointers, "N": "constexpr"}, constexprs={"N": 64})
print(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"].count("tf32"))
"""


def num_tf32_instructions(environment: Mapping[str, str], folder: Path) -> int:
    script = folder / "product.py"  # Triton reads a kernel's source from its file.
    script.write_text(COMPILE_A_PRODUCT)
    finished = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "TRITON_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return int(finished.stdout)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which comes with torch or vLLM")
def test_a_product_of_float32_matrices_is_exact_in_a_workers_process_and_not_by_default(tmp_path: Path) -> None:
    environment = engine_environment(RolloutConfig(gpus_per_worker=1), cuda=True)

    assert num_tf32_instructions(environment, tmp_path) == 0
    assert num_tf32_instructions({"TRITON_F32_DEFAULT": ""}, tmp_path) > 0
