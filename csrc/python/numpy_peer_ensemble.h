// NumPy arrays to the plain problems of peer_ensemble.h, read where they lie: any strides. uint16 holds bfloat16. Used by
// kdkernels._host and, for the emulated CUDA kernels, by the tests' kd_emulated.
#pragma once
#include "peer_ensemble.h"
#include "python/numpy_row_loss.h"

namespace kd::python {

using Allocate = std::function<void*(const std::string& name, size_t bytes)>;
using OptionalArray = std::optional<py::array>;

// A call's arguments, named as in csrc/peer_ensemble.h.
struct PeerOptions {
  py::array peer_logits;                      // [B, P, C]
  OptionalArray leader;                       // [B, C]
  OptionalArray query, key;                   // [B, P, d]
  OptionalArray gate;                         // [B, P]
  py::array_t<int64_t, py::array::c_style> target;  // [B]
  int weights, mix;
  bool detach_targets;
  double temperature, kl_weight, target_eps;
  bool grad_peers, grad_leader, grad_features, grad_gate;
};

struct MixtureOptions {
  py::array peer_logits;     // [B, P, C]
  OptionalArray query, key;  // [B, P, d]
  OptionalArray grad_mixture;    // [B, P, C], or [B, 1, C] without query; none: no gradients
  OptionalArray grad_attention;  // [B, P, P], of the arithmetic type
  int mix;
  double temperature;
  bool grad_peers, grad_features;
};

// [B, P, n], or [B, n] with one peer.
inline PeerRows peer_rows(const py::array& array, const std::string& name) {
  if (array.ndim() != 2 && array.ndim() != 3) throw std::invalid_argument(name + " must have 2 or 3 dimensions");
  const int64_t last = array.ndim() - 1, size = array.itemsize();
  return {const_cast<void*>(array.data()), dtype_of(array, name), array.strides(0) / size,
          last == 2 ? array.strides(1) / size : 0, array.strides(last) / size};
}

inline PeerRows peer_rows(const OptionalArray& array, const std::string& name) {
  return array ? peer_rows(*array, name) : PeerRows{};
}

// What a problem writes, by name: contiguous, copied out at the end.
class PeerOutputs {
 public:
  explicit PeerOutputs(Allocate allocate) : allocate_(std::move(allocate)) {}

  // Of the dtype and shape of `like`.
  PeerRows rows(const std::string& name, const py::array& like) { return rows(name, like.dtype(), shape_of(like)); }

  // The gradient of a loss by `like`.
  PeerRows kept_rows(const std::string& name, const py::array& like) { return rows(name, kept_dtype(like), shape_of(like)); }

  PeerRows rows(const std::string& name, const py::dtype& dtype, const std::vector<int64_t>& shape) {
    PeerRows rows{numbers(name, dtype, shape), dtype_of(py::array(dtype, 0)), shape.back(), 0, 1};
    if (shape.size() == 3) rows = {rows.data, rows.dtype, shape[1] * shape[2], shape[2], 1};
    return rows;
  }

  void* numbers(const std::string& name, const py::dtype& dtype, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    outputs_.push_back({name, dtype, shape, allocate_(name, count * dtype.itemsize())});
    return outputs_.back().data;
  }

  py::dict results() const {
    py::dict results;
    for (const Output& output : outputs_) results[py::str(output.name)] = py::array(output.dtype, output.shape, output.data);
    return results;
  }

 private:
  static std::vector<int64_t> shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

  struct Output {
    std::string name;
    py::dtype dtype;
    std::vector<int64_t> shape;
    void* data;
  };
  Allocate allocate_;
  std::vector<Output> outputs_;
};

inline py::dtype arithmetic_dtype(bool is_double) { return is_double ? py::dtype::of<double>() : py::dtype::of<float>(); }

// What both problems read.
template <class Problem>
void read_peers(Problem& problem, const py::array& peer_logits, const OptionalArray& query, const OptionalArray& key) {
  if (peer_logits.ndim() != 3 || peer_logits.shape(1) < 1 || peer_logits.shape(1) > most_peers || peer_logits.shape(2) < 1)
    throw std::invalid_argument("peer_logits must be [B, P, C] with 1 to 32 peers and at least 1 class");
  if (query.has_value() != key.has_value()) throw std::invalid_argument("query and key go together");
  for (const OptionalArray& features : {query, key})
    if (features && (features->ndim() != 3 || features->shape(0) != peer_logits.shape(0) ||
                     features->shape(1) != peer_logits.shape(1) || features->shape(2) != query->shape(2)))
      throw std::invalid_argument("query and key must be [B, P, d]");
  problem.samples = peer_logits.shape(0);
  problem.peers = peer_logits.shape(1);
  problem.classes = peer_logits.shape(2);
  problem.width = query ? query->shape(2) : 0;
  problem.peer_logits = peer_rows(peer_logits, "peer_logits");
  problem.query = peer_rows(query, "query");
  problem.key = peer_rows(key, "key");
}

// The loss, with what it points to. Memory for outputs comes from `allocate(name, bytes)`.
class NumpyPeers {
 public:
  PeerEnsemble problem;

