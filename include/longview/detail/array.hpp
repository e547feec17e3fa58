// SPDX-License-Identifier: Apache-2.0
/// \file
/// Memory of objects that users keep.
#pragma once

#include <cstring>
#include <new>

#include "longview/tensor_view.hpp"

/// What objects are made of that files built with different flags may pass to each other: every member is inlined.
namespace longview::inline v0::storage {

/// Numbers on the heap. Not std::vector, whose functions all files of a program would share, whatever their flags.
template <typename T>
class Array {
 public:
  LONGVIEW_INLINE Array() = default;
  LONGVIEW_INLINE Array(const Array& other) {
    resize(other.size_);
    if (size_ > 0) std::memcpy(data_, other.data_, static_cast<std::size_t>(size_) * sizeof(T));
  }
  LONGVIEW_INLINE Array& operator=(const Array& other) {
    Array copy(other);
    swap(copy);
    return *this;
  }
  LONGVIEW_INLINE ~Array() { ::operator delete(data_); }

  LONGVIEW_INLINE T* data() const { return data_; }
  /// Loses what it holds. Memory is kept until the end, and found anew only to grow.
  LONGVIEW_INLINE void resize(Index size) {
    if (size > capacity_) {
      T* const grown = static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T)));
      ::operator delete(data_);
      data_ = grown, capacity_ = size;
    }
    size_ = size;
  }
  LONGVIEW_INLINE void swap(Array& other) noexcept {
    T* const data = data_;
    const Index size = size_, capacity = capacity_;
    data_ = other.data_, size_ = other.size_, capacity_ = other.capacity_;
    other.data_ = data, other.size_ = size, other.capacity_ = capacity;
  }

 private:
  T* data_ = nullptr;
  Index size_ = 0, capacity_ = 0;
};

}  // namespace longview
