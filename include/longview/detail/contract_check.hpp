// SPDX-License-Identifier: Apache-2.0
/// \file
/// The checks at the door of every operator. All of them run before anything is written or allocated.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "longview/workspace.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// A view with its type and rank erased.
struct ViewRecord {
  const char* name;
  std::uintptr_t data;
  Index size;  // bytes of an element
  int rank;
  bool written;
  Index extent[4], stride[4];
};

/// a * b, a + b for sizes >= 0; false on overflow.
LONGVIEW_INLINE bool multiply(Index a, Index b, Index& product) {
  if (a != 0 && b > (std::numeric_limits<Index>::max)() / a) return false;
  product = a * b;
  return true;
}
LONGVIEW_INLINE bool add(Index a, Index b, Index& sum) {
  if (b > (std::numeric_limits<Index>::max)() - a) return false;
  sum = a + b;
  return true;
}

LONGVIEW_COLD inline std::string text_of(std::span<const Index> shape) {
  std::string text;
  for (const Index extent : shape) {
    if (!text.empty()) text += 'x';
    text += std::to_string(extent);
  }
  return text;
}

/// The axes of a view, longest stride first, without those of extent 1, strides made positive by starting at the other end.
struct NormalView {
  std::uintptr_t data = 0;
  int rank = 0;
  Index extent[4], stride[4];
};
inline NormalView normalise(const ViewRecord& view) {
  NormalView normal;
  normal.data = view.data;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.extent[axis] == 1) continue;
    Index stride = view.stride[axis];
    if (stride < 0) stride = -stride, normal.data -= static_cast<std::uintptr_t>((view.extent[axis] - 1) * stride * view.size);
    int at = normal.rank++;
    for (; at > 0 && normal.stride[at - 1] < stride; --at) {
      normal.stride[at] = normal.stride[at - 1];
      normal.extent[at] = normal.extent[at - 1];
    }
    normal.stride[at] = stride, normal.extent[at] = view.extent[axis];
  }
  return normal;
}
/// Whether each stride is at least the span of the shorter ones, so that all elements are distinct.
inline bool is_nested(const NormalView& view) {
  Index span = 1;
  for (int axis = view.rank; axis-- > 0;) {
    if (view.stride[axis] < span) return false;
    span += (view.extent[axis] - 1) * view.stride[axis];
  }
  return true;
}
inline Index span_of(const NormalView& view) {
  Index span = 1;
  for (int axis = 0; axis < view.rank; ++axis) span += (view.extent[axis] - 1) * view.stride[axis];
  return span;
}
/// Whether two nested views of equal strides share an element `distance` elements apart, from an axis on.
inline bool meet(const NormalView& a, const NormalView& b, int axis, Index distance) {
  if (axis == a.rank) return distance == 0;
  const Index stride = a.stride[axis];
  Index steps = distance / stride;
  if (steps * stride > distance) --steps;
  for (const Index step : {steps, steps + 1})
    if (step > -b.extent[axis] && step < a.extent[axis] && meet(a, b, axis + 1, distance - step * stride)) return true;
  return false;
}
inline bool may_overlap(const ViewRecord& first, const ViewRecord& second) {
  NormalView a = normalise(first), b = normalise(second);
  const std::uintptr_t a_bytes = static_cast<std::uintptr_t>(span_of(a) * first.size);
  const std::uintptr_t b_bytes = static_cast<std::uintptr_t>(span_of(b) * second.size);
  if (a.data <= b.data ? b.data - a.data >= a_bytes : a.data - b.data >= b_bytes) return false;
  const Index distance = static_cast<Index>(b.data - a.data);
  if (first.size != second.size || distance % first.size != 0) return true;
  // Packed buffers: axes of extent 1 in one view take the stride of the other.
  NormalView* const views[] = {&a, &b};
  for (int turn = 0; turn < 2; ++turn)
    for (int axis = 0; axis < views[turn]->rank; ++axis) {
      NormalView& other = *views[1 - turn];
      const Index stride = views[turn]->stride[axis];
      bool found = false;
      for (int k = 0; k < other.rank; ++k) found = found || other.stride[k] == stride;
      if (found) continue;
      if (other.rank == 4) return true;
      int at = other.rank++;
      for (; at > 0 && other.stride[at - 1] < stride; --at)
        other.stride[at] = other.stride[at - 1], other.extent[at] = other.extent[at - 1];
      other.stride[at] = stride, other.extent[at] = 1;
    }
  if (a.rank != b.rank) return true;
  for (int axis = 0; axis < a.rank; ++axis)
    if (a.stride[axis] != b.stride[axis]) return true;
  if (!is_nested(a) || !is_nested(b)) return true;
  return meet(a, b, 0, distance / first.size);
}

