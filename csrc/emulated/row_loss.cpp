// kd_emulated.row_loss and scale_gradient: the kernels of the row engine on NumPy arrays.
//
// Outputs and workspaces start as NaN between guard zones; what the kernels wrote is copied out afterwards.
#include "cuda/row_loss.cuh"

#include "cuda/adjusted_rows.cu"
#include "cuda/decoupled_rows.cu"
#include "cuda/forward_rows.cu"
#include "cuda/general_rows.cu"
#include "cuda/label_rows.cu"
#include "cuda/permuted_rows.cu"
#include "cuda/scale_gradient.cuh"
#include "emulated/guarded.h"
#include "python/numpy_pseudo_labels.h"
#include "python/numpy_row_loss.h"

namespace py = pybind11;

namespace {

using kd::emulated::Outputs;

// The plan of a launch form that plan_rows() might not choose for the problem: `lanes` per row at least in the held
// form, exactly in the strided one, `threads` per block, `cluster` blocks per staged row.
kd::RowPlan forced_plan(const kd::RowLoss& problem, const std::string& name, int lanes, int threads, int cluster) {
  const auto found = std::find(std::begin(kd::form_names), std::end(kd::form_names), name);
  if (found == std::end(kd::form_names)) throw std::invalid_argument("no launch form is called " + name);
  kd::RowPlan plan{static_cast<kd::RowForm>(found - std::begin(kd::form_names)), threads, threads, 0, 0, 1};
  const int64_t classes = kd::chunked_classes(problem);
  const int bytes = kd::element_size(problem.student.dtype) + kd::element_size(problem.teacher.dtype);
  const bool unit_stride = problem.student.class_stride == 1 && problem.teacher.class_stride == 1;
  bool fits = unit_stride && !problem.is_double();
  if (plan.form == kd::RowForm::held) {
    const int64_t chunks = kd::parts_of(classes, kd::chunk_classes);
    plan.lanes = std::max(lanes, kd::next_power_of_two(kd::parts_of(chunks, kd::held_chunks)));
    plan.shared_bytes = kd::held_shared(kd::path_of(problem), classes, bytes, plan.lanes);
    fits = fits && plan.lanes <= kd::simt::warp_threads && plan.shared_bytes <= kd::shared_limit(90);
  } else if (plan.form == kd::RowForm::staged) {
    plan = kd::plan_staged(classes, bytes, threads, cluster);
    fits = fits && plan.shared_bytes <= kd::shared_limit(90);
  } else if (plan.form == kd::RowForm::strided) {
    plan.lanes = lanes;
    fits = true;
  }
  if (!fits) throw std::invalid_argument("the launch form " + name + " does not fit the problem");
  plan.blocks = plan.cluster > 1 ? problem.rows() * plan.cluster : kd::parts_of(problem.rows(), threads / plan.lanes);
  return plan;
}

// The classes of a problem in parts that begin at `starts`, each measured, merged with the others and finished (row_measure.h).
// The losses of the parts are added up.
template <class A>
void solve_in_parts(const kd::RowLoss& problem, const std::vector<int64_t>& starts, int sm, Outputs& outputs) {
  const int64_t rows = problem.rows(), losses = problem.reduction == kd::Reduction::none ? rows : problem.groups;
  std::vector<kd::RowLoss> parts;
  for (size_t i = 0; i < starts.size(); ++i) {
    kd::RowLoss& part = parts.emplace_back(problem);
    const int64_t end = i + 1 < starts.size() ? starts[i + 1] : problem.classes;
    part.classes = end - starts[i];
    part.teacher_classes = part.soft.classes = 0;
    part.hard.first_class = starts[i];
    for (kd::Rows* tensor : {&part.student, &part.teacher, &part.grad_student, &part.grad_teacher})
      if (tensor->data)
        tensor->data = static_cast<char*>(tensor->data) + starts[i] * tensor->class_stride * kd::element_size(tensor->dtype);
    part.measures = outputs.allocate("measures", rows * sizeof(kd::RowMeasure<A>));
  }
  const auto measure_of = [](const kd::RowLoss& part, int64_t row) -> kd::RowMeasure<A>& {
    return static_cast<kd::RowMeasure<A>*>(part.measures)[row];
  };
  const auto each_step = [&](kd::RowStep step, const auto& merge) {
    for (kd::RowLoss& part : parts) {
      part.step = step;
      kd::row_measure_cuda(part, kd::plan_problem(part, sm), nullptr);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (size_t i = 1; i < parts.size(); ++i) merge(measure_of(parts[0], row), measure_of(parts[i], row), row);
      for (const kd::RowLoss& part : parts) measure_of(part, row) = measure_of(parts[0], row);
    }
  };
  each_step(kd::RowStep::exponentials, [&](kd::RowMeasure<A>& sum, const kd::RowMeasure<A>& part, int64_t row) {
    const A* temperatures = static_cast<const A*>(problem.soft.row_temperature);
    const A temperature = temperatures ? temperatures[row] : static_cast<A>(problem.soft.temperature);
    sum.add(part, A(1) / temperature, A(1) / temperature);
  });
  each_step(kd::RowStep::gradients, [](kd::RowMeasure<A>& sum, const kd::RowMeasure<A>& part, int64_t) { sum.add_gradients(part); });
  std::vector<A> loss(losses), both(2 * losses);
  for (kd::RowLoss& part : parts) {
    part.step = kd::RowStep::finish;
    kd::row_loss_cuda(part, kd::plan_problem(part, sm), sm, nullptr);
    for (int64_t i = 0; i < losses; ++i) loss[i] += static_cast<const A*>(part.loss)[i];
    for (int64_t i = 0; part.parts && i < 2 * losses; ++i) both[i] += static_cast<const A*>(part.parts)[i];
  }
  std::copy(loss.begin(), loss.end(), static_cast<A*>(problem.loss));
  if (problem.parts) std::copy(both.begin(), both.end(), static_cast<A*>(problem.parts));
}

py::dict row_loss_in_parts(const kd::python::Options& options, const std::vector<int64_t>& starts, int sm) {
  Outputs outputs;
  const kd::python::NumpyProblem numpy(
      options, [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  const kd::emulated::OnDevice device(sm);
  if (numpy.problem.is_double()) solve_in_parts<double>(numpy.problem, starts, sm, outputs);
  else solve_in_parts<float>(numpy.problem, starts, sm, outputs);
  outputs.check();
  return numpy.results();
}

py::dict row_loss(const kd::python::Options& options, const std::string& form, int lanes, int threads, int cluster,
                  int sm, const std::vector<int64_t>& starts) {
  if (!starts.empty()) return row_loss_in_parts(options, starts, sm);
  Outputs outputs;
  const kd::python::NumpyProblem numpy(
      options, [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  const kd::RowLoss& problem = numpy.problem;
  const kd::RowPlan plan =
      form == "auto" ? kd::plan_problem(problem.after_statistics(), sm)
                     : forced_plan(problem, form, lanes, threads, cluster);
  const kd::emulated::OnDevice device(sm);
  kd::row_loss_cuda(problem, plan, sm, nullptr);
  outputs.check();
  py::dict results = numpy.results();
  results["form"] = kd::form_names[static_cast<int>(plan.form)];
  results["cluster"] = plan.cluster;
  results["shared_bytes"] = plan.shared_bytes;
  return results;
}

// The first pass alone, for a statistic that is looked at for itself.
py::array logit_rank(const py::array& logits,  // [rows, C]
                     const py::array_t<int64_t, py::array::c_style>& target, int sm) {
  const kd::python::Layout layout(logits, 1, kd::python::strides_of(logits));
  if (target.size() != layout.outer) throw std::invalid_argument("target must have one value per row");
  kd::RowLoss problem;
  problem.outer = layout.outer;
  problem.classes = layout.classes;
  problem.student = layout.rows(const_cast<void*>(logits.data()), kd::python::dtype_of(logits));
  problem.hard.target = target.data();
  problem.first.statistic = kd::RowStatistic::rank;
  Outputs outputs;
  const void* ranks = problem.first.numbers =
      outputs.allocate("ranks", problem.rows() * (problem.is_double() ? sizeof(double) : sizeof(float)));
  const kd::emulated::OnDevice device(sm);
  kd::row_statistics_cuda(problem, sm, nullptr);
  outputs.check();
  if (problem.is_double()) return py::array_t<double>(problem.rows(), static_cast<const double*>(ranks));
  return py::array_t<float>(problem.rows(), static_cast<const float*>(ranks));
}

py::tuple pseudo_labels(const py::array& logits, const py::object& threshold, double temperature, int64_t ignore_index,
                        int64_t dim, int sm) {
  Outputs outputs;
  const kd::python::NumpyPseudoLabels numpy(
      logits, threshold, temperature, ignore_index, dim,
      [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  const kd::emulated::OnDevice device(sm);
  kd::row_statistics_cuda(numpy.problem, sm, nullptr);
  outputs.check();
  return numpy.results();
}

// gradient *= upstream, in place. `gradient` is dense.
void scale_gradient(py::array gradient,         // [outer,] classes [, inner]
                    const py::array& upstream,  // one number, or [rows]; float32 or float64
                    int64_t dim) {
  const kd::python::Layout layout(gradient, dim, kd::python::strides_of(gradient));
  const py::array numbers = py::array::ensure(upstream, py::array::c_style);
  const bool per_row = numbers.ndim() > 0;
  if (per_row && numbers.size() != layout.positions()) {
    throw std::invalid_argument("upstream must be one number or one per row");
  }
  kd::scale_gradient_cuda(layout.rows(gradient.mutable_data(), kd::python::dtype_of(gradient)), layout.outer, layout.classes,
                          layout.inner, numbers.data(), kd::python::dtype_of(numbers), per_row, nullptr);
}

}  // namespace

void bind_row_loss(py::module_& m) {
  using namespace py::literals;
  kd::python::def_row_loss<const std::string&, int, int, int, int, const std::vector<int64_t>&>(
      m, &row_loss,
      "Loss, parts, gradients and the launch form, by name. Integers stand for the enums of csrc/row_loss.h; `form` "
      "forces a launch form, with `lanes` threads per row, `threads` per block and `cluster` blocks per staged row. "
      "`starts`: the classes come in parts that begin there and are measured and finished apart.",
      "form"_a = "auto", "lanes"_a = 1, "threads"_a = 128, "cluster"_a = 1, "sm"_a = 90,
      "starts"_a = std::vector<int64_t>());
  m.def("logit_rank", &logit_rank, "logits"_a, "target"_a, "sm"_a = 90);
  m.def("pseudo_labels", &pseudo_labels, "logits"_a, "threshold"_a = 0.0, "temperature"_a = 1.0, "ignore_index"_a = -100,
        "dim"_a = -1, "sm"_a = 90);
  m.def("scale_gradient", &scale_gradient, "gradient"_a, "upstream"_a, "dim"_a = -1);
}
