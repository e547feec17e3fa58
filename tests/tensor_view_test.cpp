// SPDX-License-Identifier: Apache-2.0
#include "longview/tensor_view.hpp"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <span>
#include <vector>

#include "longview/key_value_view.hpp"

namespace {

using longview::ContractError;
using longview::Index;
using longview::Shape;
using longview::TensorView;

template <typename Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const ContractError& error) {
    return error.what();
  }
  return "no error";
}

/// What a view shows, in row-major order.
template <typename T>
std::vector<int> values(const TensorView<T, 1>& view) {
  std::vector<int> all;
  for (Index at = 0; at < view.extent(0); ++at) all.push_back(view(at));
  return all;
}
template <typename T, std::size_t Rank>
std::vector<int> values(const TensorView<T, Rank>& view) {
  std::vector<int> all;
  for (Index at = 0; at < view.extent(0); ++at) {
    const auto part = values(view[at]);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

class TensorViews : public ::testing::Test {
 protected:
  std::array<int, 24> memory = [] {
    std::array<int, 24> numbers{};
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
  }();
  TensorView<int, 3> all{memory.data(), {2, 3, 4}};
};

// ---- Compile time

static_assert(std::is_trivially_copyable_v<TensorView<float, 4>>);
static_assert(std::is_convertible_v<TensorView<float, 4>, TensorView<const float, 4>>);
static_assert(!std::is_convertible_v<TensorView<const float, 4>, TensorView<float, 4>>);
static_assert(!std::is_convertible_v<TensorView<float, 4>, TensorView<double, 4>>);
static_assert(!std::is_convertible_v<TensorView<float, 4>, TensorView<const double, 4>>);
static_assert(!std::is_convertible_v<TensorView<float, 4>, TensorView<float, 3>>);
static_assert(!std::is_constructible_v<TensorView<float, 4>, TensorView<float, 3>>);
static_assert(TensorView<float, 4>::rank() == 4);
static_assert(longview::Storage<float> && longview::Storage<double> && !longview::Storage<const float> && !longview::Storage<int>);
static_assert(longview::Element<const float> && !longview::Element<int>);
static_assert(std::is_same_v<longview::Compute<float>, float> && std::is_same_v<longview::Compute<double>, double>);
static_assert(std::is_same_v<longview::In<float>, TensorView<const float, 4>>);
static_assert(std::is_same_v<longview::In<const float, 2>, TensorView<const float, 2>>);
static_assert(!TensorView<float, 2>(), "absent");

constexpr bool works_at_compile_time() {
  int numbers[6] = {0, 1, 2, 3, 4, 5};
  const TensorView<int, 2> view(numbers, {2, 3});
  return view(1, 2) == 5 && view.transpose(0, 1)(2, 1) == 5 && view[1](0) == 3 && view.slice(1, 2, 2, -1)(0, 0) == 2;
}
static_assert(works_at_compile_time());

// ---- Construction

TEST_F(TensorViews, AbsentIsNeitherEmptyNorNull) {
  const TensorView<int, 2> absent, empty(memory.data(), {0, 3}), null_but_shaped(nullptr, {0, 3});
  EXPECT_FALSE(absent);
  EXPECT_TRUE(empty);
  EXPECT_TRUE(null_but_shaped);
  EXPECT_EQ(absent.data_handle(), nullptr);
  EXPECT_EQ(absent.extent(0), 0);
}

TEST_F(TensorViews, RowMajorByDefault) {
  EXPECT_EQ(all.strides(), (Shape<3>{12, 4, 1}));
  EXPECT_EQ(all(1, 2, 3), 23);
  EXPECT_EQ(values(all), std::vector<int>(memory.begin(), memory.end()));
}

TEST_F(TensorViews, StridesAsGiven) {
  const TensorView<int, 2> column_major(memory.data(), {2, 3}, {1, 2}), backwards(memory.data() + 5, {2, 3}, {-3, -1}),
      repeated(memory.data(), {2, 3}, {0, 1});
  EXPECT_EQ(values(column_major), (std::vector<int>{0, 2, 4, 1, 3, 5}));
  EXPECT_EQ(values(backwards), (std::vector<int>{5, 4, 3, 2, 1, 0}));
  EXPECT_EQ(values(repeated), (std::vector<int>{0, 1, 2, 0, 1, 2}));
}

TEST_F(TensorViews, DeducedFromPointerAndBraces) {
  const TensorView view(memory.data(), {4, 6});
  static_assert(std::is_same_v<decltype(view), const TensorView<int, 2>>);
  EXPECT_EQ(view(3, 5), 23);
}

TEST_F(TensorViews, WritesThroughACopy) {
  const TensorView<int, 3> copy = all;
  copy(0, 1, 2) = -7;
  EXPECT_EQ(memory[6], -7);
}

/// What std::mdspan and Kokkos::mdspan have in common, with an index type and a rank of their own.
struct Mdspan {
  using element_type = int;
  int* data = nullptr;
  static constexpr unsigned rank() { return 2; }
  int* data_handle() const { return data; }
  unsigned extent(std::size_t axis) const { return axis == 0 ? 2 : 3; }
  unsigned stride(std::size_t axis) const { return axis == 0 ? 4 : 1; }
};

TEST_F(TensorViews, FromMdspan) {
  const Mdspan mdspan{memory.data()};
  const TensorView<const int, 2> view = mdspan;
  const TensorView deduced(mdspan);
  static_assert(std::is_same_v<decltype(deduced), const TensorView<int, 2>>);
  EXPECT_EQ(values(view), (std::vector<int>{0, 1, 2, 4, 5, 6}));
  EXPECT_EQ(values(deduced), values(view));
  static_assert(!std::is_convertible_v<Mdspan, TensorView<int, 3>>);
  static_assert(!std::is_convertible_v<Mdspan, TensorView<float, 2>>);
}

TEST_F(TensorViews, ExtentsThatOverflowAreNotComputedWith) {
  const Index huge = std::numeric_limits<Index>::max();
  const TensorView<int, 3> view(nullptr, {huge, huge, huge});
  EXPECT_EQ(view.extent(0), huge);
  EXPECT_EQ(view.stride(2), 1);
}

// ---- Parts

TEST_F(TensorViews, Select) {
  EXPECT_EQ(values(all[1]), values(all.select(0, 1)));
  EXPECT_EQ(values(all.select(1, 2)), (std::vector<int>{8, 9, 10, 11, 20, 21, 22, 23}));
  EXPECT_EQ(values(all.select(2, 0)), (std::vector<int>{0, 4, 8, 12, 16, 20}));
  for (const Index wrong : {-1, 3}) EXPECT_EQ(error_of([&] { all.select(1, wrong); }), "TensorView: select: index out of bounds");
}

TEST_F(TensorViews, Slice) {
  const TensorView<int, 1> row = all[0][1];  // 4 5 6 7
  EXPECT_EQ(values(row.slice(0, 1, 2)), (std::vector<int>{5, 6}));
  EXPECT_EQ(values(row.slice(0, 0, 2, 2)), (std::vector<int>{4, 6}));
  EXPECT_EQ(values(row.slice(0, 3, 4, -1)), (std::vector<int>{7, 6, 5, 4}));
  EXPECT_EQ(values(row.slice(0, 2, 5, 0)), (std::vector<int>{6, 6, 6, 6, 6}));
  EXPECT_EQ(values(row.slice(0, 3, 2, -3)), (std::vector<int>{7, 4}));
  EXPECT_EQ(values(all.slice(1, 1, 1)), (std::vector<int>{4, 5, 6, 7, 16, 17, 18, 19}));
  // Nothing from anywhere.
  EXPECT_EQ(row.slice(0, 4, 0).extent(0), 0);
  EXPECT_EQ(row.slice(0, 0, 0, -1).extent(0), 0);
}

TEST_F(TensorViews, SliceOutOfBounds) {
  const TensorView<int, 1> row = all[0][1];
  const std::string text = "TensorView: slice: range out of bounds";
  EXPECT_EQ(error_of([&] { row.slice(0, -1, 2); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 4, 1); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 3, 2); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, 5); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 2, 4, -1); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, 3, 2); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, -1); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, 1).slice(0, 0, 2); }), text);
}

