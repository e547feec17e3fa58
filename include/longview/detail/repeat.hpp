// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where elements of views lie, also of views whose extents of 1 repeat.
#pragma once

#include "longview/tensor_view.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

template <typename T, std::size_t Rank>
LONGVIEW_INLINE T* element_at(const TensorView<T, Rank>& view, Index item, Index head, Index row) {
  return view.data_handle() + item * view.stride(0) + head * view.stride(1) + row * view.stride(2);
}

LONGVIEW_INLINE Index repeated(Index extent, Index stride) { return extent == 1 ? 0 : stride; }

template <typename T>
LONGVIEW_INLINE T* row_of(const TensorView<T, 4>& view, Index item, Index head, Index query) {
  return view.data_handle() + item * repeated(view.extent(0), view.stride(0)) +
         head * repeated(view.extent(1), view.stride(1)) + query * repeated(view.extent(2), view.stride(2));
}

template <typename T, std::size_t Rank>
LONGVIEW_INLINE T* row_of(const TensorView<T, Rank>& view, Index item) {
  return view.data_handle() + item * repeated(view.extent(0), view.stride(0));
}

}  // namespace longview
