// SPDX-License-Identifier: Apache-2.0
/// \file
/// TensorView: a pointer, a shape and strides. All operators take and write such views; nothing here owns memory.
#pragma once

#include <array>
#include <cassert>
#include <concepts>
#include <cstddef>
#include <iterator>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "longview/contract.hpp"
#include "longview/detail/build.hpp"

namespace longview::inline v0 {

using Index = std::ptrdiff_t;
template <std::size_t Rank>
using Shape = std::array<Index, Rank>;

/// How an element is stored.
enum class Format { none, float64, float32 };
template <typename T>
inline constexpr Format format_of = Format::none;
template <>
inline constexpr Format format_of<float> = Format::float32;
template <>
inline constexpr Format format_of<double> = Format::float64;

template <typename T>
concept Storage = format_of<T> != Format::none;
/// What a view handed to an operator may point at.
template <typename Q>
concept Element = Storage<std::remove_const_t<Q>>;
/// The type in which sums over T are formed.
template <Storage T>
using Compute = std::conditional_t<format_of<T> == Format::float64, double, float>;

/// std::mdspan, Kokkos::mdspan, TensorView itself; none is included for it.
template <typename M>
concept MdspanLike = requires(const M& m) {
  typename M::element_type;
  m.data_handle();
  m.extent(0);
  m.stride(0);
  M::rank();
};

/// Whether a view of type M can be read as a view of T with that rank: same elements, const added but never removed.
template <typename M, typename T, std::size_t Rank>
concept ReadableAs = MdspanLike<M> && M::rank() == Rank && std::is_convertible_v<typename M::element_type (*)[], T (*)[]>;

/// Points at `Rank`-dimensional data owned by someone else, which must outlive the view.
///
/// Strides count elements: any value on inputs (0 repeats a slice, negative runs backwards); the elements of an output
/// must be distinct. A default-constructed view is absent.
template <typename T, std::size_t Rank>
class TensorView {
 public:
  using element_type = T;
  static constexpr std::size_t rank() { return Rank; }

  constexpr TensorView() = default;
  /// Row-major.
  LONGVIEW_INLINE constexpr TensorView(T* data, const Shape<Rank>& shape) : data_(data), shape_(shape) {
    Index stride = 1;
    for (std::size_t axis = Rank; axis-- > 0;) {
      stride_[axis] = stride;
      // Wrapping is harmless here: the operators refuse shapes whose element count overflows.
      stride = static_cast<Index>(static_cast<std::size_t>(stride) * static_cast<std::size_t>(shape[axis]));
    }
  }
  LONGVIEW_INLINE constexpr TensorView(T* data, const Shape<Rank>& shape, const Shape<Rank>& stride)
      : data_(data), shape_(shape), stride_(stride) {}
  /// From any view of the same rank; adds const, never removes it.
  template <ReadableAs<T, Rank> M>
  LONGVIEW_INLINE constexpr TensorView(const M& other) : data_(other.data_handle()) {
    for (std::size_t axis = 0; axis < Rank; ++axis) {
      shape_[axis] = static_cast<Index>(other.extent(axis));
      stride_[axis] = static_cast<Index>(other.stride(axis));
    }
  }

  /// Other elements, a const that would be lost, or another rank. On one line, which compilers show in their message.
  template <MdspanLike M>
  TensorView(const M&) requires(!ReadableAs<M, T, Rank>) = delete;

  LONGVIEW_INLINE constexpr T* data_handle() const { return data_; }
  LONGVIEW_INLINE constexpr Index extent(std::size_t axis) const { return shape_[axis]; }
  LONGVIEW_INLINE constexpr Index stride(std::size_t axis) const { return stride_[axis]; }
  LONGVIEW_INLINE constexpr const Shape<Rank>& shape() const { return shape_; }
  LONGVIEW_INLINE constexpr const Shape<Rank>& strides() const { return stride_; }
  /// False: absent.
  LONGVIEW_INLINE constexpr explicit operator bool() const {
    bool present = data_ != nullptr;
    for (const Index extent : shape_) present = present || extent != 0;  // not ==, which calls memcmp
    return present;
  }

  /// One element; the indices are checked in debug builds.
  template <typename... At>
    requires(sizeof...(At) == Rank)
  LONGVIEW_INLINE constexpr T& operator()(At... index) const {
    const Shape<Rank> at{static_cast<Index>(index)...};
    Index offset = 0;
    for (std::size_t axis = 0; axis < Rank; ++axis) {
      assert(at[axis] >= 0 && at[axis] < shape_[axis]);
      offset += at[axis] * stride_[axis];
    }
    return data_[offset];
  }
  /// The same as select(0, index).
  LONGVIEW_INLINE constexpr TensorView<T, Rank - 1> operator[](Index index) const
    requires(Rank > 1)
  {
    return select(0, index);
  }

