#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

namespace kd {
namespace {

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(available_isas().back())};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "base";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::base};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      isas.push_back(Isa::avx512);
  }
#endif
  return isas;
}

Isa isa_in_use() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

void set_isa(const std::string& name) {
  std::string accepted;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) {
      chosen().store(static_cast<int>(isa));
      return;
    }
    accepted += (accepted.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument("instruction set must be one of " + accepted + " on this machine, got " + name);
}

}  // namespace kd
