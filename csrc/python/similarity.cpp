// kdkernels._host: the CPU kernels of the similarity family on NumPy arrays.
#include <memory>

#include "cpu/similarity_kernel.h"
#include "python/numpy_similarity.h"

namespace py = pybind11;

namespace {

// Keeps what it allocates.
class Outputs {
 public:
  void* operator()(const std::string&, size_t bytes) {
    return memory_.emplace_back(new int64_t[bytes / sizeof(int64_t) + 1]).get();
  }

 private:
  std::vector<std::unique_ptr<int64_t[]>> memory_;
};

py::dict similarity(const kd::python::SimilarityOptions& options) {
  Outputs outputs;
  const kd::python::NumpySimilarity numpy(options, std::ref(outputs));
  const int64_t bands = kd::similarity_cpu(numpy.problem, kd::one_thread);
  py::dict results = numpy.results();
  results["bands"] = bands;
  return results;
}

py::array similarity_rank(const py::array& query, const py::array& key, const kd::python::Int64s& positive, bool normalize) {
  Outputs outputs;
  const kd::python::NumpySimilarityRank numpy(query, key, positive, normalize, std::ref(outputs));
  kd::similarity_rank_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

}  // namespace

void bind_similarity(py::module_& m) {
  kd::python::def_similarity(m, &similarity,
                             "Loss and gradients of NumPy features, by name, on one thread, and how many bands of 64 queries were "
                             "computed. Integers stand for the enums of csrc/similarity.h, uint16 arrays hold bfloat16.");
  kd::python::def_similarity_rank(m, &similarity_rank,
                                  "How many keys are more similar to each query than its positive, or as similar and before "
                                  "it: int64 [queries].");
}
