// The ops of the family, from tensors to the plain problem of memory_bank.h: checks of what would corrupt memory,
// allocation, layouts. The same for every device; what runs a problem is the template argument:
//
//     Device::workspace_bytes(problem), Device::normalizer_workspace_bytes(problem)
//     Device::memory_bank_nce(problem, like)                              `like`: a tensor on the device
//     Device::memory_bank_normalizer(problem, like)
#pragma once
#include <string>
#include <tuple>

#include "kept_gradient.h"
#include "memory_bank.h"
#include "stable.h"

namespace kd {

// One call: the problem, with what has to stay alive until it is solved.
class BankCall {
 public:
  MemoryBank problem;

  BankCall(const Tensor& embedding, const Tensor& bank, const Tensor& index, double temperature)
      : embedding_(rows_of(embedding)),
        bank_(rows_of(bank)),
        index_(index.is_contiguous() ? index : torch::stable::contiguous(index)) {
    require(index.dim() == 2 && index.scalar_type() == ScalarType::Long, "index must be int64 [B, K+1]");
    require(index.size(0) == embedding.size(0) && index.size(1) >= 2, "index must have a row of 2 or more per embedding");
    require(embedding.size(1) == bank.size(1), "embedding and bank must have equal widths");
    require(bank.size(0) >= 1, "bank must have at least one entry");
    problem.embedding = features(embedding_);
    problem.bank = features(bank_);
    problem.index = static_cast<const int64_t*>(index_.data_ptr());
    problem.columns = index.size(1);
    problem.temperature = temperature;
  }

  ScalarType accumulated() const { return problem.is_double() ? ScalarType::Double : ScalarType::Float; }

  Tensor numbers(const std::vector<int64_t>& sizes) const { return allocate(embedding_, accumulated(), sizes); }

  // A number of the arithmetic type, or nothing.
  const void* number(const std::optional<Tensor>& tensor) const {
    if (!tensor) return nullptr;
    require(tensor->numel() == 1 && tensor->scalar_type() == accumulated(),
            "normalizer must be one number of the arithmetic type");
    return tensor->data_ptr();
  }

  Tensor workspace(size_t bytes) const {
    return allocate(embedding_, ScalarType::Double, {static_cast<int64_t>((bytes + 7) / 8)});
  }

  static Features features(const Tensor& rows) {
    return {rows.data_ptr(), *float_dtype(rows), rows.size(0), rows.size(1), rows.size(0) > 1 ? rows.stride(0) : rows.size(1)};
  }

 private:
  // Features of a row have to be neighbours.
  static Tensor rows_of(const Tensor& tensor) {
    require(tensor.dim() == 2 && float_dtype(tensor).has_value(), "embedding and bank must be float matrices");
    return tensor.size(1) == 1 || tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor);
  }

  Tensor embedding_, bank_, index_;
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> memory_bank_nce_op(const Tensor& embedding,   // [B, d]
                                                      const Tensor& bank,        // [n, d]
                                                      const Tensor& index,       // [B, K+1], int64
                                                      const Tensor& normalizer,  // one number, arithmetic type
                                                      double temperature, double eps, int64_t reduction,
                                                      bool grad_embedding) {
  BankCall call(embedding, bank, index, temperature);
  MemoryBank& problem = call.problem;
  problem.eps = eps;
  problem.reduction = static_cast<Reduction>(reduction);
  problem.normalizer = const_cast<void*>(call.number(normalizer));
  const int64_t rows = problem.rows();
  const Tensor loss =
      problem.reduction == Reduction::none ? call.numbers({rows}) : call.numbers(std::vector<int64_t>{});
  const Tensor positive = call.numbers({rows});
  const std::vector<int64_t> wanted = grad_embedding ? std::vector<int64_t>{rows, problem.width()} : std::vector<int64_t>{0};
  const Tensor gradient = allocate(embedding, scalar_type(kept_dtype(problem.embedding.dtype)), wanted);
  if (grad_embedding) problem.grad_embedding = BankCall::features(gradient);
  const Tensor workspace = call.workspace(Device::workspace_bytes(problem));
  problem.loss = loss.data_ptr();
  problem.positive = positive.data_ptr();
  problem.workspace = workspace.data_ptr();
  Device::memory_bank_nce(problem, embedding);
  return {loss, positive, gradient};
}

template <class Device>
Tensor memory_bank_normalizer_op(const Tensor& embedding,             // [B, d]
                                 const Tensor& bank,                  // [n, d]
                                 const Tensor& index,                 // [B, K+1], int64
                                 const std::optional<Tensor>& known,  // one number, arithmetic type
                                 double temperature) {
  BankCall call(embedding, bank, index, temperature);
  MemoryBank& problem = call.problem;
  const Tensor normalizer = call.numbers(std::vector<int64_t>{});
  const Tensor workspace = call.workspace(Device::normalizer_workspace_bytes(problem));
  problem.known_normalizer = call.number(known);
  problem.normalizer = normalizer.data_ptr();
  problem.workspace = workspace.data_ptr();
  Device::memory_bank_normalizer(problem, embedding);
  return normalizer;
}

}  // namespace kd
