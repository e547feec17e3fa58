// Tensors of the reference laid out in memory in various ways, and the ways of running an operator on them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <longview/executor.hpp>
#include <longview/workspace.hpp>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "instruction_sets.hpp"
#include "reference/precision.hpp"

namespace inputs {

using longview::Index;
using longview::TensorView;
using test::on_every_set;

/// What the reference computes in to judge T.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, float>, double, long double>;
template <typename T>
reference::Precision precision_of() {
  return std::is_same_v<T, float> ? reference::float_kernel() : reference::double_kernel();
}

/// Standard normal numbers that T can hold.
template <typename T>
reference::Tensor<Real<T>> normal(const std::vector<Index>& shape, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution;
  reference::Tensor<Real<T>> tensor(shape);
  for (Real<T>& element : tensor.elements()) element = static_cast<T>(distribution(generator));
  return tensor;
}

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

enum class Layout { packed, column_major, gaps, backwards };
constexpr Layout all_layouts[] = {Layout::packed, Layout::column_major, Layout::gaps, Layout::backwards};

/// A copy of a tensor in memory of its own, which holds NaN between the elements.
template <typename T, std::size_t Rank>
class Laid {
 public:
  template <typename Number>
  explicit Laid(const reference::Tensor<Number>& from, Layout layout = Layout::packed) {
    if (!from.present()) return;
    Index span = layout == Layout::gaps ? 2 : 1;
    for (std::size_t i = 0; i < Rank; ++i) {
      const std::size_t axis = layout == Layout::column_major ? i : Rank - 1 - i;
      shape_[axis] = from.extent(static_cast<Index>(axis));
      stride_[axis] = span;
      span = span * shape_[axis] + (layout == Layout::gaps ? 3 : 0);
    }
    if (layout == Layout::backwards)
      for (std::size_t axis = 0; axis < Rank; ++axis)
        first_ += stride_[axis] * std::max<Index>(shape_[axis] - 1, 0), stride_[axis] = -stride_[axis];
    first_ += 1;
    elements_.assign(static_cast<std::size_t>(span + 2), static_cast<T>(fill));
    visit([&](Index at, const std::array<Index, Rank>& index) {
      elements_[static_cast<std::size_t>(first_ + at)] =
          std::apply([&](auto... i) { return static_cast<T>(from(i...)); }, index);
    });
    present_ = true;
  }

  TensorView<T, Rank> view() {
    if (!present_) return {};
    return {elements_.data() + first_, shape_, stride_};
  }
  /// The elements in row-major order.
  std::vector<T> values() const {
    std::vector<T> all;
    visit([&](Index at, const auto&) { all.push_back(elements_[static_cast<std::size_t>(first_ + at)]); });
    return all;
  }
  const std::vector<T>& memory() const { return elements_; }

 private:
  static constexpr double fill = std::is_floating_point_v<T> ? nan_value : 1;

  template <typename Visit>
  void visit(Visit body) const {
    std::array<Index, Rank> index{};
    for (const Index extent : shape_)
      if (extent == 0) return;
    for (bool more = true; more;) {
      Index at = 0;
      for (std::size_t axis = 0; axis < Rank; ++axis) at += index[axis] * stride_[axis];
      body(at, index);
      std::size_t axis = Rank;
      while (axis > 0 && ++index[axis - 1] == shape_[axis - 1]) index[--axis] = 0;
      more = axis > 0;
    }
  }

  bool present_ = false;
  std::array<Index, Rank> shape_{}, stride_{};
  Index first_ = 0;
  std::vector<T> elements_;
};

template <typename T, std::size_t Rank>
Laid<T, Rank> room(const std::vector<Index>& shape, Layout layout = Layout::packed) {
  return Laid<T, Rank>(reference::Tensor<double>(shape, -77.0), layout);
}

/// Equal bits, NaN included.
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Every element within its certified bound.
template <typename Number, typename T>
::testing::AssertionResult within(const reference::Bounded<Number>& expected, const std::vector<T>& got) {
  if (expected.value.elements().size() != got.size()) return ::testing::AssertionFailure() << "size " << got.size();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const reference::Estimate<Number> estimate{expected.value.elements()[i], expected.radius.elements()[i]};
    if (!reference::agrees(estimate, got[i]))
      return ::testing::AssertionFailure()
             << "element " << i << ": expected " << estimate.value << " +- " << estimate.radius << ", got " << got[i];
  }
  return ::testing::AssertionSuccess();
}

/// Runs body(run) on 1 to 16 threads, in reverse and in shuffled order.
template <typename Body>
void on_every_executor(const Body& body) {
  const auto threads = [](Index count, longview::TaskBody task) {
    std::vector<std::thread> all;
    for (Index i = 0; i < count; ++i) all.emplace_back([task, i] { task(i); });
    for (std::thread& thread : all) thread.join();
  };
  const auto reversed = [](Index count, longview::TaskBody task) {
    while (count-- > 0) task(count);
  };
  const auto shuffled = [](Index count, longview::TaskBody task) {
    std::vector<Index> order(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) order[static_cast<std::size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    for (const Index i : order) task(i);
    for (const Index i : order) task(i);  // a second time, which must be harmless
  };
  for (const Index count : {1, 2, 3, 16}) {
    SCOPED_TRACE(count);
    body(longview::Parallel{count, threads});
    body(longview::Parallel{count, reversed});
    body(longview::Parallel{count, shuffled});
  }
}

/// The text of the error that a call raises, and which the rehearsal of the same call reports.
template <typename Error = longview::ContractError, typename Call>
std::string error_of(const Call& call) {
  longview::DryRun rehearsal;
  call(longview::Run(longview::Sequential(), rehearsal));
  try {
    call(longview::Run());
  } catch (const Error& error) {
    EXPECT_STREQ(rehearsal.error(), error.what());
    return error.what();
  }
  return "no error";
}

}  // namespace inputs