/// Counts and steps whose product wraps around to a place inside.
TEST_F(TensorViews, SliceThatOverflows) {
  const TensorView<int, 1> row = all[0][1];
  const std::string text = "TensorView: slice: range out of bounds";
  const Index most = std::numeric_limits<Index>::max(), quarter = Index{1} << (sizeof(Index) * 8 - 2);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, quarter + 1, 4); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, most, 2); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, 3, most); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 3, most, most); }), text);
  EXPECT_EQ(error_of([&] { row.slice(0, 0, 3, -most - 1); }), text);
}

TEST_F(TensorViews, StepsOfOneElementDoNotMatter) {
  const Index most = std::numeric_limits<Index>::max();
  for (const Index step : {Index{0}, Index{7}, most, -most - 1}) EXPECT_EQ(all.slice(0, 1, 1, step)(0, 2, 3), 23);
}

TEST_F(TensorViews, AxesThatDoNotExist) {
  const std::string end = ": axis out of bounds";
  EXPECT_EQ(error_of([&] { all.select(3, 0); }), "TensorView: select" + end);
  EXPECT_EQ(error_of([&] { all.slice(3, 0, 1); }), "TensorView: slice" + end);
  EXPECT_EQ(error_of([&] { all.transpose(0, 3); }), "TensorView: transpose" + end);
  EXPECT_EQ(error_of([&] { all.transpose(4, 0); }), "TensorView: transpose" + end);
  EXPECT_EQ(error_of([&] { all.unsqueeze(4); }), "TensorView: unsqueeze" + end);
  EXPECT_EQ(error_of([&] { all.unflatten(3, 1); }), "TensorView: unflatten" + end);
}

TEST_F(TensorViews, SlicesOfNullStayNull) {
  const TensorView<int, 2> null(nullptr, {4, 5});
  EXPECT_EQ(null.slice(0, 2, 2).data_handle(), nullptr);
  EXPECT_EQ(null.select(1, 3).data_handle(), nullptr);
  EXPECT_EQ(null[2].data_handle(), nullptr);
}

