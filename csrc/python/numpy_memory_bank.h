// NumPy arrays to the plain problem of memory_bank.h, read where they lie. uint16 holds bfloat16. Used by kdkernels._host
// and, for the emulated CUDA kernels, by the tests' kd_emulated.
#pragma once
#include "memory_bank.h"
#include "python/numpy_row_loss.h"

namespace kd::python {

// A call's arguments, named as in csrc/memory_bank.h.
struct BankOptions {
  py::array embedding;  // [B, d]
  py::array bank;       // [n, d]
  py::array_t<int64_t, py::array::c_style> index;  // [B, K+1]
  std::optional<double> normalizer;                // none: computed
  double temperature, eps;
  int reduction;
  bool grad_embedding;
};

// The problem, with what it points to. Memory for outputs comes from `allocate(name, bytes)`, which keeps it until the
// results are copied out.
class NumpyBank {
 public:
  using Allocate = std::function<void*(const std::string& name, size_t bytes)>;

  MemoryBank problem;

  NumpyBank(const BankOptions& options, const Allocate& allocate) : dtype_(kept_dtype(options.embedding)) {
    const py::array &embedding = options.embedding, &bank = options.bank;
    if (embedding.ndim() != 2 || bank.ndim() != 2 || embedding.shape(1) != bank.shape(1))
      throw std::invalid_argument("embedding and bank must be matrices of one width");
    if (options.index.ndim() != 2 || options.index.shape(0) != embedding.shape(0) || options.index.shape(1) < 2)
      throw std::invalid_argument("index must have a row of 2 or more per embedding");
    problem.embedding = features(embedding);
    problem.bank = features(bank);
    problem.index = options.index.data();
    problem.columns = options.index.shape(1);
    problem.reduction = static_cast<Reduction>(options.reduction);
    problem.temperature = options.temperature;
    problem.eps = options.eps;

    const size_t size = float_size();
    known_ = options.normalizer.value_or(std::nan(""));
    known_float_ = static_cast<float>(known_);
    problem.known_normalizer = problem.is_double() ? static_cast<const void*>(&known_) : &known_float_;
    losses_ = problem.reduction == Reduction::none ? problem.rows() : 1;
    problem.normalizer = allocate("normalizer", size);
    problem.loss = allocate("loss", losses_ * size);
    problem.positive = allocate("positive", problem.rows() * size);
    if (!options.grad_embedding) return;
    problem.grad_embedding = problem.embedding;
    problem.grad_embedding.dtype = dtype_of(py::array(dtype_, 0));
    problem.grad_embedding.stride = problem.width();
    problem.grad_embedding.data = allocate("grad_embedding", problem.rows() * problem.width() * dtype_.itemsize());
  }

  NumpyBank(const NumpyBank&) = delete;  // it points to itself

  // {loss, normalizer, positive, grad_embedding}, copied; None where there is none.
  py::dict results() const {
    py::dict results;
    results["loss"] = numbers(problem.loss, losses_);
    results["normalizer"] = numbers(problem.normalizer, 1);
    results["positive"] = numbers(problem.positive, problem.rows());
    results["grad_embedding"] = py::none();
    if (problem.grad_embedding.data)
      results["grad_embedding"] =
          py::array(dtype_, {problem.rows(), problem.width()}, problem.grad_embedding.data);
    return results;
  }

 private:
  size_t float_size() const { return problem.is_double() ? sizeof(double) : sizeof(float); }

  static Features features(const py::array& rows) {
    if (rows.size() > 0 && rows.shape(1) > 1 && rows.strides(1) != rows.itemsize())
      throw std::invalid_argument("features of a row must be neighbours in memory");
    return {const_cast<void*>(rows.data()), dtype_of(rows), rows.shape(0), rows.shape(1), rows.strides(0) / rows.itemsize()};
  }

  py::object numbers(const void* data, int64_t count) const {
    if (problem.is_double()) return py::array_t<double>(count, static_cast<const double*>(data));
    return py::array_t<float>(count, static_cast<const float*>(data));
  }

  py::dtype dtype_;
  double known_ = 0;
  float known_float_ = 0;
  int64_t losses_ = 0;
};

// Defines m.memory_bank_nce(embedding, bank, index, *, options, extra) to call solve(BankOptions, extra).
template <class... Extra, class... Names>
void def_memory_bank(py::module_& m, py::dict (*solve)(const BankOptions&, Extra...), const char* doc, Names... extra) {
  using namespace py::literals;
  const auto function = [solve](const py::array& embedding, const py::array& bank,
                                const py::array_t<int64_t, py::array::c_style>& index, std::optional<double> normalizer,
                                double temperature, double eps, int reduction, bool grad_embedding, Extra... more) {
    return solve({embedding, bank, index, normalizer, temperature, eps, reduction, grad_embedding}, more...);
  };
  m.def("memory_bank_nce", function, "embedding"_a, "bank"_a, "index"_a, py::kw_only(), "normalizer"_a = py::none(),
        "temperature"_a = 1.0, "eps"_a = 0.0, "reduction"_a = 2, "grad_embedding"_a = true, extra..., doc);
}

}  // namespace kd::python
