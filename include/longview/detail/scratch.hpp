// SPDX-License-Identifier: Apache-2.0
/// \file
/// Memory for one call, and the dealing out of its tasks to workers.
#pragma once

#include <atomic>
#include <cstddef>
#include <new>

#include "longview/detail/contract_check.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

inline constexpr Index scratch_alignment = 64;

/// Sums of products of sizes, overflow remembered.
class ByteCount {
 public:
  LONGVIEW_INLINE ByteCount& add(Index count, Index size) {
    Index bytes = 0;
    fits_ = fits_ && multiply(count, size, bytes) && detail::add(bytes_, bytes, bytes_) &&
            detail::add(bytes_, scratch_alignment, bytes);
    if (fits_) bytes_ = (bytes_ + scratch_alignment - 1) / scratch_alignment * scratch_alignment;
    return *this;
  }
  LONGVIEW_INLINE Index bytes() const { return bytes_; }
  LONGVIEW_INLINE bool fits() const { return fits_; }

 private:
  Index bytes_ = 0;
  bool fits_ = true;
};

LONGVIEW_INLINE const ByteCount& larger(const ByteCount& a, const ByteCount& b) {
  return !a.fits() || (b.fits() && b.bytes() < a.bytes()) ? a : b;
}

/// Cuts aligned arrays from a piece of scratch, in the order in which ByteCount added them.
class Carver {
 public:
  LONGVIEW_INLINE explicit Carver(std::byte* from) : next_(from) {}
  template <typename T>
  LONGVIEW_INLINE T* take(Index count) {
    T* const at = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<Index>(sizeof(T)) + scratch_alignment - 1) / scratch_alignment * scratch_alignment;
    return at;
  }

 private:
  std::byte* next_;
};

/// `shared` bytes and `each` bytes for every worker, from the workspace of the run or the heap.
///
/// False in a rehearsal, which is told the size.
class Scratch {
 public:
  Scratch(Contract& contract, const ByteCount& shared, const ByteCount& each, Index workers) : each_(each.bytes()) {
    const Run& run = contract.run();
    ByteCount total = shared;
    total.add(each.bytes(), workers);
    Index bytes = total.bytes();
    if (!shared.fits() || !each.fits() || !total.fits() || !add(bytes, scratch_alignment - 1, bytes)) {
      contract.fail("run", "workspace byte count overflows", true);
      contract.report();
      return;
    }
    if (total.bytes() == 0) bytes = 0;
    if (DryRun* const rehearsal = run.rehearsal()) {
      rehearsal->report(static_cast<std::size_t>(bytes));
      return;
    }
    std::byte* from = nullptr;
    if (run.has_workspace()) {
      if (run.workspace().size() < static_cast<std::size_t>(bytes)) {
        contract.fail("run", "workspace too small (got " + std::to_string(run.workspace().size()) + " bytes, expected " +
                                 std::to_string(bytes) + ")");
        contract.report();
        return;
      }
      from = run.workspace().data();
    } else {
      from = owned_ = static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes)));
    }
    const auto address = reinterpret_cast<std::uintptr_t>(from);
    const auto alignment = static_cast<std::uintptr_t>(scratch_alignment);
    if (bytes > 0) shared_ = from + (alignment - address % alignment) % alignment;
    workers_ = shared_ + shared.bytes();
    ready_ = true;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(owned_); }

  explicit operator bool() const { return ready_; }
  std::byte* shared() const { return shared_; }
  std::byte* of(Index worker) const { return workers_ + worker * each_; }

 private:
  Index each_;
  bool ready_ = false;
  std::byte *shared_ = nullptr, *workers_ = nullptr, *owned_ = nullptr;
};

/// Runs body(task, worker) for all tasks, on at most `workers` workers.
template <typename Body>
void run_tasks(const Run& run, Index workers, Index tasks, const Body& body) {
  if (tasks == 0) return;
  struct Shared {
    const Body& body;
    Index tasks;
    mutable std::atomic<Index> next{0};
  } const shared{body, tasks};
  run.execute(workers, TaskBody(&shared, [](const void* self, Index worker) {
                const Shared& own = *static_cast<const Shared*>(self);
                for (Index task; (task = own.next.fetch_add(1, std::memory_order_relaxed)) < own.tasks;)
                  own.body(task, worker);
              }));
}

}  // namespace longview
