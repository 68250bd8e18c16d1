// The op of several heads, from tensors to the plain problem of multi_head_kl.h: checks of what would corrupt memory,
// allocation, layouts. The same for every device; what runs a problem is the template argument:
//
//     Device::multi_head_kl(problem, like)     `like`: a tensor on the device
#pragma once
#include <tuple>
#include <vector>

#include "multi_head_kl.h"
#include "row_call.h"
#include "stable.h"

namespace kd {

// One number per head, or one, of the dtype that the kernels read.
template <class T>
const T* head_numbers(const std::optional<Tensor>& tensor, int64_t count, ScalarType dtype, const char* name) {
  if (!tensor) return nullptr;
  require(tensor->numel() == count && tensor->is_contiguous() && tensor->scalar_type() == dtype, name,
          "must be contiguous and have the numbers and the dtype of the op's schema");
  return static_cast<const T*>(tensor->data_ptr());
}

template <class Device>
std::tuple<Tensor, Tensor, std::vector<Tensor>, Tensor> multi_head_kl_op(
    const std::vector<Tensor>& students,              // logits [..., C_i], the same rows in each
    const std::vector<Tensor>& teachers,              // logits, the same shapes
    const std::optional<Tensor>& weights,             // [heads], arithmetic type
    const std::optional<Tensor>& denominator_tensor,  // one float64
    double temperature, double denominator,
    const std::vector<double>& numbers,     // [heads], the weights where there is no tensor
    const std::vector<bool>& grad_students  // [heads]
) {
  const size_t count = students.size();
  require(count > 0 && teachers.size() == count && numbers.size() == count && grad_students.size() == count,
          "students, teachers, weights and gradients must have one entry per head");
  MultiHeadKL problem;
  std::vector<RowCall> calls;  // each keeps the copies that it made of its logits
  int64_t in_units = 0;        // gradients of float16
  for (size_t at = 0; at < count; ++at) {
    const Tensor& student = students[at];
    require(student.dim() >= 1, "students must have classes");
    RowCall& call = calls.emplace_back(student, student.dim() - 1, 0, static_cast<int64_t>(Reduction::sum));
    call.teacher(teachers[at]);
    require(call.problem.rows() == calls[0].problem.rows(), "heads must have the same rows");
    problem.is_double = problem.is_double || call.problem.is_double();
    in_units += grad_students[at] && student.scalar_type() == ScalarType::Half;
  }
  const Tensor& like = students[0];
  const int64_t rows = calls[0].problem.rows(), heads = static_cast<int64_t>(count);
  const ScalarType dtype = problem.is_double ? ScalarType::Double : ScalarType::Float;
  const int64_t size = problem.is_double ? sizeof(double) : sizeof(float);
  const Tensor loss = allocate(like, dtype, {}), parts = allocate(like, dtype, {heads});
  const Tensor units = in_units > 0 ? allocate(like, dtype, {in_units, rows}) : undefined();
  // [heads, 2, rows] row losses, of 1 or 2 floats' size each, and one int that launches count their blocks with.
  const Tensor workspace = allocate(like, ScalarType::Long, {2 * heads * rows + 1});
  std::vector<Tensor> gradients;
  char* next_units = in_units > 0 ? static_cast<char*>(units.data_ptr()) : nullptr;
  for (size_t at = 0; at < count; ++at) {
    RowLoss& head = calls[at].problem;
    head.source = TargetSource::logits;
    head.soft.divergence = Divergence::forward;
    head.soft.temperature = temperature;
    head.soft.weight = numbers[at];
    head.row_losses = static_cast<char*>(workspace.data_ptr()) + 2 * static_cast<int64_t>(at) * rows * size;
    if (!grad_students[at]) {
      gradients.push_back(allocate(like, students[at].scalar_type(), {0}));
      problem.heads.push_back(head);
      continue;
    }
    // Contiguous, whatever the layout of the logits.
    const auto sizes = students[at].sizes();
    gradients.push_back(allocate(like, students[at].scalar_type(), std::vector<int64_t>(sizes.begin(), sizes.end())));
    head.grad_student = {gradients[at].data_ptr(), head.student.dtype, head.middle * head.classes, 1, 0, head.classes};
    if (head.student.dtype == Dtype::float16) {
      head.unit_student = next_units;
      next_units += rows * size;
    }
    problem.heads.push_back(head);
  }
  problem.weights = head_numbers<void>(weights, heads, dtype, "weights");
  problem.denominators = head_numbers<double>(denominator_tensor, 1, ScalarType::Double, "denominator_tensor");
  problem.denominator = denominator;
  problem.loss = loss.data_ptr();
  problem.parts = parts.data_ptr();
  problem.finished_blocks = reinterpret_cast<int*>(static_cast<int64_t*>(workspace.data_ptr()) + 2 * heads * rows);
  Device::multi_head_kl(problem, like);
  return {loss, parts, gradients, units};
}

}  // namespace kd
