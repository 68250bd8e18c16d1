// The ops of the family, from tensors to the plain problems of similarity.h: checks of what would corrupt memory,
// allocation. The same for every device; what solves a problem is the template argument:
//
//     Device::similarity(problem, like)         `like`: a tensor on the device
//     Device::similarity_rank(problem, like)
#pragma once
#include <tuple>

#include "kept_gradient.h"
#include "similarity.h"
#include "stable.h"

namespace kd {

// One call: the problem, filled in step by step, with what has to stay alive until it is solved.
class SimilarityCall {
 public:
  Similarity problem;

  SimilarityCall(const Tensor& query, const Tensor& key) : query_(query) {
    problem.query = features(query, "query");
    problem.key = features(key, "key");
    require(problem.query.width == problem.key.width, "query and key must have equal widths");
  }

  void teacher(const std::optional<Tensor>& query, const std::optional<Tensor>& key) {
    require(query.has_value() == key.has_value(), "teacher_query and teacher_key come together");
    require(query.has_value() == (problem.target == KeyTarget::teacher), "the target teacher needs a teacher, no other does");
    if (!query) return;
    problem.teacher_query = features(*query, "teacher_query");
    problem.teacher_key = features(*key, "teacher_key");
    require(problem.teacher_query.width == problem.teacher_key.width, "teacher_query and teacher_key must have equal widths");
    require(problem.teacher_query.rows == problem.queries() && problem.teacher_key.rows == problem.keys(),
            "student and teacher must have as many rows");
  }

  // Numbers of a fixed count, contiguous. Called after `teacher`, whose dtype decides on the arithmetic type too.
  template <class T>
  const T* numbers(const std::optional<Tensor>& tensor, ScalarType dtype, int64_t count, const char* name) {
    if (!tensor) return nullptr;
    require(tensor->scalar_type() == dtype, name, "must have the dtype of the op's schema");
    require(tensor->numel() == count, name, "must have one element for each of those it belongs to");
    return static_cast<const T*>(kept(tensor->is_contiguous() ? *tensor : torch::stable::contiguous(*tensor)).data_ptr());
  }

  void bias(const std::optional<Tensor>& bias) {
    if (!bias) return;
    require(bias->scalar_type() == arithmetic(), "logit_bias must have the arithmetic type");
    require(bias->dim() == 2 && bias->size(0) == problem.queries() && bias->size(1) == problem.keys(),
            "logit_bias must be [queries, keys]");
    problem.bias = bias->data_ptr();
    problem.bias_query_stride = bias->stride(0);
    problem.bias_key_stride = bias->stride(1);
  }

  ScalarType arithmetic() const { return problem.is_double() ? ScalarType::Double : ScalarType::Float; }

  // Loss and gradients, where asked for.
  template <class Device>
  std::tuple<Tensor, Tensor, Tensor, Tensor> solve(bool grad_query, bool grad_key, bool grad_temperature) {
    std::vector<int64_t> shape;
    if (problem.reduction == Reduction::none) shape = {problem.queries()};
    const Tensor loss = allocate(query_, arithmetic(), shape);
    const Tensor by_query = gradient(problem.query, grad_query), by_key = gradient(problem.key, grad_key);
    const Tensor by_temperature = allocate(query_, arithmetic(), grad_temperature ? std::vector<int64_t>{} : std::vector<int64_t>{0});
    problem.loss = loss.data_ptr();
    if (grad_query) problem.grad_query = dense(by_query, problem.query);
    if (grad_key) problem.grad_key = dense(by_key, problem.key);
    if (grad_temperature) problem.grad_temperature = by_temperature.data_ptr();
    Device::similarity(problem, query_);
    return {loss, by_query, by_key, by_temperature};
  }

 private:
  Features features(const Tensor& tensor, const char* name) {
    require(float_dtype(tensor).has_value(), name, "must be a float tensor");
    require(tensor.dim() == 2 && tensor.size(1) >= 1, name, "must be [rows, width]");
    const bool neighbours = tensor.stride(1) == 1 || tensor.size(1) == 1;
    const Tensor& readable = kept(neighbours ? tensor : torch::stable::contiguous(tensor));
    return {readable.data_ptr(), *float_dtype(tensor), tensor.size(0), tensor.size(1), readable.stride(0)};
  }

