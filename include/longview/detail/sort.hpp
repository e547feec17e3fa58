// SPDX-License-Identifier: Apache-2.0
/// \file
/// A heap sort of our own, because a std algorithm would be shared by files built with other flags.
#pragma once

#include "longview/tensor_view.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// In the order of before(a, b).
template <typename Before>
void sort(Index* list, Index count, const Before& before) {
  const auto sift = [&](Index from, Index end) {
    for (Index child; (child = 2 * from + 1) < end; from = child) {
      if (child + 1 < end && before(list[child], list[child + 1])) ++child;
      if (!before(list[from], list[child])) return;
      const Index moved = list[from];
      list[from] = list[child], list[child] = moved;
    }
  };
  for (Index root = count / 2; root-- > 0;) sift(root, count);
  for (Index end = count; end-- > 1;) {
    const Index last = list[0];
    list[0] = list[end], list[end] = last;
    sift(0, end);
  }
}

/// Ascending.
inline void sort(Index* list, Index count) {
  sort(list, count, [](Index a, Index b) { return a < b; });
}

}  // namespace longview
