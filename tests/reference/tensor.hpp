// Owning row-major arrays for the reference definitions: (batch, heads, length, channels) unless said otherwise.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

namespace reference {

using Index = std::ptrdiff_t;

inline std::size_t to_size(Index count) { return static_cast<std::size_t>(count); }

/// Default-constructed: absent, which is not the same as empty.
template <typename Element>
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(std::vector<Index> shape, Element fill = Element()) : shape_(std::move(shape)) {
    Index size = 1;
    for (const Index extent : shape_) size *= extent;
    elements_.assign(to_size(size), fill);
  }

  bool present() const { return !shape_.empty(); }
  Index rank() const { return static_cast<Index>(shape_.size()); }
  const std::vector<Index>& shape() const { return shape_; }
  Index extent(Index axis) const { return shape_.at(to_size(axis)); }
  std::vector<Element>& elements() { return elements_; }
  const std::vector<Element>& elements() const { return elements_; }

  template <typename... At>
  Element& operator()(At... index) {
    return elements_[offset({static_cast<Index>(index)...})];
  }
  template <typename... At>
  const Element& operator()(At... index) const {
    return elements_[offset({static_cast<Index>(index)...})];
  }
  /// Axes of extent 1 repeat.
  template <typename... At>
  Element& repeated(At... index) {
    return elements_[offset({static_cast<Index>(index)...}, true)];
  }
  template <typename... At>
  const Element& repeated(At... index) const {
    return elements_[offset({static_cast<Index>(index)...}, true)];
  }

 private:
  std::size_t offset(std::initializer_list<Index> at, bool repeat = false) const {
    if (at.size() != shape_.size()) throw std::out_of_range("reference::Tensor: rank");
    Index position = 0;
    auto extent = shape_.begin();
    for (const Index asked : at) {
      const Index index = repeat && *extent == 1 ? 0 : asked;
      if (index < 0 || index >= *extent) throw std::out_of_range("reference::Tensor: index");
      position = position * *extent++ + index;
    }
    return to_size(position);
  }

  std::vector<Index> shape_;
  std::vector<Element> elements_;
};

/// Rows first ... first + count - 1 of (batch, heads, length, channels).
template <typename Element>
Tensor<Element> slice_rows(const Tensor<Element>& input, Index first, Index count) {
  Tensor<Element> rows({input.extent(0), input.extent(1), count, input.extent(3)});
  for (Index b = 0; b < input.extent(0); ++b)
    for (Index h = 0; h < input.extent(1); ++h)
      for (Index i = 0; i < count; ++i)
        for (Index c = 0; c < input.extent(3); ++c) rows(b, h, i, c) = input(b, h, first + i, c);
  return rows;
}

/// Along the length, oldest first.
template <typename Element>
Tensor<Element> join_rows(const Tensor<Element>& older, const Tensor<Element>& newer) {
  const Index old_length = older.extent(2);
  Tensor<Element> rows({newer.extent(0), newer.extent(1), old_length + newer.extent(2), newer.extent(3)});
  for (Index b = 0; b < rows.extent(0); ++b)
    for (Index h = 0; h < rows.extent(1); ++h)
      for (Index i = 0; i < rows.extent(2); ++i)
        for (Index c = 0; c < rows.extent(3); ++c)
          rows(b, h, i, c) = i < old_length ? older(b, h, i, c) : newer(b, h, i - old_length, c);
  return rows;
}

}  // namespace reference
