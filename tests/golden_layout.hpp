// SPDX-License-Identifier: Apache-2.0
// The tensors of a golden case as views of memory, dense or spread out as strides allow.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <longview/tensor_view.hpp>
#include <span>
#include <string>
#include <vector>

#include "golden_file.hpp"
#include "reference/tensor.hpp"

namespace golden {

using reference::Index;
using reference::Tensor;

/// strided: channels two apart, gaps after the rows, and one of the other axes runs backwards.
enum class Layout { dense, strided };

/// Where the elements of a tensor lie in a buffer of `size` elements.
template <std::size_t Rank>
struct Placement {
  longview::Shape<Rank> shape{}, stride{};
  Index first = 0, size = 0;

  Index elements() const {
    Index count = 1;
    for (const Index extent : shape) count *= extent;
    return count;
  }
  /// `number` counts in row-major order.
  Index offset(Index number) const {
    Index position = first;
    for (std::size_t axis = Rank; axis-- > 0; number /= shape[axis]) position += number % shape[axis] * stride[axis];
    return position;
  }
};

template <std::size_t Rank>
Placement<Rank> place(const longview::Shape<Rank>& shape, Layout layout, std::size_t backwards) {
  const bool strided = layout == Layout::strided;
  Placement<Rank> result{shape};
  Index step = strided ? 2 : 1;
  for (std::size_t axis = Rank; axis-- > 0;) {
    result.stride[axis] = step;
    step = step * shape[axis] + (strided ? 3 : 0);
  }
  result.size = step;
  if (strided && shape[backwards] > 0) {
    result.first = (shape[backwards] - 1) * result.stride[backwards];
    result.stride[backwards] *= -1;
  }
  return result;
}

template <std::size_t Rank>
longview::Shape<Rank> shape_of(const std::vector<Index>& extents) {
  require(extents.size() == Rank, "rank " + std::to_string(extents.size()) + " where it is " + std::to_string(Rank));
  longview::Shape<Rank> shape{};
  for (std::size_t axis = 0; axis < Rank; ++axis) shape[axis] = extents[axis];
  return shape;
}

template <typename To, typename From>
To exactly(From x) {
  require(static_cast<From>(static_cast<To>(x)) == x, "an input that the type of the elements does not hold");
  return static_cast<To>(x);
}

/// Owns what the inputs of one call point at. Whatever lies between their elements is NaN, in masks 255.
template <typename T>
class Inputs {
 public:
  explicit Inputs(Layout layout) : layout_(layout) {}

  /// An absent tensor gives an absent view.
  template <std::size_t Rank, typename Real>
  longview::TensorView<const T, Rank> tensor(const Tensor<Real>& from) {
    return spread<Rank>(values_, from, std::numeric_limits<T>::quiet_NaN());
  }
  template <std::size_t Rank>
  longview::TensorView<const std::uint8_t, Rank> mask(const Tensor<std::uint8_t>& from) {
    return spread<Rank>(bytes_, from, std::uint8_t{255});
  }
  std::span<const T> list(const std::vector<double>& from) {
    std::vector<T>& held = values_.emplace_back();
    for (const double x : from) held.push_back(exactly<T>(x));
    return held;
  }

 private:
  template <std::size_t Rank, typename Element, typename From>
  longview::TensorView<const Element, Rank> spread(std::deque<std::vector<Element>>& buffers, const Tensor<From>& from,
                                                   Element between) {
    if (!from.present()) return {};
    const Placement<Rank> at = place(shape_of<Rank>(from.shape()), layout_, count_++ % (Rank - 1));
    std::vector<Element>& held = buffers.emplace_back(reference::to_size(at.size), between);
    for (Index n = 0; n < at.elements(); ++n)
      held[reference::to_size(at.offset(n))] = exactly<Element>(from.elements()[reference::to_size(n)]);
    return {held.data() + at.first, at.shape, at.stride};
  }

  Layout layout_;
  std::size_t count_ = 0;  // so that every axis runs backwards in some tensor
  std::deque<std::vector<T>> values_;
  std::deque<std::vector<std::uint8_t>> bytes_;
};

/// A row-major copy.
template <typename T, std::size_t Rank>
Tensor<T> copy_of(const longview::TensorView<const T, Rank>& view) {
  Tensor<T> copy(std::vector<Index>(view.shape().begin(), view.shape().end()));
  const Placement<Rank> at{view.shape(), view.strides()};
  for (Index n = 0; n < at.elements(); ++n) copy.elements()[reference::to_size(n)] = view.data_handle()[at.offset(n)];
  return copy;
}

/// Owns what a call writes. Before, all of it is NaN.
template <typename T, std::size_t Rank>
class Written {
 public:
  Written(const longview::Shape<Rank>& shape, Layout layout)
      : at_(place(shape, layout, 0)), held_(reference::to_size(at_.size), std::numeric_limits<T>::quiet_NaN()) {}

  longview::TensorView<T, Rank> view() { return {held_.data() + at_.first, at_.shape, at_.stride}; }
  Tensor<T> copy() { return copy_of<T, Rank>(view()); }

 private:
  Placement<Rank> at_;
  std::vector<T> held_;
};

}  // namespace golden
