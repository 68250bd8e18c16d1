// Kernels with one planted bug each, and their correct twins: tests/test_emulation.py proves that the emulation
// catches the bug and passes the twin.
//
// All have the same form: `values` and `result` are [count], one block of 64 threads unless said otherwise.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <map>
#include <string>

#include "cuda/simt.cuh"
#include "emulated/guarded.h"

namespace py = pybind11;

namespace {

using namespace kd::simt;

constexpr int threads = 64;
constexpr int warps = threads / warp_threads;

// Maximum over the block of `value`, by way of shared memory that the next call uses again.
template <bool bug>
float block_max(float value) {
  KD_SHARED(float, partial, warps);
  for (int mask = 16; mask > 0; mask /= 2) value = std::max(value, shuffle_xor(value, mask));
  if (lane_index() == 0) partial[warp_index()] = value;
  sync_threads();
  value = std::max(partial[0], partial[1]);
  if (!bug) sync_threads();  // else a warp that runs ahead overwrites what another has yet to read
  return value;
}

// result[i] = max(values) - min(values). The bug: a barrier is missing between two uses of the same shared memory.
template <bool bug>
KD_KERNEL void missing_barrier(const float* values, int64_t count, float* result) {
  const int index = thread_index();
  const float value = index < count ? values[index] : values[0];
  const float top = block_max<bug>(value);
  const float bottom = -block_max<bug>(-value);
  if (index < count) result[index] = top - bottom;
}

// result[i] = 2 values[i], on as many blocks as it takes. The bug: one element too many.
template <bool bug>
KD_KERNEL void global_write(const float* values, int64_t count, float* result) {
  const int64_t index = block_index() * block_threads() + thread_index();
  if (index < count) result[index] = 2 * values[index];
  if (bug && index == count) result[index] = 0;
}

// result[i] = values[63 - i], through static shared memory. The bug: 64 - i.
template <bool bug>
KD_KERNEL void static_shared_write(const float* values, int64_t count, float* result) {
  KD_SHARED(float, reversed, threads);
  float* const base = reversed;
  const int index = thread_index();
  base[threads - (bug ? 0 : 1) - index] = index < count ? values[index] : 0;
  sync_threads();
  if (index < count) result[index] = base[index];
}

// The same through dynamic shared memory.
template <bool bug>
KD_KERNEL void dynamic_shared_write(const float* values, int64_t count, float* result) {
  float* const reversed = dynamic_shared<float>();
  const int index = thread_index();
  reversed[threads - (bug ? 0 : 1) - index] = index < count ? values[index] : 0;
  sync_threads();
  if (index < count) result[index] = reversed[index];
}

// result[i] = the sum of the first value of each warp. The bug: sums as many entries as a block can have warps.
template <bool bug>
KD_KERNEL void uninitialised_shared(const float* values, int64_t count, float* result) {
  KD_SHARED(float, partial, warp_threads);
  const int index = thread_index();
  if (lane_index() == 0) partial[warp_index()] = values[index];
  sync_threads();
  float sum = 0;
  for (int warp = 0; warp < (bug ? warp_threads : warps); ++warp) sum += partial[warp];
  if (index < count) result[index] = sum;
}

// result[i] = values[i ^ 1], read after a barrier. The bug: each half of the block has its own.
template <bool bug>
KD_KERNEL void divergent_barrier(const float* values, int64_t count, float* result) {
  KD_SHARED(float, copy, threads);
  const int index = thread_index();
  copy[index] = index < count ? values[index] : 0;
  if (bug && index < 16) {
    sync_threads();
  } else {
    sync_threads();
  }
  if (index < count) result[index] = copy[index ^ 1];
}

// result[i] = values[i ^ 1], shuffled. The bug: threads without an element do not take part.
template <bool bug>
KD_KERNEL void divergent_shuffle(const float* values, int64_t count, float* result) {
  const int index = thread_index();
  const bool inside = index < count;
  float value = inside ? values[index] : 0;
  if (!bug || inside) value = shuffle_xor(value, 1);
  sync_threads();
  if (inside) result[index] = value;
}

// result[i] = the value of the last lane of its warp, 0 where that has none. The bug: threads without an element
// return first.
template <bool bug>
KD_KERNEL void returned_thread(const float* values, int64_t count, float* result) {
  const int index = thread_index();
  const bool inside = index < count;
  if (bug && !inside) return;
  const float last = shuffle(inside ? values[index] : 0, warp_threads - 1);
  const bool any = vote_any(inside);
  if (inside) result[index] = any ? last : 0;
}

// result[i] = values[i] by way of static shared memory. The bug: more than a block has.
template <bool bug>
KD_KERNEL void large_shared(const float* values, int64_t count, float* result) {
  KD_SHARED(float, copy, bug ? 12 * 1024 + 1 : threads);
  const int index = thread_index();
  if (index < count) {
    copy[index] = values[index];
    result[index] = copy[index];
  }
}

// result[i] = values[i], 16 bytes at a time, count a multiple of 4. The bug: the first element is left out.
template <bool bug>
KD_KERNEL void misaligned_load(const float* values, int64_t count, float* result) {
  for (int64_t first = bug ? 1 : 0; first + 4 <= count; first += 4) store16(result + first, load16(values + first));
}

// result[i] = values[i] by way of shared memory, copied 16 bytes at a time, count a multiple of 4. The bug: what is copied is
// not waited for.
template <bool bug>
KD_KERNEL void missing_wait(const float* values, int64_t count, float* result) {
  float* const copy = dynamic_shared<float>();
  const int first = 4 * thread_index();
  if (first + 4 <= count) copy16(copy + first, values + first);
  if (!bug) wait_copies();
  if (first + 4 <= count) store16(result + first, load16(copy + first));
}

// result[i] = the sum of the first values of all blocks of the cluster, four; each writes the part it is the block of. The
// bug: the threads of each block wait for each other alone.
template <bool bug>
KD_KERNEL void missing_cluster_barrier(const float* values, int64_t count, float* result) {
  KD_SHARED(float, own, 1);
  if (thread_index() == 0) own[0] = values[cluster_rank()];
  if (bug) sync_threads();
  else sync_cluster();
  float sum = 0;
  for (int rank = 0; rank < cluster_blocks(); ++rank) sum += read_cluster(own, rank);
  const int64_t index = cluster_rank() * 16 + thread_index();
  if (thread_index() < 16 && index < count) result[index] = sum;
  sync_cluster();  // nobody ends while others read
}

// The same. The bug: blocks end while others read their shared memory.
template <bool bug>
KD_KERNEL void ended_block(const float* values, int64_t count, float* result) {
  KD_SHARED(float, own, 1);
  if (thread_index() == 0) own[0] = values[cluster_rank()];
  sync_cluster();
  float sum = 0;
  for (int rank = 0; rank < cluster_blocks(); ++rank) sum += read_cluster(own, rank);
  const int64_t index = cluster_rank() * 16 + thread_index();
  if (thread_index() < 16 && index < count) result[index] = sum;
  if (!bug) sync_cluster();
}

using Kernel = void (*)(const float*, int64_t, float*);
struct Pair {
  Kernel correct;
  Kernel bug;
};

const std::map<std::string, Pair> kernels = {
    {"missing_barrier", {missing_barrier<false>, missing_barrier<true>}},
    {"global_write", {global_write<false>, global_write<true>}},
    {"static_shared_write", {static_shared_write<false>, static_shared_write<true>}},
    {"dynamic_shared_write", {dynamic_shared_write<false>, dynamic_shared_write<true>}},
    {"uninitialised_shared", {uninitialised_shared<false>, uninitialised_shared<true>}},
    {"divergent_barrier", {divergent_barrier<false>, divergent_barrier<true>}},
    {"divergent_shuffle", {divergent_shuffle<false>, divergent_shuffle<true>}},
    {"returned_thread", {returned_thread<false>, returned_thread<true>}},
    {"large_shared", {large_shared<false>, large_shared<true>}},
    {"misaligned_load", {misaligned_load<false>, misaligned_load<true>}},
    {"missing_wait", {missing_wait<false>, missing_wait<true>}},
    {"missing_cluster_barrier", {missing_cluster_barrier<false>, missing_cluster_barrier<true>}},
    {"ended_block", {ended_block<false>, ended_block<true>}},
};

py::array_t<float> planted(const std::string& name, bool bug, py::array_t<float, py::array::c_style> values) {
  const Pair& pair = kernels.at(name);
  const int64_t count = values.size();
  const int cluster = name == "missing_cluster_barrier" || name == "ended_block" ? 4 : 1;
  const int64_t blocks = name == "global_write" ? (count + threads - 1) / threads : cluster;
  kd::emulated::Guarded result(count * sizeof(float));
  kd::emulated::Guarded input(count * sizeof(float));
  std::copy_n(values.data(), count, static_cast<float*>(input.data()));
  launch_clusters(bug ? pair.bug : pair.correct, blocks, cluster, threads, threads * sizeof(float), nullptr,
         static_cast<const float*>(input.data()), count, static_cast<float*>(result.data()));
  result.check("the result");
  return py::array_t<float>(count, static_cast<float*>(result.data()));
}

}  // namespace

void bind_planted(py::module_& m) {
  m.def("planted", &planted, py::arg("name"), py::arg("bug"), py::arg("values"),
        "Runs a kernel of csrc/emulated/planted.cpp: the one with the bug or its correct twin.");
}
