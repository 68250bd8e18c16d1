// kd_emulated.similarity and similarity_rank: the kernels of cuda/similarity.cuh on NumPy arrays.
//
// Outputs and the workspace start as NaN between guard zones; what the kernels wrote is copied out afterwards.
#include "cuda/similarity.cuh"

#include "emulated/guarded.h"
#include "python/numpy_similarity.h"

namespace py = pybind11;

namespace {

using kd::emulated::Outputs;

py::dict similarity(const kd::python::SimilarityOptions& options, int row_shares, int column_shares, int band_tiles,
                    int product_shares, bool allow_tf32, int sm) {
  Outputs outputs;
  kd::python::NumpySimilarity numpy(
      options, [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  kd::Similarity& problem = numpy.problem;
  problem.allow_tf32 = allow_tf32;
  kd::SimilarityPlan plan = kd::plan_problem(problem, sm);
  const auto tiles = [](int64_t count) { return static_cast<int>((count + kd::tile_rows - 1) / kd::tile_rows); };
  const auto force = [](int shares, int most, int& planned) {
    if (shares > 0) planned = std::max(1, std::min(shares, most));
  };
  force(row_shares, tiles(problem.keys()), plan.row_shares);
  force(column_shares, tiles(problem.queries()), plan.column_shares);
  force(product_shares, tiles(problem.keys()), plan.product_shares);
  if (band_tiles > 0) plan.band_rows = band_tiles * kd::tile_rows;
  void* workspace = outputs.allocate("workspace", kd::workspace_bytes(problem, plan));
  const kd::emulated::OnDevice device(sm);
  kd::similarity_cuda(problem, plan, workspace, sm, nullptr);
  outputs.check();
  return numpy.results();
}

py::array similarity_rank(const py::array& query, const py::array& key, const kd::python::Int64s& positive, bool normalize,
                          int sm) {
  Outputs outputs;
  kd::python::NumpySimilarityRank numpy(
      query, key, positive, normalize,
      [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  void* workspace = outputs.allocate("workspace", kd::workspace_bytes(numpy.problem));
  const kd::emulated::OnDevice device(sm);
  kd::similarity_rank_cuda(numpy.problem, workspace, sm, nullptr);
  outputs.check();
  return numpy.results();
}

}  // namespace

void bind_similarity(py::module_& m) {
  using namespace py::literals;
  kd::python::def_similarity<int, int, int, int, bool, int>(
      m, &similarity,
      "Loss and gradients, by name. Integers stand for the enums of csrc/similarity.h; shares and tiles of the launch plan "
      "other than 0 replace the planned ones.",
      "row_shares"_a = 0, "column_shares"_a = 0, "band_tiles"_a = 0, "product_shares"_a = 0, "allow_tf32"_a = false,
      "sm"_a = 90);
  kd::python::def_similarity_rank<int>(m, &similarity_rank, "Ranks of the positives.", "sm"_a = 90);
}