/// Collects what is wrong with a call; the first finding counts.
class Contract {
 public:
  Contract(const char* operation, const Run& run) : operation_(operation), run_(run) {
    if (run.concurrency() < 1) fail("run", "concurrency must be >= 1 (got " + std::to_string(run.concurrency()) + ")");
  }

  bool ok() const { return error_.empty(); }
  const Run& run() const { return run_; }

  LONGVIEW_COLD void fail(const std::string& argument, const std::string& reason, bool size_error = false) {
    if (!ok()) return;
    error_ = std::string(operation_) + ": " + argument + ": " + reason;
    is_size_error_ = size_error;
  }
  void require(bool holds, const char* argument, const char* reason) {
    if (!holds) fail(argument, reason);
  }
  // Names are made strings of, and texts written, only where something is wrong: a valid call allocates nothing, and what
  // raises is compiled once.

  /// `argument: what (got .., expected .. from source)`
  void equal(const char* argument, const char* what, Index got, Index expected, const char* source) {
    if (got != expected) fail_unequal(argument, what, got, expected, source);
  }
  template <typename Name>
  void at_least(Name argument, const char* what, Index got, Index least) {
    if (got < least) fail_small(argument, what, got, least);
  }
  template <typename Name, typename Number>
  void size(Name argument, std::span<Number> span, Index expected, const char* source) {
    if (const auto got = static_cast<Index>(span.size()); got != expected) fail_unequal(argument, "size", got, expected, source);
  }
  /// Every extent is the expected one or 1.
  template <typename Name, typename T, std::size_t Rank>
  void broadcasts(Name argument, const TensorView<T, Rank>& view, const Shape<Rank>& expected) {
    for (std::size_t axis = 0; axis < Rank; ++axis)
      if (view.extent(axis) != expected[axis] && view.extent(axis) != 1) fail_shape(argument, view.shape(), expected);
  }
  template <typename Name, typename T, std::size_t Rank>
  void shape(Name argument, const TensorView<T, Rank>& view, const Shape<Rank>& expected) {
    for (std::size_t axis = 0; axis < Rank; ++axis)
      if (view.extent(axis) != expected[axis]) return fail_shape(argument, view.shape(), expected);
  }

  template <typename T, std::size_t Rank>
  void input(const char* name, const TensorView<T, Rank>& view) {
    record(name, view, false);
  }
  template <typename T, std::size_t Rank>
  void output(const char* name, const TensorView<T, Rank>& view) {
    record(name, view, true);
  }
  /// What one call leaves to another, where it is wanted, of this shape.
  template <typename T, std::size_t Rank>
  void handed_over(const char* name, const TensorView<T, Rank>& view, const Shape<Rank>& expected, bool written) {
    if (!view) return;
    written ? output(name, view) : input(name, view);
    shape(name, view, expected);
  }
  /// A gradient, where it is wanted, of something of this shape.
  template <typename T, std::size_t Rank>
  void gradient(const char* name, const TensorView<T, Rank>& view, const Shape<Rank>& expected) {
    handed_over(name, view, expected, true);
  }
  /// Likewise of something by head: an extent of 1 on the first axis sums over the heads.
  template <typename T, std::size_t Rank>
  void head_gradient(const char* name, const TensorView<T, Rank>& view, Shape<Rank> expected) {
    if (view.extent(0) == 1) expected[0] = 1;
    gradient(name, view, expected);
  }

