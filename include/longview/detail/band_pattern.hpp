// SPDX-License-Identifier: Apache-2.0
/// \file
/// Full and windowed attention as a pattern: each query sees a band of keys around its position.
#pragma once

#include <limits>

#include "longview/detail/attention_task.hpp"
#include "longview/detail/random.hpp"
#include "longview/detail/repeat.hpp"
#include "longview/key_value_view.hpp"
#include "longview/window.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// The arguments of a call, already checked.
template <typename T>
struct BandCall {
  TensorView<const T, 4> query;
  Output<T> out{{}};
  KeyValueView<T> keys{{}, {}};
  SegmentGradients<T> d_keys{};  // backward: where wanted
  Index segment_position[KeyValueView<T>::most_segments] = {};
  const Scores<T>* scores = nullptr;
  TensorView<const std::uint8_t, 2> keep_tokens{};  // (batch, keys); 0 is padding
  Window window{unlimited, unlimited, 1};
  std::span<const Window> head_windows{};
  Index offset = 0;     // position of query 0
  Index positions = 0;  // of all keys: 0 ... positions - 1

  Index key_heads() const { return keys[0].key.extent(1); }
  /// 1 in a call without heads.
  Index heads_per_key_head() const { return query.extent(1) > 0 ? query.extent(1) / key_heads() : 1; }
  const Window& window_of(Index head) const {
    return head_windows.empty() ? window : head_windows[static_cast<std::size_t>(head)];
  }
  /// A mask that says the same to every query and head leaves keys out before the kernel sees them.
  bool keep_mask_is_by_key() const {
    return !keep_tokens && scores->keep_mask.extent(1) == 1 && scores->keep_mask.extent(2) == 1;
  }
};

LONGVIEW_INLINE Index remainder(Index value, Index by) { return (value % by + by) % by; }
/// steps * dilation, saturating.
LONGVIEW_INLINE Index reach(Index steps, Index dilation) {
  return steps >= kernel::unreachable / dilation ? kernel::unreachable : steps * dilation;
}

template <typename T>
LONGVIEW_INLINE void set_dropout_key(const Dropout& dropout, Index item, Index head, Index query, int lane,
                                     kernel::QueryBlock<T>& block) {
  const auto row = static_cast<std::uint64_t>(query);
  const auto words = philox({static_cast<std::uint32_t>(item), static_cast<std::uint32_t>(head), static_cast<std::uint32_t>(row),
                             static_cast<std::uint32_t>(row >> 32)}, dropout.seed);
  block.dropout_key[0][lane] = words[0], block.dropout_key[1][lane] = words[1];
}

template <typename T>
class BandPattern {
 public:
  /// `may_fold`: blocks may hold rows of several heads that share keys.
  explicit BandPattern(const BandCall<T>& call, bool may_fold = true) : call_(call), may_fold_(may_fold) {}

  /// Where queries are fewer than lanes. Not where each head has a window of its own or rows are strided by a dilation.
  bool folds_heads() const {
    return may_fold_ && call_.query.extent(2) < kernel::most_lanes && call_.head_windows.empty() &&
           call_.window.dilation == 1;
  }
  Index heads_per_group() const { return folds_heads() ? call_.heads_per_key_head() : 1; }

  Index items() const { return call_.query.extent(0); }
  Index groups() const { return call_.query.extent(1) / heads_per_group(); }
  Index residues(Index group) const { return dilation(group); }
  bool residues_share_keys() const { return false; }
  Index most_rows(Index group) const {
    return heads_per_group() * ((call_.query.extent(2) + dilation(group) - 1) / dilation(group));
  }
  /// Keys that a row sees, in the narrowest window.
  Index span() const {
    Index least = call_.positions;
    for (Index group = 0; group < groups(); ++group) {
      const Window& window = call_.window_of(group * heads_per_group());
      const Index after = call_.scores->causal ? 0 : window.after;
      if (window.before < least && after < least - window.before) least = window.before + after;
    }
    return least;
  }
  RowSet rows(const GridPlace& place) const {
    const Index step = dilation(place.group), first = remainder(place.residue - call_.offset, step);
    const Index queries = call_.query.extent(2);
    return {place.group * heads_per_group(), heads_per_group(), first, step,
            first < queries ? (queries - first + step - 1) / step : 0};
  }

  void lane(const GridPlace& place, Index head, Index query, int lane, kernel::QueryBlock<T>& block) const {
    const auto& q = call_.query;
    const auto &out = call_.out.out;
    const auto& lse = call_.out.lse;
    const Scores<T>& scores = *call_.scores;
    block.query[lane] = element_at(q, place.item, head, query);
    block.out[lane] = element_at(out, place.item, head, query);
    block.lse[lane] = lse ? element_at(lse, place.item, head, query) : nullptr;
    block.position[lane] = query + call_.offset;
    if (scores.keep_mask) block.keep_mask[lane] = row_of(scores.keep_mask, place.item, head, query);
    if (scores.bias) block.bias[lane] = row_of(scores.bias, place.item, head, query);
    if (!scores.alibi_slopes.empty()) block.slope[lane] = scores.alibi_slopes[static_cast<std::size_t>(head)];
    if (!scores.sinks.empty()) block.sink[lane] = scores.sinks[static_cast<std::size_t>(head)];
    if (scores.dropout.probability > 0) set_dropout_key(scores.dropout, place.item, head, query, lane, block);
  }

