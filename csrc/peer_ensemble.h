// The problem of learning online from an ensemble of peers, in plain numbers and pointers: no torch, no CUDA.
//
// A sample has P peers with logits z_1..z_P over C classes, and one row more where there is a leader (logits z_m of its own)
// or a gate (the ensemble, which has none). Row r is taught by a mixture of the peers with the weights W_r1..W_rP:
//
//     weights     attention   W_ab = softmax_b(Q_a . K_b), no 1/sqrt(d); the leader's W_mb = 1/P      (OKDDip; Chen et al. 2020)
//                 gate        W_rb = g_b for all rows                                                   (ONE; Lan et al. 2018)
//                 others      W_ab = 1/(P-1), 0 for b = a                                               (CL-ILR, DML)
//     mix         logits      t_r = softmax(x_r / T),  x_r = sum_b W_rb z_b
//                 probs       t_r = sum_b W_rb softmax(z_b / T)
//                 divergences every peer is a target of its own, and W_rb the weight of its divergence
//
// With q_r = softmax(z_r / T) and t' = t + eps (not renormalised) the loss is, each term a mean over the B samples and a sum
// over the rows that have it,
//
//     CE(z_r, y) + CE(x, y) for the ensemble of a gate  +  kl_weight T^2 KL(t'_r || q_r) for peers and leader
//
// Nothing is constant unless `detach_targets`: attention and gate learn through the targets. The gradients are those of the
// loss for an upstream gradient of 1. For a mixture of logits, with k = kl_weight, p = t_r, r = log t' - log q, S = sum t':
//
//     d z_r = k T/B (S q - t')             d x_r = k T/B p (r - sum p r)
//     d z_b += sum_r W_rb d x_r            d W_rb = sum_c d x_rc z_bc
//     d E_ab = A_ab (d A_ab - sum_f A_af d A_af),  d Q_a = sum_b d E_ab K_b,  d K_b = sum_a d E_ab Q_a
#pragma once
#include <cstdint>

#include "host_device.h"
#include "types.h"

namespace kd {

constexpr int64_t most_peers = 32;

enum class PeerWeights : int { attention, gate, others };

enum class PeerMix : int { logits, probs, divergences };

// A tensor [B, P, n] in any memory layout, or [B, n] (peer_stride 0). Strides are in elements.
struct PeerRows {
  void* data = nullptr;  // null: absent
  Dtype dtype = Dtype::float32;
  int64_t sample_stride = 0;
  int64_t peer_stride = 0;
  int64_t stride = 0;  // of classes or features
};

// The terms of a sample's loss, in the order of `parts`.
enum PeerPart : int { ce_peers, ce_leader, kl_peers, kl_leader, peer_parts };

struct PeerEnsemble {
  int64_t samples = 0;
  int64_t peers = 0;    // 1..most_peers
  int64_t classes = 0;  // >= 1
  int64_t width = 0;    // d; of queries and keys

  PeerRows peer_logits;  // [B, P, C]
  PeerRows leader;       // [B, C], logits
  PeerRows query, key;   // [B, P, d], weights attention
  PeerRows gate;         // [B, P, 1], weights gate

  PeerRows grad_peer_logits, grad_leader;  // kept_dtype of what they belong to
  PeerRows grad_query, grad_key, grad_gate;

  const int64_t* target = nullptr;  // [B], in [0, classes)
  PeerWeights weights = PeerWeights::attention;
  PeerMix mix = PeerMix::logits;  // gate: logits; divergences: others
  bool detach_targets = false;
  double temperature = 1;  // > 0
  double kl_weight = 1;
  double target_eps = 0;   // >= 0

  // Float is float, or double where any logits, features or gate are float64.
  void* loss = nullptr;          // Float, one number
  void* parts = nullptr;         // Float [peer_parts], before kl_weight, T^2 included
  double* sample_parts = nullptr;  // workspace [B, peer_parts]: of each sample, not yet divided by B

  KD_HOST_DEVICE bool is_double() const {
    return peer_logits.dtype == Dtype::float64 || leader.dtype == Dtype::float64 || query.dtype == Dtype::float64 ||
           key.dtype == Dtype::float64 || gate.dtype == Dtype::float64;
  }
  // Rows that are taught or tested: peers, then leader or ensemble.
  KD_HOST_DEVICE int64_t rows() const { return peers + (leader.data || gate.data ? 1 : 0); }
  // A single peer of `others` has no target and learns from its label alone.
  KD_HOST_DEVICE bool has_targets() const { return weights != PeerWeights::others || peers > 1; }
  // Whether row r is compared with a target; an ensemble has no logits of its own.
  KD_HOST_DEVICE bool is_taught(int64_t row) const { return has_targets() && (row < peers || leader.data); }
  KD_HOST_DEVICE bool wants_features() const { return grad_query.data || grad_key.data; }
  // The share of a sample in the loss.
  KD_HOST_DEVICE double sample_share() const { return samples > 0 ? 1 / static_cast<double>(samples) : 1.0; }
  // W_rb where it does not depend on the sample.
  KD_HOST_DEVICE double constant_weight(int64_t row, int64_t peer) const {
    if (weights != PeerWeights::others) return 1 / static_cast<double>(peers);
    return row == peer ? 0.0 : 1 / static_cast<double>(peers - 1);
  }
};

// The mixture itself, of logits or probabilities, for losses of one's own. Without queries and keys there is one row, the
// plain mean. `grad_mixture` and `grad_attention` are what comes from above.
struct PeerMixture {
  int64_t samples = 0;
  int64_t peers = 0;
  int64_t classes = 0;
  int64_t width = 0;

  PeerRows peer_logits;  // [B, P, C]
  bool attends = false;  // there are queries and keys, even of no samples
  PeerRows query, key;   // [B, P, d]
  PeerMix mix = PeerMix::logits;  // logits or probs
  double temperature = 1;         // of probs

  PeerRows mixture;       // [B, rows, C], dtype of peer_logits
  PeerRows grad_mixture;  // the same, any layout
  PeerRows grad_peer_logits, grad_query, grad_key;  // dtype of what they belong to

  // Float, contiguous.
  void* attention = nullptr;             // [B, P, P]; written by the first pass, read by the gradients
  const void* grad_attention = nullptr;  // [B, P, P]; null: none

  KD_HOST_DEVICE bool is_double() const {
    return peer_logits.dtype == Dtype::float64 || query.dtype == Dtype::float64 || key.dtype == Dtype::float64;
  }
  KD_HOST_DEVICE int64_t rows() const { return attends ? peers : 1; }
  KD_HOST_DEVICE bool wants_features() const { return grad_query.data || grad_key.data; }
};

}  // namespace kd
