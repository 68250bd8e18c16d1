// The problem of several heads, each a row loss of its own: no torch, no CUDA.
//
// Head i has student logits s_i and teacher logits t_i of C_i classes; all heads have R rows. With the temperature T,
//
//     head_i = T^2 / denominator * sum over its rows of KL(softmax(t_i / T) || softmax(s_i / T))
//     loss = sum_i weight_i * head_i
//     d loss / d s_i = weight_i * T / denominator * (softmax(s_i / T) - softmax(t_i / T))
//
// Yang, An, Cai, Xu 2021 (HSAKD), whose heads are the classes and the joint labels of each stage. Teachers are constants.
// Each head is a RowLoss on the forward path: its formulas are those of row_loss.h.
#pragma once
#include <cstdint>
#include <vector>

#include "row_loss.h"

namespace kd {

struct MultiHeadKL {
  // One or more, with as many rows in each: logits, gradient, units, row losses and temperature. `soft.weight` is a number for
  // weight_i; the reduction is a sum.
  std::vector<RowLoss> heads;
  bool is_double = false;  // the arithmetic type of all heads (`Float`): double as soon as one tensor of any head is

  const void* weights = nullptr;        // [heads], Float, constant: replaces the numbers; null: absent
  double denominator = 0;               // > 0; 0: the rows of a head, at least 1
  const double* denominators = nullptr;  // one number on the device: replaces it; null: absent

  void* loss = nullptr;   // one number, Float
  void* parts = nullptr;  // [heads], Float: each head before its weight
  int* finished_blocks = nullptr;  // workspace of the GPU, one number

  int64_t rows() const { return heads[0].rows(); }
};

// A device cannot raise: a weight that is not >= 0 makes the loss NaN, and so does a denominator that is not > 0.
KD_HOST_DEVICE double valid_weight(double weight) { return weight >= 0 ? weight : static_cast<double>(__builtin_nan("")); }
KD_HOST_DEVICE double valid_denominator(double denominator) {
  return denominator > 0 ? denominator : static_cast<double>(__builtin_nan(""));
}

// A head of weight 0 adds 0, even where it is infinite or NaN.
KD_HOST_DEVICE double weighted_head(double weight, double head) { return weight == 0 ? 0.0 : weight * head; }

}  // namespace kd
