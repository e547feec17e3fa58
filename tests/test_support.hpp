// SPDX-License-Identifier: Apache-2.0
// What the tests of the operators share: tensors in every layout, executors that misbehave, guard pages, comparisons.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "instruction_sets.hpp"
#include "longview/workspace.hpp"

namespace test {

using longview::Index;
using longview::Shape;
using longview::TensorView;

inline std::size_t to_size(Index count) { return static_cast<std::size_t>(count); }

template <std::size_t Rank>
Index count_of(const Shape<Rank>& shape) {
  Index count = 1;
  for (const Index extent : shape) count *= extent;
  return count;
}

/// Indices of a row-major place.
template <std::size_t Rank>
Shape<Rank> place_of(Index at, const Shape<Rank>& shape) {
  Shape<Rank> place{};
  for (std::size_t axis = Rank; axis-- > 0;) place[axis] = at % shape[axis], at /= shape[axis];
  return place;
}

template <typename T, std::size_t Rank>
T& element(const TensorView<T, Rank>& view, const Shape<Rank>& place) {
  Index offset = 0;
  for (std::size_t axis = 0; axis < Rank; ++axis) offset += place[axis] * view.stride(axis);
  return view.data_handle()[offset];
}

template <typename T, std::size_t Rank>
std::vector<std::remove_const_t<T>> copy_of(const TensorView<T, Rank>& view) {
  std::vector<std::remove_const_t<T>> values(to_size(count_of(view.shape())));
  for (Index at = 0; at < static_cast<Index>(values.size()); ++at)
    values[to_size(at)] = element(view, place_of(at, view.shape()));
  return values;
}

template <typename T, std::size_t Rank>
void assign(const TensorView<T, Rank>& view, const std::vector<std::remove_const_t<T>>& values) {
  for (Index at = 0; at < static_cast<Index>(values.size()); ++at)
    element(view, place_of(at, view.shape())) = values[to_size(at)];
}

// ---- Random numbers: the same on every platform.

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed * 0x9e3779b97f4a7c15u + 1) {}

  Index integer(Index low, Index high) {
    return low + static_cast<Index>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool chance(int percent) { return integer(0, 99) < percent; }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(engine_() >> 11) * 0x1p-53; }
  /// Close enough to normal.
  double normal() { return uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1); }
  template <typename T>
  std::vector<T> values(Index count, double sigma = 1) {
    std::vector<T> all(to_size(count));
    for (T& x : all) x = static_cast<T>(sigma * normal());
    return all;
  }
  std::vector<std::uint8_t> bytes(Index count, int percent) {
    std::vector<std::uint8_t> all(to_size(count));
    for (std::uint8_t& x : all) x = chance(percent) ? static_cast<std::uint8_t>(integer(1, 255)) : std::uint8_t{0};
    return all;
  }
  std::vector<Index> permutation(Index count) {
    std::vector<Index> order(to_size(count));
    for (Index at = 0; at < count; ++at) order[to_size(at)] = at;
    for (Index at = count; at-- > 1;) std::swap(order[to_size(at)], order[to_size(integer(0, at))]);
    return order;
  }

 private:
  std::mt19937_64 engine_;
};

// ---- Layouts

/// Axes of a (batch, heads, length, channels) tensor in memory, the slowest first; between elements, filler.
enum class Layout { packed, length_before_heads, channels_first, inner_2, inner_3, reversed_channels, reversed, padded_rows };
inline constexpr Layout all_layouts[] = {Layout::packed,  Layout::length_before_heads, Layout::channels_first,
                                         Layout::inner_2, Layout::inner_3,             Layout::reversed_channels,
                                         Layout::reversed, Layout::padded_rows};

template <typename T>
T filler() {
  if constexpr (std::is_floating_point_v<T>)
    return std::numeric_limits<T>::quiet_NaN();
  else
    return static_cast<T>(0x5a);
}

/// Memory of its own in a layout; what is not an element is filler, and must stay it.
template <typename T, std::size_t Rank = 4>
class Stored {
 public:
  Stored(const Shape<Rank>& shape, Layout layout) : shape_(shape) {
    std::array<std::size_t, Rank> order{};
    for (std::size_t axis = 0; axis < Rank; ++axis) order[axis] = axis;
    if (layout == Layout::length_before_heads && Rank >= 3) std::swap(order[1], order[2]);
    if (layout == Layout::channels_first) std::reverse(order.begin(), order.end());
    Index span = layout == Layout::inner_2 ? 2 : layout == Layout::inner_3 ? 3 : 1;
    for (std::size_t at = Rank; at-- > 0;) {
      stride_[order[at]] = span;
      span *= std::max<Index>(1, shape[order[at]]);
      if (layout == Layout::padded_rows && at == Rank - 1) span += 5;
    }
    memory_.assign(to_size(span + 32), filler<T>());
    for (std::size_t axis = 0; axis < Rank; ++axis) {
      const bool flips = layout == Layout::reversed || (layout == Layout::reversed_channels && axis == Rank - 1);
      if (!flips || shape[axis] == 0) continue;
      first_ += (shape[axis] - 1) * stride_[axis];
      stride_[axis] = -stride_[axis];
    }
  }
  Stored(const Shape<Rank>& shape, Layout layout, const std::vector<std::remove_const_t<T>>& values)
      : Stored(shape, layout) {
    assign(view(), values);
  }

