// NumPy arrays to the problem of pseudo labels (csrc/row_loss.h). Used by kdkernels._host and, for the emulated CUDA kernels, by
// the tests' kd_emulated.
#pragma once
#include "python/numpy_row_loss.h"

namespace kd::python {

class NumpyPseudoLabels {
 public:
  RowLoss problem;

  NumpyPseudoLabels(const py::array& logits,      // in a Layout
                    const py::object& threshold,  // a number, or one per class
                    double temperature, int64_t ignore_index, int64_t dim, const NumpyProblem::Allocate& allocate) {
    const Layout layout(logits, dim, strides_of(logits));
    problem.outer = layout.outer;
    problem.middle = layout.middle;
    problem.classes = layout.classes;
    problem.inner = layout.inner;
    problem.student = layout.rows(const_cast<void*>(logits.data()), dtype_of(logits));
    problem.soft.temperature = temperature;
    problem.hard.ignore_index = ignore_index;
    problem.first.statistic = RowStatistic::pseudo_label;
    problem.first.numbers = allocate("confidence", problem.rows() * (problem.is_double() ? sizeof(double) : sizeof(float)));
    problem.pseudo.labels = static_cast<int64_t*>(allocate("labels", problem.rows() * sizeof(int64_t)));
    if (py::isinstance<py::array>(threshold)) set_thresholds(threshold);
    else problem.pseudo.threshold = threshold.cast<double>();
  }

  // (labels, confidence), copied: [rows].
  py::tuple results() const {
    const void* numbers = problem.first.numbers;
    const int64_t rows = problem.rows();
    const py::array confidence = problem.is_double() ? py::array(py::array_t<double>(rows, static_cast<const double*>(numbers)))
                                                     : py::array(py::array_t<float>(rows, static_cast<const float*>(numbers)));
    return py::make_tuple(py::array_t<int64_t>(rows, problem.pseudo.labels), confidence);
  }

 private:
  void set_thresholds(const py::object& thresholds) {
    const auto flags = py::array::c_style | py::array::forcecast;
    kept_ = problem.is_double() ? py::array(py::array_t<double, flags>(thresholds))
                                : py::array(py::array_t<float, flags>(thresholds));
    if (kept_.size() != problem.classes) throw std::invalid_argument("threshold must have one value per class");
    problem.pseudo.thresholds = kept_.data();
  }

  py::array kept_;
};

}  // namespace kd::python