  /// True: go on. False: this is a rehearsal, and it has the error. Otherwise raises.
  bool accepted() {
    for (std::size_t at = 0; ok() && at < count_; ++at)
      for (std::size_t other = 0; ok() && other < count_; ++other) {
        const ViewRecord &view = views_[at], &second = views_[other];
        if (!view.written || at == other || (second.written && other > at) || view.data == 0 || second.data == 0) continue;
        if (may_overlap(view, second)) fail(view.name, std::string("overlaps ") + second.name);
      }
    if (ok()) return true;
    report();
    return false;
  }

  /// Hands the error to the rehearsal or raises it.
  void report() {
    if (DryRun* const rehearsal = run_.rehearsal()) {
      rehearsal->report_error(error_.c_str());
    } else if (is_size_error_) {
      raise<SizeError>(error_.c_str());
    } else {
      raise<ContractError>(error_.c_str());
    }
  }

 private:
  LONGVIEW_COLD void fail_unequal(const std::string& argument, const char* what, Index got, Index expected, const char* source) {
    fail(argument, std::string(what) + " (got " + std::to_string(got) + ", expected " + std::to_string(expected) +
                       (*source != '\0' ? " from " : "") + source + ")");
  }
  LONGVIEW_COLD void fail_small(const std::string& argument, const char* what, Index got, Index least) {
    fail(argument, std::string(what) + (*what != '\0' ? " " : "") + "must be >= " + std::to_string(least) + " (got " +
                       std::to_string(got) + ")");
  }
  LONGVIEW_COLD void fail_shape(const std::string& argument, std::span<const Index> got, std::span<const Index> expected) {
    fail(argument, "shape (got " + text_of(got) + ", expected " + text_of(expected) + ")");
  }

  template <typename T, std::size_t Rank>
  void record(const char* name, const TensorView<T, Rank>& view, bool written) {
    static_assert(Rank <= 4);
    ViewRecord entry{name, reinterpret_cast<std::uintptr_t>(view.data_handle()), sizeof(T), static_cast<int>(Rank), written,
                     {},   {}};
    for (std::size_t axis = 0; axis < Rank; ++axis) entry.extent[axis] = view.extent(axis), entry.stride[axis] = view.stride(axis);
    add_record(entry, alignof(T));
  }
  void add_record(const ViewRecord& entry, std::size_t alignment) {
    if (!ok()) return;
    const char* const name = entry.name;
    Index count = 1, span = 1, bytes = 0;
    bool empty = false, fits = true;
    for (int axis = 0; axis < entry.rank; ++axis) {
      const Index extent = entry.extent[axis];
      if (extent < 0) return fail(name, "extent must be >= 0 (got " + std::to_string(extent) + ")");
      if (extent == 0) empty = true;
    }
    if (empty) return;
    for (int axis = 0; axis < entry.rank; ++axis) fits = fits && multiply(count, entry.extent[axis], count);
    if (!fits) return fail(name, "element count overflows", true);
    for (int axis = 0; axis < entry.rank; ++axis) {
      const Index stride = entry.stride[axis] < 0 ? -(entry.stride[axis] + 1) : entry.stride[axis];
      Index reach = 0;
      fits = fits && multiply(entry.extent[axis] - 1, stride, reach) && add(span, reach, span);
    }
    if (!multiply(count, entry.size, bytes) || !fits || !multiply(span, entry.size, bytes))
      return fail(name, "byte count overflows", true);
    if (entry.data == 0) {
      if (run_.rehearsal() == nullptr) fail(name, "null data for " + std::to_string(count) + " elements");
    } else if (entry.data % alignment != 0) {
      return fail(name, "pointer not aligned to " + std::to_string(alignment));
    }
    if (entry.written && !is_nested(normalise(entry))) {
      for (int axis = 0; axis < entry.rank; ++axis)
        if (entry.stride[axis] == 0 && entry.extent[axis] > 1)
          return fail(name, "elements overlap (stride 0 on dim " + std::to_string(axis) + ")");
      return fail(name, "elements overlap");
    }
    if (count_ == views_.size()) return fail(name, "too many tensors in one call");
    views_[count_++] = entry;
  }

  const char* operation_;
  const Run& run_;
  std::string error_;
  bool is_size_error_ = false;
  std::array<ViewRecord, 40> views_;
  std::size_t count_ = 0;
};

}  // namespace longview