  void segments(const GridPlace& place, kernel::AttentionTask<T>& task) const {
    const Index head = place.group * heads_per_group(), key_head = head / call_.heads_per_key_head();
    const Window& window = call_.window_of(head);
    const Index step = dilation(place.group);
    Index column = 0;
    for (std::size_t s = 0; s < call_.keys.size(); ++s) {
      const KeyValue<T>& piece = call_.keys[s];
      const Index position = call_.segment_position[s], first = remainder(place.residue - position, step);
      const Index visible = keys_in(piece, position, place.item);
      if (first < visible) {
        kernel::KeySegment<T>& segment = task.segments[task.segment_count++];
        segment = band_segment(s, place.item, key_head, first, step);
        segment.count = (visible - first + step - 1) / step;
        segment.position = position + first;
        segment.index = (position + first - place.residue) / step;
        segment.column = column + first, segment.column_step = step;
        segment.before = reach(window.before, step);
        segment.after = call_.scores->causal && window.after > 0 ? 0 : reach(window.after, step);
        add_key_mask(place.item, column + first, step, segment);
      }
      column += piece.key.extent(2);
    }
  }

 protected:
  kernel::KeySegment<T> band_segment(std::size_t number, Index item, Index head, Index first, Index step) const {
    const auto &key = call_.keys[number].key, &value = call_.keys[number].value;
    const auto &d_key = call_.d_keys[number].key, &d_value = call_.d_keys[number].value;
    kernel::KeySegment<T> segment;
    segment.key = element_at(key, item, head, first), segment.value = element_at(value, item, head, first);
    segment.key_row = key.stride(2) * step, segment.key_channel = key.stride(3);
    segment.value_row = value.stride(2) * step, segment.value_channel = value.stride(3);
    if (d_key) segment.d_key = element_at(d_key, item, head, first);
    if (d_value) segment.d_value = element_at(d_value, item, head, first);
    segment.d_key_row = d_key.stride(2) * step, segment.d_key_channel = d_key.stride(3);
    segment.d_value_row = d_value.stride(2) * step, segment.d_value_channel = d_value.stride(3);
    segment.step = step;
    return segment;
  }

  void add_key_mask(Index item, Index column, Index step, kernel::KeySegment<T>& segment) const {
    const auto &mask = call_.scores->keep_mask;
    const auto& tokens = call_.keep_tokens;
    const bool by_mask = mask && call_.keep_mask_is_by_key();
    if (!tokens && !by_mask) return;
    const Index stride = by_mask ? repeated(mask.extent(3), mask.stride(3)) : repeated(tokens.extent(1), tokens.stride(1));
    segment.keep = (by_mask ? row_of(mask, item, 0, 0) : row_of(tokens, item)) + column * stride;
    segment.keep_row = step * stride;
  }

 private:
  // Farther apart than any two positions, only the query itself is left; that is also where the number of classes may end.
  Index dilation(Index group) const {
    const Index most = call_.query.extent(2) + call_.positions + (call_.offset < 0 ? -call_.offset : call_.offset) + 1;
    const Index own = call_.window_of(group * heads_per_group()).dilation;
    return own < most ? own : most;
  }
  Index keys_in(const KeyValue<T>& piece, Index position, Index item) const {
    Index keys = piece.key.extent(2);
    if (!call_.scores->key_lengths.empty()) {
      const Index length = call_.scores->key_lengths[static_cast<std::size_t>(item)] - position;
      if (length < keys) keys = length > 0 ? length : 0;
    }
    return keys;
  }
  const BandCall<T>& call_;
  const bool may_fold_;
};

/// The cap as an element: 0 for none, and for one beyond the range of T, which changes no score.
template <typename T>
T softcap_of(const Scores<T>& scores) {
  const double cap = scores.softcap.value_or(0), least = (std::numeric_limits<T>::min)();
  if (cap > static_cast<double>((std::numeric_limits<T>::max)())) return 0;
  return static_cast<T>(cap > 0 && cap < least ? least : cap);
}

/// The position of query 0. Queries of keys in pieces are the newest positions unless the alignment says otherwise.
template <typename T>
Index offset_of(const BandCall<T>& call, bool in_pieces) {
  const Alignment otherwise = in_pieces ? Alignment::bottom_right : Alignment::top_left;
  return call.scores->alignment.value_or(otherwise).offset(call.query.extent(2), call.positions);
}

/// What the kernel needs to know of a call beside its plan.
template <typename T>
kernel::AttentionShape<T> shape_of(const BandCall<T>& call) {
  const Scores<T>& scores = *call.scores;
  kernel::AttentionShape<T> shape;
  shape.head_dim = call.query.extent(3);
  shape.value_dim = call.keys[0].value.extent(3);
  shape.query_channel = call.query.stride(3);
  shape.out_channel = call.out.out.stride(3);
  shape.scale = static_cast<T>(scores.scale ? *scores.scale : 1 / __builtin_sqrt(static_cast<double>(shape.head_dim)));
  shape.softcap = softcap_of<T>(scores);
  shape.has_keep_mask = scores.keep_mask && !call.keep_mask_is_by_key();
  shape.has_bias = static_cast<bool>(scores.bias);
  shape.has_slopes = !scores.alibi_slopes.empty();
  shape.has_sinks = !scores.sinks.empty();
  shape.keep_mask_column = repeated(scores.keep_mask.extent(3), scores.keep_mask.stride(3));
  shape.bias_column = repeated(scores.bias.extent(3), scores.bias.stride(3));
  shape.dropped = static_cast<std::uint64_t>(scores.dropout.probability * 0x1p32);
  shape.has_dropout = shape.dropped > 0;
  if (scores.dropout.probability < 1) shape.kept_factor = static_cast<T>(1 / (1 - scores.dropout.probability));
  return shape;
}

}  // namespace longview
