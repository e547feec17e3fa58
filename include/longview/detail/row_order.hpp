// SPDX-License-Identifier: Apache-2.0
/// \file
/// The order in which tasks add to the gradients of the same keys, kept whoever runs them.
#pragma once

#include <atomic>
#include <new>

#include "longview/detail/attention_task.hpp"
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
    // A tile takes less than to sleep and be woken.
    for (int turn = 0; turn < 1000; ++turn) {
      if (before->load(std::memory_order_acquire) >= end) return;
#if LONGVIEW_X86
      __builtin_ia32_pause();
#endif
    }
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

/// The tasks of a pattern in lines. Rows that add to the same gradients stand in one line: the heads of a key head, and all
/// items, heads or residue classes over which a gradient is summed. Residue classes share no keys, so they may have lines of
/// their own where all heads have the same.
///
/// Tasks of a line that run at the same time are at different keys and, since later queries are then at earlier keys, at
/// different distances.
template <typename Pattern>
class RowLines {
 public:
  struct Joined {
    bool items, heads, residues;
  };
  RowLines(const Pattern& pattern, Index key_heads, const Joined& joined, Index rows_per_task)
      : pattern_(pattern),
        rows_per_task_(rows_per_task),
        items_(joined.items ? pattern.items() : 1),
        key_heads_(joined.heads ? key_heads : 1),
        groups_(key_heads > 0 ? pattern.groups() / key_heads : 0) {
    bool same = true;
    for (Index group = 0; group < pattern.groups(); ++group) {
      const Index residues = pattern.residues(group), chunks = (pattern.most_rows(group) + rows_per_task - 1) / rows_per_task;
      same = same && residues == pattern.residues(0);
      if (residues > residues_) residues_ = residues;
      if (chunks > chunks_) chunks_ = chunks;
    }
    if (same && !joined.residues) line_residues_ = residues_, residues_ = residues_ > 0 ? 1 : 0;
    lines_ = pattern.items() / (items_ > 0 ? items_ : 1) * (key_heads / (key_heads_ > 0 ? key_heads_ : 1)) * line_residues_;
    line_key_heads_ = key_heads_ > 0 ? key_heads / key_heads_ : 0;
  }

  Index lines() const { return lines_; }
  Index length() const { return items_ * key_heads_ * groups_ * residues_ * chunks_; }

  struct Task {
    GridPlace place;
    RowSet rows;
    Index first;   // of the rows
    bool exists;
    bool begins;   // a stretch of rows whose keys may begin anywhere
  };
  Task task(const RowOrder::Place& at) const {
    Index line = at.line, position = at.position;
    const auto next = [](Index& from, Index count) {
      const Index digit = from % count;
      from /= count;
      return digit;
    };
    GridPlace place{};
    place.chunk = next(position, chunks_);
    place.residue = next(position, residues_) + next(line, line_residues_);
    const Index group = next(position, groups_);
    place.group = (next(position, key_heads_) + next(line, line_key_heads_)) * groups_ + group;
    place.item = position + line;
    Task task{place, {}, place.chunk * rows_per_task_, place.residue < pattern_.residues(place.group), place.chunk == 0};
    if (task.exists) task.rows = pattern_.rows(place);
    task.exists = task.exists && task.first < task.rows.heads * task.rows.count;
    return task;
  }

 private:
  const Pattern& pattern_;
  Index rows_per_task_, items_, key_heads_, groups_, residues_ = 0, chunks_ = 0;  // in a line
  Index line_residues_ = 1, line_key_heads_ = 1, lines_ = 0;                      // beside each other
};

}  // namespace longview
