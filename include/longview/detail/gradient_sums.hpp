// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a backward call wants, and those of its gradients that are sums over tasks.
#pragma once

#include <algorithm>

#include "longview/detail/band_pattern.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// What arrives with a backward call and what is wanted beside the gradients of keys and values, already checked.
template <typename T>
struct BackwardCall {
  Output<const T> out{{}};
  TensorView<const T, 4> d_out{};
  TensorView<const T, 3> d_lse{};
  TensorView<T, 4> d_query{};
  ScoreGradients<T> scores{};
  TensorView<T, 3> d_position{};
  TensorView<T, 2> d_content_bias{}, d_position_bias{};
};

/// Sets views to zero, each of them by (first axis, second axis).
template <typename T>
class ZeroFill {
 public:
  template <std::size_t Rank>
  void add(const TensorView<T, Rank>& view) {
    if (!view) return;
    if constexpr (Rank < 4) {
      add(view.unsqueeze(0));
    } else {
      views_[count_++] = view;
      tasks_ += view.extent(0) * view.extent(1);
    }
  }
  void fill(const Run& run) const {
    run_tasks(run, run.concurrency() < tasks_ ? run.concurrency() : tasks_, tasks_, [&](Index task, Index) { zero(task); });
  }

 private:
  void zero(Index task) const {
    std::size_t number = 0;
    for (; task >= views_[number].extent(0) * views_[number].extent(1); ++number)
      task -= views_[number].extent(0) * views_[number].extent(1);
    const auto& view = views_[number];
    for (Index row = 0; row < view.extent(2); ++row) {
      T* const at = element_at(view, task / view.extent(1), task % view.extent(1), row);
      if (view.stride(3) == 1)
        std::fill_n(at, view.extent(3), T{0});
      else
        for (Index c = 0; c < view.extent(3); ++c) at[c * view.stride(3)] = 0;
    }
  }

  TensorView<T, 4> views_[2 * KeyValueView<T>::most_segments + 4];
  std::size_t count_ = 0;
  Index tasks_ = 0;
};

/// Sums over the rows of each (batch, head), in double, and then over the batch.
template <typename T>
class HeadSums {
 public:
  HeadSums(const BandCall<T>& call, const BackwardCall<T>& wanted, bool relative)
      : items_(call.query.extent(0)),
        heads_(call.query.extent(1)),
        channels_(relative ? call.query.extent(3) : 0),
        wanted_(wanted) {}

  void add_shared(ByteCount& bytes) const { bytes.add(elements(), sizeof(double)); }
  void begin(Carver& carver) {
    sums_ = carver.take<double>(elements());
    for (Index at = 0; at < elements(); ++at) sums_[at] = 0;
  }
  double* slope(Index item, Index head) const { return sums_ + (item * heads_ + head) * row(); }
  double* sink(Index item, Index head) const { return slope(item, head) + 1; }
  double* content_bias(Index item, Index head) const { return slope(item, head) + 2; }
  double* position_bias(Index item, Index head) const { return slope(item, head) + 2 + channels_; }

  void finish() const {
    for (Index head = 0; head < heads_; ++head) {
      const auto at = static_cast<std::size_t>(head);
      if (!wanted_.scores.alibi_slopes.empty()) wanted_.scores.alibi_slopes[at] = static_cast<T>(over_items(head, 0));
      if (!wanted_.scores.sinks.empty()) wanted_.scores.sinks[at] = static_cast<T>(over_items(head, 1));
    }
    finish_channels(wanted_.d_content_bias, 2);
    finish_channels(wanted_.d_position_bias, 2 + channels_);
  }

 private:
  Index row() const { return 2 + 2 * channels_; }
  Index elements() const {
    const bool any = !wanted_.scores.alibi_slopes.empty() || !wanted_.scores.sinks.empty() || wanted_.d_content_bias ||
                     wanted_.d_position_bias;
    return any ? items_ * heads_ * row() : 0;
  }
  double over_items(Index head, Index element) const {
    double sum = 0;
    for (Index item = 0; item < items_; ++item) sum += slope(item, head)[element];
    return sum;
  }
  /// An extent of 1 sums over the heads.
  void finish_channels(const TensorView<T, 2>& to, Index first) const {
    for (Index row = 0; row < to.extent(0); ++row)
      for (Index c = 0; c < to.extent(1); ++c) {
        double sum = 0;
        for (Index head = row; head < (to.extent(0) == 1 ? heads_ : row + 1); ++head) sum += over_items(head, first + c);
        to.data_handle()[row * to.stride(0) + c * to.stride(1)] = static_cast<T>(sum);
      }
  }

  Index items_, heads_, channels_;
  const BackwardCall<T>& wanted_;
  double* sums_ = nullptr;
};

/// The gradients of a call that are sums, to be zeros before anything is added.
template <typename T>
ZeroFill<T> sums_of(const BandCall<T>& call, const BackwardCall<T>& wanted) {
  ZeroFill<T> zeros;
  for (std::size_t s = 0; s < call.d_keys.size(); ++s) zeros.add(call.d_keys[s].key), zeros.add(call.d_keys[s].value);
  zeros.add(wanted.scores.bias);
  zeros.add(wanted.d_position);
  return zeros;
}

}  // namespace longview
