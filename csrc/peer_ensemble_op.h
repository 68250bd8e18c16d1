// The ops of the family, from tensors to the plain problems of peer_ensemble.h: checks of what would corrupt memory,
// allocation, layouts. The same for every device; what runs a problem is the template argument:
//
//     Device::peer_ensemble(problem, like)
//     Device::peer_mixture(problem, like), Device::peer_mixture_backward(problem, like)     `like`: a tensor on the device
//     Device::scale_gradients(list, upstream, upstream_dtype, like)
#pragma once
#include <string>
#include <tuple>

#include "gradient_list.h"
#include "kept_gradient.h"
#include "peer_ensemble.h"
#include "stable.h"

namespace kd {

// [B, P, n], or [B, n].
inline PeerRows peer_rows(const Tensor& tensor) {
  require(float_dtype(tensor).has_value() && (tensor.dim() == 2 || tensor.dim() == 3), "peers need float [B, P, n]");
  const int64_t last = tensor.dim() - 1;
  return {tensor.data_ptr(), *float_dtype(tensor), tensor.stride(0), last == 2 ? tensor.stride(1) : 0, tensor.stride(last)};
}

// A contiguous result of the shape of `like`, or nothing, which is an empty tensor.
inline Tensor peer_gradient(const Tensor& like, ScalarType dtype, bool wanted, PeerRows* rows) {
  if (!wanted) return allocate(like, dtype, {0});
  const Tensor gradient = allocate(like, dtype, std::vector<int64_t>(like.sizes().begin(), like.sizes().end()));
  *rows = peer_rows(gradient);
  return gradient;
}

// That of a loss.
//
// Peers have a divisor, B, that the host knows: the gradient of the sum over the samples would keep float16's digits at a
// loss scale of B. At 65536 it would not: probabilities of 32,000 classes are below its normal numbers. float32 costs two
// bytes more per logit until the backward pass and is right for every scale.
inline Tensor loss_gradient(const Tensor& like, bool wanted, PeerRows* rows) {
  return peer_gradient(like, scalar_type(kept_dtype(*float_dtype(like))), wanted, rows);
}

template <class Problem>
void set_peers(Problem& problem, const Tensor& peer_logits) {  // [B, P, C]
  require(peer_logits.dim() == 3 && peer_logits.size(1) >= 1 && peer_logits.size(1) <= most_peers &&
              peer_logits.size(2) >= 1,
          "peer logits must be [B, P, C] with 1 to 32 peers and at least 1 class");
  problem.peer_logits = peer_rows(peer_logits);
  problem.samples = peer_logits.size(0);
  problem.peers = peer_logits.size(1);
  problem.classes = peer_logits.size(2);
}

template <class Problem>
void set_features(Problem& problem, const Tensor& query, const Tensor& key) {  // [B, P, d] both
  for (const Tensor* features : {&query, &key})
    require(features->dim() == 3 && features->size(0) == problem.samples && features->size(1) == problem.peers &&
                features->size(2) == query.size(2),
            "query and key must be [B, P, d]");
  require(float_dtype(query) && float_dtype(key), "query and key must be float");
  problem.query = peer_rows(query);
  problem.key = peer_rows(key);
  problem.width = query.size(2);
}

template <class Problem>
ScalarType arithmetic_type(const Problem& problem) {
  return problem.is_double() ? ScalarType::Double : ScalarType::Float;
}

// One loss: the problem, with what has to stay alive until it is solved.
class PeerLoss {
 public:
  PeerEnsemble problem;

  PeerLoss(const Tensor& peer_logits, const Tensor& target, double temperature, double kl_weight, double target_eps)
      : peer_logits_(peer_logits), target_(target.is_contiguous() ? target : torch::stable::contiguous(target)) {
    set_peers(problem, peer_logits);
    require(target.dim() == 1 && target.size(0) == problem.samples && target.scalar_type() == ScalarType::Long,
            "target must be int64 [B]");
    problem.target = static_cast<const int64_t*>(target_.data_ptr());
    problem.temperature = temperature;
    problem.kl_weight = kl_weight;
    problem.target_eps = target_eps;
  }

  // [B, C]
  void leader(const std::optional<Tensor>& logits) {
    if (!logits) return;
    require(logits->dim() == 2 && logits->size(0) == problem.samples && logits->size(1) == problem.classes,
            "leader logits must be [B, C]");
    problem.leader = peer_rows(*logits);
  }

