// kdkernels._host.launch_plan: how the CUDA kernels of a family would be launched, asked on any machine.
#include <pybind11/pybind11.h>

#include <iterator>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace py = pybind11;

namespace {

int element_bytes(const std::string& dtype) {
  const int size = dtype == "float64" ? 8 : dtype == "float32" ? 4 : dtype == "float16" || dtype == "bfloat16" ? 2 : 0;
  if (!size) throw std::invalid_argument("dtype must be float32, float16, bfloat16 or float64, got " + dtype);
  return size;
}

kd::RowPath path_named(const std::string& name) {
  for (int path = 0; path < static_cast<int>(std::size(kd::row_path_names)); ++path)
    if (name == kd::row_path_names[path]) return static_cast<kd::RowPath>(path);
  throw std::invalid_argument("path must be forward, general, label, permuted or adjusted, got " + name);
}

py::dict plan_rows(int64_t rows, int64_t classes, const std::string& dtype, int sm, const std::string& path) {
  if (rows < 0 || classes < 1) throw std::invalid_argument("rows must be >= 0 and classes >= 1");
  const int size = element_bytes(dtype);
  const kd::RowPlan plan = kd::plan_rows(path_named(path), rows, classes, size, path == "label" ? 0 : size, size == 8, true, sm);
  py::dict result;
  result["form"] = kd::form_names[static_cast<int>(plan.form)];
  result["lanes"] = plan.lanes;
  result["threads"] = plan.threads;
  result["blocks"] = plan.blocks;
  result["shared_bytes"] = plan.shared_bytes;
  result["cluster"] = plan.cluster;
  return result;
}

py::dict plan_similarity(int64_t queries, int64_t keys, int64_t width, const std::string& dtype) {
  if (queries < 0 || keys < 1 || width < 1) throw std::invalid_argument("queries must be >= 0, keys and width >= 1");
  const int size = element_bytes(dtype);
  // float16 has its gradients by similarity in float32.
  const kd::SimilarityPlan plan = kd::plan_similarity(queries, keys, width, dtype == "float16" ? 4 : size);
  py::dict result;
  result["row_shares"] = plan.row_shares;
  result["column_shares"] = plan.column_shares;
  result["band_rows"] = plan.band_rows;
  result["band_bytes"] = plan.band_rows * keys * plan.band_bytes;
  result["product_shares"] = plan.product_shares;
  return result;
}

// Of OKDDip with a leader, logits mixed.
py::dict plan_peers(int64_t samples, int64_t peers, int64_t classes, const std::string& dtype, int sm) {
  if (samples < 0 || peers < 1 || classes < 1) throw std::invalid_argument("rows must be >= 0, peers and classes >= 1");
  const int64_t rows = peers + 1;
  const kd::PeerPlan plan = kd::plan_peers(rows, peers, classes, 2 * rows, element_bytes(dtype) == 8 ? 8 : 4, sm);
  py::dict result;
  result["tile"] = plan.tile;
  result["teams"] = plan.teams;
  result["parts"] = plan.parts;
  result["threads"] = plan.threads();
  result["blocks"] = samples;
  result["shared_bytes"] = plan.shared_bytes;
  return result;
}

py::dict launch_plan(const std::string& family, int64_t rows, int64_t columns, const std::string& dtype, int sm, int64_t width,
                     int64_t peers, const std::string& path) {
  if (family == "row_loss") return plan_rows(rows, columns, dtype, sm, path);
  if (family == "similarity") return plan_similarity(rows, columns, width, dtype);
  if (family == "peer_ensemble") return plan_peers(rows, peers, columns, dtype, sm);
  throw std::invalid_argument("family must be row_loss, similarity or peer_ensemble, got " + family);
}

}  // namespace

void bind_launch_plan(py::module_& m) {
  m.def("launch_plan", &launch_plan, py::arg("family"), py::arg("rows"), py::arg("classes"), py::arg("dtype") = "float32",
        py::arg("sm") = 90, py::arg("width") = 128, py::arg("peers") = 3,
        py::arg("path") = "forward",
        "How the CUDA kernels of a family would be launched. row_loss: for rows x classes on a path (RowPath); form, lanes, threads, blocks, "
        "shared_bytes, cluster. similarity: for queries (rows) x keys (classes) of `width` features; row_shares, column_shares, "
        "band_rows, band_bytes, product_shares. peer_ensemble: for samples (rows) of `peers` and a leader; tile (classes), "
        "teams, parts, threads, blocks, shared_bytes (csrc/cuda/launch.h).");
}
