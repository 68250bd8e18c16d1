// Huge pages for a large fresh result: one page fault per 2 MiB instead of 512, where faults can cost more than the
// arithmetic (a fault is expensive on virtual machines). A hint: systems without it ignore it.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace kd {

inline void prefer_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = 4096, huge_page = 2 << 20;
  if (bytes < 2 * huge_page) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace kd