  NumpyPeers(const PeerOptions& options, const Allocate& allocate) : outputs_(allocate) {
    const py::array& logits = options.peer_logits;
    read_peers(problem, logits, options.query, options.key);
    problem.leader = peer_rows(options.leader, "leader");
    if (options.gate) {
      problem.gate = peer_rows(*options.gate, "gate");
      problem.gate.peer_stride = problem.gate.stride;
    }
    if (options.target.size() != problem.samples) throw std::invalid_argument("target must be [B]");
    problem.target = options.target.data();
    problem.weights = static_cast<PeerWeights>(options.weights);
    problem.mix = static_cast<PeerMix>(options.mix);
    problem.detach_targets = options.detach_targets;
    problem.temperature = options.temperature;
    problem.kl_weight = options.kl_weight;
    problem.target_eps = options.target_eps;

    const py::dtype number = arithmetic_dtype(problem.is_double());
    problem.loss = outputs_.numbers("loss", number, {1});
    problem.parts = outputs_.numbers("parts", number, {peer_parts});
    problem.sample_parts = static_cast<double*>(allocate("sample_parts", problem.samples * peer_parts * sizeof(double)));
    if (options.grad_peers) problem.grad_peer_logits = outputs_.kept_rows("grad_peer_logits", logits);
    if (options.grad_leader && options.leader) problem.grad_leader = outputs_.kept_rows("grad_leader", *options.leader);
    if (options.grad_features && options.query) {
      problem.grad_query = outputs_.kept_rows("grad_query", *options.query);
      problem.grad_key = outputs_.kept_rows("grad_key", *options.key);
    }
    if (options.grad_gate && options.gate) {
      problem.grad_gate = outputs_.kept_rows("grad_gate", *options.gate);
      problem.grad_gate.peer_stride = problem.grad_gate.stride;
    }
  }

  // {loss, parts, grad_*}: what was asked for, copied.
  py::dict results() const { return outputs_.results(); }

 private:
  PeerOutputs outputs_;
};

// The mixture and, where grad_mixture is given, its gradients.
class NumpyMixture {
 public:
  PeerMixture problem;

  NumpyMixture(const MixtureOptions& options, const Allocate& allocate) : outputs_(allocate) {
    const py::array& logits = options.peer_logits;
    read_peers(problem, logits, options.query, options.key);
    problem.attends = options.query.has_value();
    problem.mix = static_cast<PeerMix>(options.mix);
    problem.temperature = options.temperature;
    problem.mixture = outputs_.rows("mixture", logits.dtype(), {problem.samples, problem.rows(), problem.classes});
    if (options.query)
      problem.attention = outputs_.numbers("attention", arithmetic_dtype(problem.is_double()),
                                           {problem.samples, problem.peers, problem.peers});
    if (!options.grad_mixture) return;
    problem.grad_mixture = peer_rows(*options.grad_mixture, "grad_mixture");
    if (options.grad_attention) problem.grad_attention = options.grad_attention->data();
    if (options.grad_peers) problem.grad_peer_logits = outputs_.rows("grad_peer_logits", logits);
    if (options.grad_features && options.query) {
      problem.grad_query = outputs_.rows("grad_query", *options.query);
      problem.grad_key = outputs_.rows("grad_key", *options.key);
    }
  }

  py::dict results() const { return outputs_.results(); }

 private:
  PeerOutputs outputs_;
};

// Defines m.peer_ensemble_loss(peer_logits, target, *, options, extra) to call solve(PeerOptions, extra), and
// m.peer_mixture(peer_logits, *, options, extra) likewise.
template <class... Extra, class... Names>
void def_peer_ensemble(py::module_& m, py::dict (*solve)(const PeerOptions&, Extra...),
                       py::dict (*mix)(const MixtureOptions&, Extra...), const char* doc, Names... extra) {
  using namespace py::literals;
  using Labels = py::array_t<int64_t, py::array::c_style>;
  m.def(
      "peer_ensemble_loss",
      [solve](const py::array& peer_logits, const Labels& target, const OptionalArray& leader, const OptionalArray& query,
              const OptionalArray& key, const OptionalArray& gate, int weights, int mix, bool detach_targets,
              double temperature, double kl_weight, double target_eps, bool grad_peers, bool grad_leader,
              bool grad_features, bool grad_gate, Extra... more) {
        return solve({peer_logits, leader, query, key, gate, target, weights, mix, detach_targets, temperature, kl_weight,
                      target_eps, grad_peers, grad_leader, grad_features, grad_gate},
                     more...);
      },
      "peer_logits"_a, "target"_a, py::kw_only(), "leader"_a = py::none(), "query"_a = py::none(), "key"_a = py::none(),
      "gate"_a = py::none(), "weights"_a, "mix"_a = 0, "detach_targets"_a = false, "temperature"_a = 1.0,
      "kl_weight"_a = 1.0, "target_eps"_a = 0.0, "grad_peers"_a = true, "grad_leader"_a = true, "grad_features"_a = true,
      "grad_gate"_a = true, extra..., doc);
  m.def(
      "peer_mixture",
      [mix](const py::array& peer_logits, const OptionalArray& query, const OptionalArray& key,
            const OptionalArray& grad_mixture, const OptionalArray& grad_attention, int how, double temperature,
            bool grad_peers, bool grad_features, Extra... more) {
        return mix({peer_logits, query, key, grad_mixture, grad_attention, how, temperature, grad_peers, grad_features},
                   more...);
      },
      "peer_logits"_a, py::kw_only(), "query"_a = py::none(), "key"_a = py::none(), "grad_mixture"_a = py::none(),
      "grad_attention"_a = py::none(), "mix"_a = 0, "temperature"_a = 1.0, "grad_peers"_a = true, "grad_features"_a = true,
      extra..., doc);
}

}  // namespace kd::python
