// Bytes between two guard zones, to catch writes beside them. AddressSanitizer reports any access to the zones at
// once; without it check() finds what was written there. poison() fills the bytes with 0xff: NaN in every float type,
// -1 in every integer, so that a value nobody wrote shows.
#pragma once
#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace kd::emulated {

class Guarded {
 public:
  // `offset` bytes, a multiple of 8, move the start off its natural alignment of 64 bytes or so.
  explicit Guarded(size_t bytes, size_t offset = 0)
      : bytes_(bytes), front_(zone + offset), whole_(new unsigned char[front_ + bytes + zone]) {
    std::fill_n(whole_.get(), front_, mark);
    std::fill_n(whole_.get() + front_ + bytes_, zone, mark);
    poison();
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(whole_.get(), front_);
    __asan_poison_memory_region(whole_.get() + front_ + bytes_, zone);
#endif
  }

  void* data() { return whole_.get() + front_; }
  size_t bytes() const { return bytes_; }
  void poison() { std::memset(data(), 0xff, bytes_); }

  // Throws if a guard zone was written to. `what` names the owner of the bytes.
  void check(const std::string& what) const {
#ifndef __SANITIZE_ADDRESS__
    const auto marked = [](unsigned char byte) { return byte == mark; };
    if (!std::all_of(whole_.get(), whole_.get() + front_, marked)) {
      throw std::runtime_error("emulated: a kernel wrote in front of " + what);
    }
    const unsigned char* back = whole_.get() + front_ + bytes_;
    if (!std::all_of(back, back + zone, marked)) {
      throw std::runtime_error("emulated: a kernel wrote behind " + what);
    }
#else
    (void)what;
#endif
  }

 private:
  static constexpr size_t zone = 256;
  static constexpr unsigned char mark = 0xa5;
  size_t bytes_;
  size_t front_;  // bytes of the zone in front
  std::unique_ptr<unsigned char[]> whole_;
};

// What kernels write to, by name.
class Outputs {
 public:
  void* allocate(const std::string& name, size_t bytes) {
    return outputs_.emplace_back(Output{name, Guarded(bytes)}).memory.data();
  }

  void check() const {
    for (const Output& output : outputs_) output.memory.check(output.name);
  }

 private:
  struct Output {
    std::string name;
    Guarded memory;
  };
  std::deque<Output> outputs_;
};

}  // namespace kd::emulated