  Tensor gradient(const Features& of, bool wanted) const {
    const std::vector<int64_t> shape = wanted ? std::vector<int64_t>{of.rows, of.width} : std::vector<int64_t>{0};
    return allocate(query_, scalar_type(kept_dtype(of.dtype)), shape);
  }

  static Features dense(const Tensor& tensor, const Features& like) {
    return {tensor.data_ptr(), kept_dtype(like.dtype), like.rows, like.width, like.width};
  }

  const Tensor& kept(const Tensor& tensor) {
    kept_.push_back(tensor);
    return kept_.back();
  }

  Tensor query_;
  std::vector<Tensor> kept_;
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_loss_op(
    const Tensor& query,                              // [Q, D]
    const Tensor& key,                                // [K, D]
    const std::optional<Tensor>& temperature_tensor,  // one number, arithmetic type
    const std::optional<Tensor>& teacher_query,       // [Q, E]
    const std::optional<Tensor>& teacher_key,         // [K, E]
    const std::optional<Tensor>& positive,            // [Q], int64
    const std::optional<Tensor>& query_labels,        // [Q], int64
    const std::optional<Tensor>& key_labels,          // [K], int64
    const std::optional<Tensor>& logit_bias,          // [Q, K], arithmetic type
    const std::optional<Tensor>& mask,                // [Q], bool
    const std::optional<Tensor>& row_weight,          // [Q], arithmetic type
    double temperature, int64_t target, bool normalize, bool symmetric, bool scale_by_t2, int64_t own_key, bool allow_tf32,
    int64_t reduction, bool grad_query, bool grad_key, bool grad_temperature) {
  SimilarityCall call(query, key);
  Similarity& problem = call.problem;
  const int64_t queries = problem.queries(), keys = problem.keys();
  problem.target = static_cast<KeyTarget>(target);
  call.teacher(teacher_query, teacher_key);
  require((problem.target == KeyTarget::labels) == (query_labels.has_value() && key_labels.has_value()),
          "the target labels needs labels of queries and keys");
  require(!symmetric || problem.target == KeyTarget::positive, "only the target positive can be symmetric");
  require(problem.target != KeyTarget::positive || positive || queries <= keys, "every query needs a positive");
  require(own_key < 0 || own_key + queries <= keys, "every query must be a key");
  problem.positive = call.numbers<int64_t>(positive, ScalarType::Long, queries, "positive");
  problem.query_labels = call.numbers<int64_t>(query_labels, ScalarType::Long, queries, "query_labels");
  problem.key_labels = call.numbers<int64_t>(key_labels, ScalarType::Long, keys, "key_labels");
  problem.mask = call.numbers<bool>(mask, ScalarType::Bool, queries, "mask");
  problem.row_weight = call.numbers<void>(row_weight, call.arithmetic(), queries, "row_weight");
  problem.temperature_at = call.numbers<void>(temperature_tensor, call.arithmetic(), 1, "temperature_tensor");
  call.bias(logit_bias);
  problem.temperature = temperature;
  problem.normalize = normalize;
  problem.symmetric = symmetric;
  problem.scale_by_t2 = scale_by_t2;
  problem.own_key = own_key;
  problem.allow_tf32 = allow_tf32;
  problem.reduction = static_cast<Reduction>(reduction);
  return call.template solve<Device>(grad_query, grad_key, grad_temperature);
}

template <class Device>
Tensor similarity_rank_op(const Tensor& query,     // [Q, D]
                          const Tensor& key,       // [K, D]
                          const Tensor& positive,  // [Q], int64
                          bool normalize, bool allow_tf32) {
  SimilarityCall call(query, key);
  SimilarityRank problem;
  problem.query = call.problem.query;
  problem.key = call.problem.key;
  problem.normalize = normalize;
  problem.allow_tf32 = allow_tf32;
  problem.positive = call.numbers<int64_t>(positive, ScalarType::Long, problem.query.rows, "positive");
  const Tensor rank = allocate(query, ScalarType::Long, {problem.query.rows});
  problem.rank = static_cast<int64_t*>(rank.data_ptr());
  Device::similarity_rank(problem, query);
  return rank;
}

}  // namespace kd
