// How CPU kernels share their work: a function of the caller's, so that they need no thread library of their own.
#pragma once
#include <cstdint>
#include <functional>

namespace kd {

// Calls body(begin, end) on ranges that cover [0, count), `grain` at least where possible, on as many threads as it likes.
using ParallelFor =
    std::function<void(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body)>;

inline void one_thread(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

// Below this many numbers a thread is not worth waking.
constexpr int64_t grain_elements = 16384;

// What scratch memory is made of: vectors lie within lines, and no line belongs to two threads.
struct CacheLine {
  alignas(64) unsigned char bytes[64];
};

}  // namespace kd
