// SPDX-License-Identifier: Apache-2.0
/// \file
/// What may be said about attention scores. One aggregate, shared by all softmax operators.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "longview/key_value_view.hpp"

namespace longview::inline v0 {

/// Where queries stand among the keys: query i has position i' = i + offset.
class Alignment {
 public:
  /// Offset 0: the first query stands at the first key.
  static const Alignment top_left;
  /// Offset keys - queries: the last query stands at the last key, as decoding needs it.
  static const Alignment bottom_right;
  /// For chunks of queries and slices of keys.
  LONGVIEW_INLINE static constexpr Alignment at(Index offset) { return Alignment(offset, false); }

  LONGVIEW_INLINE constexpr Index offset(Index queries, Index keys) const {
    return from_the_end_ ? keys - queries + offset_ : offset_;
  }

 private:
  LONGVIEW_INLINE constexpr Alignment(Index offset, bool from_the_end) : offset_(offset), from_the_end_(from_the_end) {}

  Index offset_;
  bool from_the_end_;
};
inline constexpr Alignment Alignment::top_left{0, false};
inline constexpr Alignment Alignment::bottom_right{0, true};

/// Each probability is left out with this probability, the others divided by what remains of 1: after the softmax, so that
/// the log-sum-exp is that of all. Who is left out depends on (seed, batch, head, query, key) alone, so that it is the same
/// in the backward call and for any threads, blocks or layout.
struct Dropout {
  double probability = 0;  ///< 0 ... 1
  std::uint64_t seed = 0;
};

/// s_ij = softcap(scale <query_i, key_j>) + bias_ij - slope |i' - j|, then exclusion, then sink, softmax and dropout.
///
/// An excluded key is absent: it joins neither maximum nor sum, and nothing of its row is visible in the result.
template <Storage T>
struct Scores {
  std::optional<double> scale{};                  ///< any finite number; 1 / sqrt(head_dim)
  std::optional<double> softcap{};                ///< cap * tanh(s / cap), cap > 0; none
  bool causal = false;                            ///< keys j <= i' only
  std::optional<Alignment> alignment{};           ///< must be named where lengths differ and i' matters
  std::span<const Index> key_lengths{};           ///< (batch); keys from there on do not exist, alignment counts extents
  TensorView<const std::uint8_t, 4> keep_mask{};  ///< (batch, heads, queries, keys), extents of 1 repeat; non-zero keeps
  TensorView<const T, 4> bias{};                  ///< likewise; -inf excludes
  std::span<const Compute<T>> alibi_slopes{};     ///< (heads)
  std::span<const Compute<T>> sinks{};            ///< (heads); a logit without a value
  Dropout dropout{};
};

/// Gradients of what Scores says. The bias may have extent 1 on axes that are to be summed.
template <Storage T>
struct ScoreGradients {
  TensorView<T, 4> bias{};
  std::span<Compute<T>> alibi_slopes{}, sinks{};
};

/// Rows and, if wanted, the natural log-sum-exp of each row's scores. A row without keys has 0 and -inf.
template <Element T>
struct Output {
  using Lse = std::conditional_t<std::is_const_v<T>, const Compute<Value<T>>, Compute<Value<T>>>;

  LONGVIEW_INLINE Output(TensorView<T, 4> rows, TensorView<Lse, 3> row_lse = {}) : out(rows), lse(row_lse) {}
  template <MdspanLike M>
  Output(const M&) requires(!ReadableAs<M, T, 4>) = delete;
  LONGVIEW_INLINE operator Output<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {out, lse};
  }

  TensorView<T, 4> out;    ///< (batch, heads, queries, value_dim)
  TensorView<Lse, 3> lse;  ///< (batch, heads, queries)
};

/// Of full and sliding-window attention: `out`, and `lse` if the loss depends on it, arrive; the others leave where they are
/// present, overwritten. What is asked for does not change the bits of what else is.
template <Storage T>
struct AttentionGradients {
  TensorView<const T, 4> out{};
  TensorView<const Compute<T>, 3> lse{};
  TensorView<T, 4> query{}, key{}, value{};
  ScoreGradients<T> scores{};
  SegmentGradients<T> segments{};  ///< instead of key and value, for a KeyValueView
};

}  // namespace longview
