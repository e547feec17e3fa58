// SPDX-License-Identifier: Apache-2.0
/// \file
/// The order in which tasks add to the gradients of the same keys, kept whoever runs them.
#pragma once

#include <atomic>
#include <new>

#include "longview/kernel/backward_plan.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// Tasks in lines: those of a line share keys, and each follows the one before it at a distance, tile by tile. So every sum
/// has the order of the line, and the tasks of a line still run at the same time.
///
/// Nobody waits for a task that has not begun: tasks are dealt out in the order of their numbers, and the one before has a
/// smaller number. So it needs no more threads than the executor has, and one is enough.
class RowOrder {
 public:
  /// The numbers of a line's tasks are dealt out among up to `workers` lines at a time.
  RowOrder(Index lines, Index length, Index workers) : lines_(lines), length_(length), abreast_(workers < lines ? workers : lines) {}

  struct Place {
    Index line, position;
  };
  Index tasks() const { return lines_ * length_; }
  Place place(Index task) const {
    const Index batch = task / (abreast_ * length_), first = batch * abreast_, in_batch = task - first * length_;
    const Index here = lines_ - first < abreast_ ? lines_ - first : abreast_;
    return {first + in_batch % here, in_batch / here};
  }

  /// Memory for the tasks' progress.
  Index elements() const { return tasks(); }
  using Progress = std::atomic<Index>;
  void begin(Progress* progress) {
    progress_ = progress;
    for (Index task = 0; task < tasks(); ++task) new (progress + task) Progress(0);
  }

  /// What a task waits for, and what waits for it.
  struct Neighbours {
    Progress *before, *own;
  };
  Neighbours neighbours(const Place& at) const {
    Progress* const own = progress_ + at.line * length_ + at.position;
    return {at.position > 0 ? own - 1 : nullptr, own};
  }
  static kernel::TileGate gate(Neighbours& of) { return {&of, &enter, &leave}; }

  static void enter(void* context, Index end) {
    const auto* const before = static_cast<Neighbours*>(context)->before;
    if (before == nullptr) return;
    for (Index seen; (seen = before->load(std::memory_order_acquire)) < end;) before->wait(seen, std::memory_order_acquire);
  }
  static void leave(void* context, Index end) {
    auto* const own = static_cast<Neighbours*>(context)->own;
    own->store(end, std::memory_order_release);
    own->notify_all();
  }

 private:
  Index lines_, length_, abreast_;
  Progress* progress_ = nullptr;
};

}  // namespace longview
