"""The CUDA form of csrc/cuda/simt.cuh compiles, every word of it, for the oldest and the reference architecture."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

EVERY_WORD = """
#include "cuda/simt.cuh"
using namespace kd::simt;

template <class T>
KD_KERNEL void KD_LAUNCH_BOUNDS(256) every_word(const T* from, T* to, uint16_t* half) {
  KD_SHARED(T, shared, 256);
  T* const dynamic = dynamic_shared<T>();
  const int64_t index = block_index() * block_threads() + thread_index();
  shared[thread_index()] = from[index];
  dynamic[warp_index()] = from[lane_index()];
  sync_warp();
  sync_threads();
  T value = shuffle_xor(shared[0], 1) + shuffle(dynamic[0], 3);
  if (vote_any(value > T(0))) value += T(grid_blocks());
  store16(to, load16(from));
  const uint32_t a[2][4] = {{to_tf32(float(value))}}, b[1][2] = {{to_tf32(float(from[1]))}};
  float sum[2][1][4] = {};
  multiply_fragments<Fragment::half>(sum, a, b);
  multiply_fragments<Fragment::bfloat16>(sum, a, b);
  multiply_fragments<Fragment::tf32>(sum, a, b);
  value += T(sum[1][0][3]);
  to[index] = value + T(kd::half_to_float(half[0])) + T(kd::bfloat16_to_float(half[1]));
  half[2] = kd::float_to_half(float(value));
  half[3] = kd::float_to_bfloat16(float(value));
}

template <class T>
void start(const T* from, T* to, uint16_t* half, void* stream) {
  launch(every_word<T>, 7, 256, 64 * 1024, stream, from, to, half);
}
template void start(const float*, float*, uint16_t*, void*);
template void start(const double*, double*, uint16_t*, void*);
template void start(const int*, int*, uint16_t*, void*);
template void start(const long long*, long long*, uint16_t*, void*);
"""


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc in CUDA_HOME or on PATH")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])
def test_every_word_compiles(architecture, tmp_path):
    source = tmp_path / "every_word.cu"
    source.write_text(EVERY_WORD)
    command = [find_nvcc(), "-std=c++17", f"-arch={architecture}", f"-I{ROOT}/csrc", "-Xptxas", "-v", "-c", source]
    nvcc = subprocess.run([*command, "-o", tmp_path / "every_word.o"], capture_output=True, text=True)
    assert nvcc.returncode == 0, nvcc.stdout + nvcc.stderr
    assert nvcc.stderr.count("Compiling entry function") == 4 and "warning" not in nvcc.stderr