  TensorView<T, Rank> view() { return {memory_.data() + first_, shape_, stride_}; }
  std::vector<T> copy() { return copy_of(view()); }
  /// Whether everything between the elements is as it was.
  bool filler_is_intact() {
    std::vector<bool> used(memory_.size());
    for (Index at = 0; at < count_of(shape_); ++at)
      used[to_size(&element(view(), place_of(at, shape_)) - memory_.data())] = true;
    const T kept = filler<T>();
    for (std::size_t at = 0; at < memory_.size(); ++at)
      if (!used[at] && std::memcmp(&memory_[at], &kept, sizeof kept) != 0) return false;
    return true;
  }

 private:
  Shape<Rank> shape_, stride_{};
  Index first_ = 16;
  std::vector<T> memory_;
};

/// Elements that end on the last byte before a page that must not be touched, or begin right after one.
template <typename T>
class Guarded {
 public:
  enum class Side { before_page, after_page };
  Guarded(Index count, Side side) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), bytes = to_size(count) * sizeof(T);
    bytes_ = (bytes + page - 1) / page * page + 2 * page;
    void* const all = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<std::byte*>(all);
    mprotect(memory_, page, PROT_NONE);
    mprotect(memory_ + bytes_ - page, page, PROT_NONE);
    std::byte* const first = side == Side::before_page ? memory_ + bytes_ - page - bytes : memory_ + page;
    data_ = reinterpret_cast<T*>(first);
  }
  Guarded(Index count, Side side, const std::vector<T>& values) : Guarded(count, side) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, bytes_); }

  T* data() const { return data_; }

 private:
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
  T* data_ = nullptr;
};

// ---- Executors

struct Reversed {
  Index workers;
  Index concurrency() const { return workers; }
  void operator()(Index count, longview::TaskBody body) const {
    for (Index task = count; task-- > 0;) body(task);
  }
};

struct Shuffled {
  Index workers;
  std::uint64_t seed;
  Index concurrency() const { return workers; }
  void operator()(Index count, longview::TaskBody body) const {
    for (const Index task : Random(seed).permutation(count)) body(task);
  }
};

/// A thread for each body.
struct Threads {
  Index workers;
  Index concurrency() const { return workers; }
  void operator()(Index count, longview::TaskBody body) const {
    std::vector<std::thread> threads;
    for (Index task = 1; task < count; ++task) threads.emplace_back([body, task] { body(task); });
    if (count > 0) body(0);
    for (std::thread& thread : threads) thread.join();
  }
};

/// All bodies on one other thread.
struct OtherThread {
  Index workers;
  Index concurrency() const { return workers; }
  void operator()(Index count, longview::TaskBody body) const {
    std::thread([&] {
      for (Index task = 0; task < count; ++task) body(task);
    }).join();
  }
};

/// Every body again after all have run.
struct Twice {
  Index workers;
  Index concurrency() const { return workers; }
  void operator()(Index count, longview::TaskBody body) const {
    for (Index round = 0; round < 2; ++round)
      for (Index task = 0; task < count; ++task) body(task);
  }
};

/// Gives up before the body of a number.
template <typename Error>
struct Throwing {
  Index workers, at;
  Index concurrency() const { return workers; }
  void operator()(Index count, longview::TaskBody body) const {
    for (Index task = 0; task < count; ++task) {
      if (task == at) throw Error();
      body(task);
    }
  }
};

// ---- Comparisons

template <typename T>
auto bits_of(T x) {
  if constexpr (sizeof(T) == 4)
    return std::bit_cast<std::uint32_t>(x);
  else
    return std::bit_cast<std::uint64_t>(x);
}

template <typename T>
bool same_bits(T a, T b) {
  return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b));
}

inline std::string text_of(const std::vector<Index>& place) {
  std::string text = "[";
  for (const Index at : place) text += (text.size() > 1 ? ", " : "") + std::to_string(at);
  return text + "]";
}

template <std::size_t Rank>
std::string text_of(const Shape<Rank>& place) {
  return text_of(std::vector<Index>(place.begin(), place.end()));
}

/// The command that runs the current test alone.
inline std::string reproducer() {
  const ::testing::TestInfo* const test = ::testing::UnitTest::GetInstance()->current_test_info();
  if (test == nullptr) return "";
  return std::string("reproduce: --gtest_filter=") + test->test_suite_name() + "." + test->name();
}

/// Every element the same, any NaN for a NaN.
template <typename T, std::size_t Rank>
::testing::AssertionResult same_bits(const std::vector<T>& expected, const std::vector<T>& got, const Shape<Rank>& shape) {
  if (expected.size() != got.size())
    return ::testing::AssertionFailure() << got.size() << " elements, expected " << expected.size();
  std::ostringstream text;
  std::size_t different = 0;
  for (std::size_t at = 0; at < expected.size(); ++at) {
    if (same_bits(expected[at], got[at])) continue;
    if (++different <= 10)
      text << "\n  " << text_of(place_of(static_cast<Index>(at), shape)) << " expected " << std::setprecision(17)
           << expected[at] << " (" << std::hex << bits_of(expected[at]) << "), got " << got[at] << " (" << bits_of(got[at])
           << ")" << std::dec;
  }
  if (different == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << different << " of " << expected.size() << " elements differ" << text.str() << "\n  "
                                       << reproducer();
}

/// The text of the error that a call raises.
template <typename Error, typename Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another type of error: ") + error.what();
  }
  return "no error";
}

}  // namespace test
