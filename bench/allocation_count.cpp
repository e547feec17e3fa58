// SPDX-License-Identifier: Apache-2.0
// Replaces operator new in a benchmark program, to count its calls.
#include <atomic>
#include <cstdlib>
#include <new>

namespace longview_bench {
namespace {

std::atomic<long> count{0};

void* allocate(std::size_t bytes, std::size_t alignment) {
  ++count;
  if (void* const memory = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

long allocations() { return count; }

}  // namespace longview_bench

void* operator new(std::size_t bytes) { return longview_bench::allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return longview_bench::allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