TEST_F(TensorViews, Transpose) {
  EXPECT_EQ(all.transpose(0, 2).shape(), (Shape<3>{4, 3, 2}));
  EXPECT_EQ(all.transpose(0, 2)(3, 2, 1), 23);
  EXPECT_EQ(values(all.transpose(1, 1)), values(all));
}

TEST_F(TensorViews, Unsqueeze) {
  for (std::size_t axis = 0; axis <= 3; ++axis) {
    const TensorView<int, 4> more = all.unsqueeze(axis);
    EXPECT_EQ(more.extent(axis), 1);
    EXPECT_EQ(values(more.select(axis, 0)), values(all));
    EXPECT_EQ(values(more), values(all));
  }
}

TEST_F(TensorViews, Unflatten) {
  const TensorView<int, 4> halves = all.unflatten(2, 2);
  EXPECT_EQ(halves.shape(), (Shape<4>{2, 3, 2, 2}));
  EXPECT_EQ(values(halves), values(all));
  EXPECT_EQ(values(all.transpose(1, 2).unflatten(1, 4)), values(all.transpose(1, 2)));
  const std::string text = "TensorView: unflatten: parts out of bounds";
  for (const Index wrong : {0, -1, 3, 8}) EXPECT_EQ(error_of([&] { all.unflatten(2, wrong); }), text) << wrong;
}

// ---- Helpers

TEST_F(TensorViews, ViewOfChecksTheSize) {
  std::vector<float> vector(6);
  std::array<const double, 6> array{};
  const std::span<float> span(vector);
  static_assert(std::is_same_v<decltype(longview::view_of(vector, {2, 3})), TensorView<float, 2>>);
  static_assert(std::is_same_v<decltype(longview::view_of(array, {6})), TensorView<const double, 1>>);
  EXPECT_EQ(longview::view_of(span, {3, 2}).data_handle(), vector.data());
  EXPECT_EQ(error_of([&] { longview::view_of(vector, {2, 2}); }), "view_of: elements: size (got 6, expected 4 from shape)");
  EXPECT_EQ(error_of([&] { longview::view_of(vector, {6, 1, 2}); }), "view_of: elements: size (got 6, expected 12 from shape)");
}

TEST_F(TensorViews, ViewOfShapesThatMakeNoSense) {
  std::vector<float> six(6), none;
  EXPECT_NE(error_of([&] { longview::view_of(six, {-2, -3}); }), "no error");
  const Index large = Index{1} << (sizeof(Index) * 4);
  EXPECT_NE(error_of([&] { longview::view_of(none, {large, large}); }), "no error");
}

TEST_F(TensorViews, SplitHeads) {
  const TensorView<int, 2> rows(memory.data(), {4, 6});
  const TensorView<int, 4> heads = longview::split_heads(rows, 3);
  EXPECT_EQ(heads.shape(), (Shape<4>{1, 3, 4, 2}));
  EXPECT_EQ(heads(0, 2, 1, 1), 11);
  const TensorView<int, 4> batch = longview::split_heads(TensorView<int, 3>(memory.data(), {2, 2, 6}), 2);
  EXPECT_EQ(batch.shape(), (Shape<4>{2, 2, 2, 3}));
  EXPECT_EQ(batch(1, 1, 1, 2), 23);
  EXPECT_EQ(error_of([&] { longview::split_heads(rows, 4); }), "split_heads: heads: must divide the width (got 4, width 6)");
  EXPECT_EQ(error_of([&] { longview::split_heads(rows, 0); }), "split_heads: heads: must divide the width (got 0, width 6)");
  EXPECT_EQ(error_of([&] { longview::split_heads(rows, -2); }), "split_heads: heads: must divide the width (got -2, width 6)");
}

TEST_F(TensorViews, KeyValueViewKeepsItsPieces) {
  std::vector<float> memory_of_keys(100);
  const TensorView<float, 4> key(memory_of_keys.data(), {1, 1, 5, 4});
  const longview::KeyValueView<float> one(key, key), three{{key, key}, {key, key, 7}, {key, key}};
  EXPECT_EQ(one.size(), 1U);
  EXPECT_EQ(three.size(), 3U);
  EXPECT_FALSE(three[0].position.has_value());
  EXPECT_EQ(three[1].position, 7);
  EXPECT_EQ(three[2].key.extent(2), 5);
}

// ---- Bounds of elements, in debug builds alone

#ifdef NDEBUG
static_assert(LONGVIEW_HAS_ASSERT == 0);
TEST_F(TensorViews, ElementsAreNotCheckedInReleaseBuilds) {
  const TensorView<int, 1> row = all[0][1];
  const volatile Index beyond = 5;
  EXPECT_EQ(row(beyond), 9);
}
#else
static_assert(LONGVIEW_HAS_ASSERT == 1);
TEST_F(TensorViews, ElementsAreCheckedInDebugBuilds) {
  const volatile Index beyond = 4, below = -1;
  EXPECT_DEATH(all(0, 0, beyond), "");
  EXPECT_DEATH(all(below, 0, 0), "");
}
#endif

}  // namespace