  /// Drops an axis at one of its indices.
  LONGVIEW_INLINE constexpr TensorView<T, Rank - 1> select(std::size_t axis, Index index) const
    requires(Rank > 1)
  {
    check("select: axis", axis < Rank);
    check("select: index", index >= 0 && index < shape_[axis]);
    Shape<Rank - 1> shape{}, stride{};
    for (std::size_t from = 0, to = 0; from < Rank; ++from) {
      if (from == axis) continue;
      shape[to] = shape_[from];
      stride[to++] = stride_[from];
    }
    return {at_offset(index * stride_[axis]), shape, stride};
  }
  /// `count` indices of an axis: begin, begin + step, ... A step of -1 flips, a step of 0 repeats.
  LONGVIEW_INLINE constexpr TensorView slice(std::size_t axis, Index begin, Index count, Index step = 1) const {
    check("slice: axis", axis < Rank);
    check("slice: range", count == 0 || (count > 0 && begin >= 0 && begin < shape_[axis] &&
                                         (count == 1 || (step >= 0 ? step <= (shape_[axis] - 1 - begin) / (count - 1)
                                                                   : step >= -(begin / (count - 1))))));
    TensorView part = *this;
    if (count > 0) part.data_ = at_offset(begin * stride_[axis]);
    part.shape_[axis] = count;
    if (count > 1) part.stride_[axis] = stride_[axis] * step;
    return part;
  }
  LONGVIEW_INLINE constexpr TensorView transpose(std::size_t axis, std::size_t other) const {
    check("transpose: axis", axis < Rank && other < Rank);
    TensorView swapped = *this;
    swapped.shape_[axis] = shape_[other], swapped.shape_[other] = shape_[axis];
    swapped.stride_[axis] = stride_[other], swapped.stride_[other] = stride_[axis];
    return swapped;
  }
  /// A new axis of extent 1.
  LONGVIEW_INLINE constexpr TensorView<T, Rank + 1> unsqueeze(std::size_t axis) const {
    check("unsqueeze: axis", axis <= Rank);
    Shape<Rank + 1> shape{}, stride{};
    for (std::size_t to = 0; to <= Rank; ++to) {
      shape[to] = to == axis ? 1 : shape_[to - (to > axis)];
      stride[to] = to == axis ? 0 : stride_[to - (to > axis)];
    }
    return {data_, shape, stride};
  }
  /// An axis of extent n becomes two, of extents (parts, n / parts).
  LONGVIEW_INLINE constexpr TensorView<T, Rank + 1> unflatten(std::size_t axis, Index parts) const {
    check("unflatten: axis", axis < Rank);
    check("unflatten: parts", parts > 0 && shape_[axis] % parts == 0);
    Shape<Rank + 1> shape{}, stride{};
    for (std::size_t to = 0; to <= Rank; ++to) {
      shape[to] = shape_[to - (to > axis)];
      stride[to] = stride_[to - (to > axis)];
    }
    shape[axis] = parts;
    shape[axis + 1] = shape_[axis] / parts;
    stride[axis] = stride_[axis] * shape[axis + 1];
    return {data_, shape, stride};
  }

 private:
  LONGVIEW_INLINE constexpr T* at_offset(Index offset) const { return data_ == nullptr ? nullptr : data_ + offset; }
  LONGVIEW_INLINE static constexpr void check(const char* what, bool holds) {
    if (!holds) detail::raise_view_error(what);
  }

  T* data_ = nullptr;
  Shape<Rank> shape_{}, stride_{};
};

template <typename T, std::size_t Rank>
TensorView(T*, const Index (&)[Rank]) -> TensorView<T, Rank>;
template <MdspanLike M>
TensorView(const M&) -> TensorView<typename M::element_type, M::rank()>;

/// In parameters of operators: their element type is not deduced from these.
template <typename Q>
using Value = std::remove_const_t<Q>;
template <typename Q, std::size_t Rank = 4>
using In = TensorView<const Value<Q>, Rank>;

inline namespace LONGVIEW_BUILD {

/// A row-major view of a vector, an array or a span; their sizes must agree.
template <typename R, std::size_t Rank>
auto view_of(R& elements, const Index (&shape)[Rank]) {
  constexpr Index most = (std::numeric_limits<Index>::max)();
  Shape<Rank> extents{};
  Index count = 1;
  bool fits = true;
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    const Index extent = extents[axis] = shape[axis];
    fits = fits && extent >= 0 && (extent == 0 || count <= most / extent);
    if (fits) count *= extent;
  }
  if (!fits || count != static_cast<Index>(std::size(elements)))
    detail::raise<ContractError>(("view_of: elements: size (got " + std::to_string(std::size(elements)) + ", expected " +
                                  (fits ? std::to_string(count) + " from shape)" : "a shape of non-negative extents)"))
                                     .c_str());
  return TensorView<std::remove_pointer_t<decltype(std::data(elements))>, Rank>(std::data(elements), extents);
}

/// ([batch,] length, heads * dim) as (batch, heads, length, dim).
template <typename T, std::size_t Rank>
  requires(Rank == 2 || Rank == 3)
TensorView<T, 4> split_heads(TensorView<T, Rank> rows, Index heads) {
  if constexpr (Rank == 2) {
    return split_heads(rows.unsqueeze(0), heads);
  } else {
    if (heads < 1 || rows.extent(2) % heads != 0)
      detail::raise<ContractError>(("split_heads: heads: must divide the width (got " + std::to_string(heads) + ", width " +
                                    std::to_string(rows.extent(2)) + ")")
                                       .c_str());
    return rows.unflatten(2, heads).transpose(1, 2);
  }
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
