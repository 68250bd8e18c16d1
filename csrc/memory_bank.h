// The problem of noise-contrastive estimation against a memory bank, in plain numbers and pointers: no torch, no CUDA.
//
// Row b has an embedding e_b and K + 1 entries of a bank of n: column 0 is its positive, the others are noise, drawn with
// probability 1/n each. Scores and loss (Tian, Krishnan, Isola 2020; Gutmann, Hyvarinen 2010), with c = K/n + eps:
//
//     P_bk = exp(<bank[index_bk], e_b> / T) / Z
//     l_b  = -log(P_b0 / (P_b0 + c)) - sum_k log((K/n) / (P_bk + c))
//
// In the logit u_bk = log(P_bk / c) that is logistic regression, and so it is computed: no exponential that could overflow,
// and no logarithm of a ratio near 1, which would lose what 16,384 terms of size 1e-4 add up to.
//
//     l_b  = softplus(-u_b0) + sum_k softplus(u_bk) + K log1p(eps n / K)
//     d l_b / d e_b = (1/T) ((sigmoid(u_b0) - 1) bank[index_b0] + sum_k sigmoid(u_bk) bank[index_bk])
//
// Bank and Z are constants. Z = n mean(exp(<bank[index_bk], e_b> / T)) over all scores of the first call ever made. The
// gradient is that of the reduced loss for an upstream gradient of 1.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "similarity.h"
#include "types.h"

namespace kd {

struct MemoryBank {
  Features embedding;       // [B, d], used as it is
  Features bank;            // [n, d], n >= 1
  Features grad_embedding;  // shape of embedding, kept_dtype of its own; absent where not requested
  const int64_t* index = nullptr;  // [B, columns], contiguous, in [0, n)
  int64_t columns = 0;             // K + 1 >= 2

  Reduction reduction = Reduction::batchmean;
  double temperature = 1;  // > 0
  double eps = 0;          // >= 0

  // `Float` is float, or double where embedding or bank are float64.
  const void* known_normalizer = nullptr;  // Float, one number; null or NaN: the normalizer is to be computed
  void* normalizer = nullptr;              // Float, one number: Z
  void* loss = nullptr;                    // Float: one number, or [B] for Reduction::none
  void* positive = nullptr;                // Float [B]: P_b0
  void* workspace = nullptr;

  KD_HOST_DEVICE bool is_double() const { return embedding.dtype == Dtype::float64 || bank.dtype == Dtype::float64; }
  KD_HOST_DEVICE int64_t rows() const { return embedding.rows; }
  KD_HOST_DEVICE int64_t width() const { return embedding.width; }
  KD_HOST_DEVICE int64_t negatives() const { return columns - 1; }
  KD_HOST_DEVICE bool has_entry(int64_t id) const { return id >= 0 && id < bank.rows; }

  // log c.
  double log_noise() const {
    return std::log(static_cast<double>(negatives()) / static_cast<double>(bank.rows) + eps);
  }
  // What eps alone adds to the loss of each row.
  double eps_loss() const {
    const double noise = static_cast<double>(negatives());
    return noise * std::log1p(eps * static_cast<double>(bank.rows) / noise);
  }
  // The share of a row in the reduced loss.
  double row_share() const {
    return reduction == Reduction::batchmean && rows() > 0 ? 1 / static_cast<double>(rows()) : 1.0;
  }
  // Z from the sum of all exp(score / T).
  double normalizer_from(double sum) const {
    return static_cast<double>(bank.rows) * (sum / static_cast<double>(rows() * columns));
  }
};

}  // namespace kd