  // [B, P]
  void gate(const Tensor& gate) {
    require(gate.dim() == 2 && gate.size(0) == problem.samples && gate.size(1) == problem.peers, "gate must be [B, P]");
    problem.gate = of_peers(peer_rows(gate));
  }

  // A matrix [B, P] is read as [B, P, 1].
  static PeerRows of_peers(PeerRows rows) {
    rows.peer_stride = rows.stride;
    return rows;
  }

  // The loss and its parts; gradients go where the problem says.
  template <class Device>
  std::tuple<Tensor, Tensor> solve() {
    const ScalarType dtype = arithmetic_type(problem);
    const Tensor loss = allocate(peer_logits_, dtype, {}), parts = allocate(peer_logits_, dtype, {peer_parts});
    const Tensor workspace = allocate(peer_logits_, ScalarType::Double, {problem.samples * peer_parts});
    problem.loss = loss.data_ptr();
    problem.parts = parts.data_ptr();
    problem.sample_parts = static_cast<double*>(workspace.data_ptr());
    Device::peer_ensemble(problem, peer_logits_);
    return {loss, parts};
  }

 private:
  Tensor peer_logits_, target_;
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> okddip_loss_op(
    const Tensor& peer_logits,                   // [B, P, C]
    const std::optional<Tensor>& leader_logits,  // [B, C]
    const Tensor& query, const Tensor& key,      // [B, P, d]
    const Tensor& target,                        // [B], int64
    double temperature, double kl_weight, double target_eps, int64_t mix, bool detach_targets, bool grad_peers,
    bool grad_leader, bool grad_query, bool grad_key) {
  PeerLoss call(peer_logits, target, temperature, kl_weight, target_eps);
  PeerEnsemble& problem = call.problem;
  call.leader(leader_logits);
  set_features(problem, query, key);
  problem.weights = PeerWeights::attention;
  problem.mix = static_cast<PeerMix>(mix);
  problem.detach_targets = detach_targets;
  const Tensor for_peers = loss_gradient(peer_logits, grad_peers, &problem.grad_peer_logits);
  const Tensor for_leader =
      loss_gradient(leader_logits ? *leader_logits : peer_logits, grad_leader && leader_logits, &problem.grad_leader);
  const Tensor for_query = loss_gradient(query, grad_query, &problem.grad_query);
  const Tensor for_key = loss_gradient(key, grad_key, &problem.grad_key);
  const auto [loss, parts] = call.template solve<Device>();
  return {loss, parts, for_peers, for_leader, for_query, for_key};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> gated_ensemble_loss_op(const Tensor& gate,           // [B, P]
                                                                  const Tensor& branch_logits,  // [B, P, C]
                                                                  const Tensor& target,         // [B], int64
                                                                  double temperature, double kl_weight,
                                                                  double target_eps, bool grad_gate,
                                                                  bool grad_branches) {
  PeerLoss call(branch_logits, target, temperature, kl_weight, target_eps);
  PeerEnsemble& problem = call.problem;
  call.gate(gate);
  problem.weights = PeerWeights::gate;
  const Tensor for_gate = loss_gradient(gate, grad_gate, &problem.grad_gate);
  problem.grad_gate = PeerLoss::of_peers(problem.grad_gate);
  const Tensor for_branches = loss_gradient(branch_logits, grad_branches, &problem.grad_peer_logits);
  const auto [loss, parts] = call.template solve<Device>();
  return {loss, parts, for_gate, for_branches};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> leave_one_out_loss_op(const Tensor& peer_logits,  // [B, P, C]
                                                         const Tensor& target,       // [B], int64
                                                         double temperature, double kl_weight, double target_eps,
                                                         bool pairwise, bool grad_peers) {
  PeerLoss call(peer_logits, target, temperature, kl_weight, target_eps);
  call.problem.weights = PeerWeights::others;
  call.problem.mix = pairwise ? PeerMix::divergences : PeerMix::logits;
  const Tensor for_peers = loss_gradient(peer_logits, grad_peers, &call.problem.grad_peer_logits);
  const auto [loss, parts] = call.template solve<Device>();
  return {loss, parts, for_peers};
}

// The problem of either direction; queries and keys come together or not at all.
inline PeerMixture peer_mixture(const Tensor& peer_logits, const std::optional<Tensor>& query,
                                const std::optional<Tensor>& key, double temperature, int64_t mix) {
  PeerMixture problem;
  set_peers(problem, peer_logits);
  require(query.has_value() == key.has_value(), "query and key go together");
  problem.attends = query.has_value();
  if (query) set_features(problem, *query, *key);
  problem.temperature = temperature;
  problem.mix = static_cast<PeerMix>(mix);
  require(problem.mix != PeerMix::divergences, "mix must be that of logits or of probabilities");
  return problem;
}

template <class Device>
std::tuple<Tensor, Tensor> peer_mixture_op(const Tensor& peer_logits,           // [B, P, C]
                                           const std::optional<Tensor>& query,  // [B, P, d]
                                           const std::optional<Tensor>& key,    // [B, P, d]
                                           double temperature, int64_t mix) {
  PeerMixture problem = peer_mixture(peer_logits, query, key, temperature, mix);
  const Tensor mixture =
      allocate(peer_logits, peer_logits.scalar_type(), {problem.samples, problem.rows(), problem.classes});
  const std::vector<int64_t> pairs =
      query ? std::vector<int64_t>{problem.samples, problem.peers, problem.peers} : std::vector<int64_t>{0};
  const Tensor attention = allocate(peer_logits, arithmetic_type(problem), pairs);
  problem.mixture = peer_rows(mixture);
  problem.attention = attention.data_ptr();
  Device::peer_mixture(problem, peer_logits);
  return {mixture, attention};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> peer_mixture_backward_op(
    const Tensor& grad_mixture,                   // [B, P, C], or [B, 1, C] without query
    const std::optional<Tensor>& grad_attention,  // [B, P, P], arithmetic type
    const Tensor& peer_logits,                    // [B, P, C]
    const std::optional<Tensor>& query,           // [B, P, d]
    const std::optional<Tensor>& key,             // [B, P, d]
    const Tensor& attention,                      // [B, P, P], arithmetic type; empty without query
    double temperature, int64_t mix, bool grad_peers, bool grad_query, bool grad_key) {
  PeerMixture problem = peer_mixture(peer_logits, query, key, temperature, mix);
  const ScalarType dtype = arithmetic_type(problem);
  require(grad_mixture.scalar_type() == peer_logits.scalar_type() && grad_mixture.dim() == 3 &&
              grad_mixture.size(0) == problem.samples && grad_mixture.size(1) == problem.rows() &&
              grad_mixture.size(2) == problem.classes,
          "grad_mixture must have the shape and dtype of the mixture");
  const auto fits = [&](const Tensor& pairs) {
    return pairs.scalar_type() == dtype && pairs.numel() == problem.samples * problem.peers * problem.peers;
  };
  require(!query || fits(attention), "attention must be [B, P, P] of the arithmetic type");
  require(!grad_attention || fits(*grad_attention), "grad_attention must be [B, P, P] of the arithmetic type");
  problem.grad_mixture = peer_rows(grad_mixture);
  const Tensor weights = torch::stable::contiguous(attention);
  const Tensor from_above = torch::stable::contiguous(grad_attention ? *grad_attention : attention);
  problem.attention = weights.data_ptr();
  problem.grad_attention = grad_attention ? from_above.data_ptr() : nullptr;
  const auto gradient = [&](const std::optional<Tensor>& of, bool wanted, PeerRows* rows) {
    const Tensor& like = of ? *of : peer_logits;
    return peer_gradient(like, like.scalar_type(), wanted && of, rows);
  };
  const Tensor for_peers = gradient(peer_logits, grad_peers, &problem.grad_peer_logits);
  const Tensor for_query = gradient(query, grad_query, &problem.grad_query);
  const Tensor for_key = gradient(key, grad_key, &problem.grad_key);
  Device::peer_mixture_backward(problem, peer_logits);
  return {for_peers, for_query, for_key};
}

template <class Device>
void scale_gradients_op(const std::vector<Tensor>& gradients,  // dense, changed in place
                        const Tensor& upstream) {              // one number, float32 or float64
  const auto dtype = float_dtype(upstream);
  require(upstream.numel() == 1 && (dtype == Dtype::float32 || dtype == Dtype::float64),
          "upstream must be one float32 or float64");
  require(!gradients.empty() && gradients.size() <= most_gradients, "1 to 4 gradients can be scaled");
  GradientList list;
  for (size_t i = 0; i < gradients.size(); ++i) {
    require(float_dtype(gradients[i]) && gradients[i].is_contiguous(), "gradients must be float and contiguous");
    list.data[i] = gradients[i].data_ptr();
    list.dtype[i] = *float_dtype(gradients[i]);
    list.count[i] = gradients[i].numel();
  }
  Device::scale_gradients(list, upstream.data_ptr(), *dtype, gradients[0]);
}

}  // namespace kd
