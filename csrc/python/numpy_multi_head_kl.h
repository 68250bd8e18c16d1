// Lists of NumPy arrays to the plain problem of multi_head_kl.h, read where they lie: any strides, any address. uint16 holds
// bfloat16. Used by kdkernels._host and, for the emulated CUDA kernels, by the tests' kd_emulated.
#pragma once
#include "multi_head_kl.h"
#include "python/numpy_row_loss.h"

namespace kd::python {

// A call's arguments, named as in csrc/multi_head_kl.h.
struct HeadOptions {
  std::vector<py::array> students;  // logits [rows, C_i], or [outer, middle, C_i]
  std::vector<py::array> teachers;  // the same shapes
  double temperature;
  std::vector<double> weights;  // one per head
  py::object weight_array;      // [heads], or none: replaces the numbers
  double denominator;
  std::optional<double> denominator_array;  // replaces it
  std::vector<bool> grad_students;          // one per head
};

// The problem, with what it points to. Memory for outputs and workspaces comes from `allocate(name, bytes)`, which keeps it until
// the results are copied out.
class NumpyHeads {
 public:
  using Allocate = std::function<void*(const std::string& name, size_t bytes)>;

  MultiHeadKL problem;

  NumpyHeads(const HeadOptions& options, const Allocate& allocate) : options_(options) {
    const size_t heads = options_.students.size();
    if (heads == 0 || options_.teachers.size() != heads || options_.weights.size() != heads ||
        options_.grad_students.size() != heads)
      throw std::invalid_argument("students, teachers, weights and gradients must have one entry per head");
    for (size_t at = 0; at < heads; ++at) add_head(options_.students[at], options_.teachers[at]);
    const int64_t rows = problem.rows();
    const size_t size = float_size();
    for (size_t at = 0; at < heads; ++at) {
      RowLoss& head = problem.heads[at];
      const py::array& student = options_.students[at];
      const std::string name = "[" + std::to_string(at) + "]";
      if (head.rows() != rows) throw std::invalid_argument("heads must have the same rows");
      head.soft.temperature = options_.temperature;
      head.soft.weight = options_.weights[at];
      head.row_losses = allocate("row_losses" + name, 2 * rows * size);
      if (!options_.grad_students[at]) continue;
      head.grad_student = {allocate("grad_students" + name, student.nbytes()), head.student.dtype,
                           head.middle * head.classes, 1, 0, head.classes};
      if (head.student.dtype == Dtype::float16) head.unit_student = allocate("units" + name, rows * size);
    }
    if (!options_.weight_array.is_none()) {
      const auto flags = py::array::c_style | py::array::forcecast;
      weights_ = problem.is_double ? py::array(py::array_t<double, flags>(options_.weight_array))
                                   : py::array(py::array_t<float, flags>(options_.weight_array));
      if (weights_.size() != static_cast<int64_t>(heads)) throw std::invalid_argument("weights must have one number per head");
      problem.weights = weights_.data();
    }
    problem.denominator = options_.denominator;
    if (options_.denominator_array) problem.denominators = &*options_.denominator_array;
    problem.loss = allocate("loss", size);
    problem.parts = allocate("heads", heads * size);
    problem.finished_blocks = static_cast<int*>(allocate("finished_blocks", sizeof(int)));
  }

  NumpyHeads(const NumpyHeads&) = delete;  // it points to itself

  // {loss, heads, grad_students, units}, copied; lists have None where there is none.
  py::dict results() const {
    py::list gradients, units;
    for (size_t at = 0; at < problem.heads.size(); ++at) {
      const RowLoss& head = problem.heads[at];
      const py::array& student = options_.students[at];
      const std::vector<int64_t> shape(student.shape(), student.shape() + student.ndim());
      if (head.grad_student.data) gradients.append(py::array(student.dtype(), shape, head.grad_student.data));
      else gradients.append(py::none());
      if (head.unit_student) units.append(numbers(head.unit_student, problem.rows()));
      else units.append(py::none());
    }
    py::dict results;
    results["loss"] = numbers(problem.loss, 1);
    results["heads"] = numbers(problem.parts, static_cast<int64_t>(problem.heads.size()));
    results["grad_students"] = gradients;
    results["units"] = units;
    return results;
  }

 private:
  size_t float_size() const { return problem.is_double ? sizeof(double) : sizeof(float); }

  void add_head(const py::array& student, const py::array& teacher) {
    if (student.ndim() != teacher.ndim() ||
        !std::equal(student.shape(), student.shape() + student.ndim(), teacher.shape()))
      throw std::invalid_argument("student and teacher must have equal shapes");
    const Layout layout(student, -1, strides_of(student));
    RowLoss head;
    head.outer = layout.outer;
    head.middle = layout.middle;
    head.classes = head.teacher_classes = layout.classes;
    head.student = layout.rows(const_cast<void*>(student.data()), dtype_of(student));
    head.teacher = Layout(teacher, -1, strides_of(teacher)).rows(const_cast<void*>(teacher.data()), dtype_of(teacher));
    head.reduction = Reduction::sum;
    problem.is_double = problem.is_double || head.is_double();
    problem.heads.push_back(head);
  }

  py::object numbers(const void* data, int64_t count) const {
    if (problem.is_double) return py::array_t<double>(count, static_cast<const double*>(data));
    return py::array_t<float>(count, static_cast<const float*>(data));
  }

  const HeadOptions options_;
  py::array weights_;
};

// Defines m.multi_head_kl(students, teachers, *, options, extra) to call solve(HeadOptions, extra).
template <class... Extra, class... Names>
void def_multi_head_kl(py::module_& m, py::dict (*solve)(const HeadOptions&, Extra...), const char* doc, Names... extra) {
  using namespace py::literals;
  const auto function = [solve](const std::vector<py::array>& students, const std::vector<py::array>& teachers,
                                double temperature, std::optional<std::vector<double>> weights,
                                const py::object& weight_array, double denominator, std::optional<double> denominator_array,
                                std::optional<std::vector<bool>> grad_students, Extra... more) {
    const size_t heads = students.size();
    return solve({students, teachers, temperature, weights.value_or(std::vector<double>(heads, 1.0)), weight_array, denominator,
                  denominator_array, grad_students.value_or(std::vector<bool>(heads, true))},
                 more...);
  };
  const py::none none;
  m.def("multi_head_kl", function, "students"_a, "teachers"_a, py::kw_only(), "temperature"_a = 3.0, "weights"_a = none,
        "weight_array"_a = none, "denominator"_a = 0.0, "denominator_array"_a = none, "grad_students"_a = none, extra..., doc);
}

}  // namespace kd::python
