// SPDX-License-Identifier: Apache-2.0
/// \file
/// The two patterns of Longformer: rows of ordinary tokens, and rows of global tokens.
#pragma once

#include "longview/detail/band_pattern.hpp"
#include "longview/detail/sort.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// The real global tokens of every item, ascending: `most` places each, `count` of them used.
struct GlobalLists {
  Index* count;
  Index* tokens;
  Index most;

  const Index* of(Index item) const { return tokens + item * most; }
  bool contains(Index item, Index token) const {
    const Index* const list = of(item);
    Index low = 0, high = count[item];
    while (low < high) {
      const Index middle = low + (high - low) / 2;
      if (list[middle] < token)
        low = middle + 1;
      else
        high = middle;
    }
    return low < count[item] && list[low] == token;
  }
};

template <typename T>
bool is_real_token(const BandCall<T>& call, Index item, Index token) {
  const auto& lengths = call.scores->key_lengths;
  if (!lengths.empty() && token >= lengths[static_cast<std::size_t>(item)]) return false;
  const auto& keep = call.keep_tokens;
  return !keep || row_of(keep, item)[token * repeated(keep.extent(1), keep.stride(1))] != 0;
}

/// Rows of ordinary tokens: all global tokens in order of position, then the band without them.
template <typename T>
class LongformerRows : public BandPattern<T> {
 public:
  LongformerRows(const BandCall<T>& call, const GlobalLists& lists) : BandPattern<T>(call), call_(call), lists_(lists) {}

  void lane(const GridPlace& place, Index head, Index query, int lane, kernel::QueryBlock<T>& block) const {
    BandPattern<T>::lane(place, head, query, lane, block);
    if (!is_real_token(call_, place.item, query)) {
      block.position[lane] = kernel::nowhere;
      block.sink[lane] = -static_cast<T>(__builtin_inf());
    } else if (lists_.contains(place.item, query)) {
      block.position[lane] = kernel::nowhere;
      block.out[lane] = nullptr, block.lse[lane] = nullptr;
      block.sink[lane] = -static_cast<T>(__builtin_inf());
    }
  }

  /// Rows of every residue see the global tokens.
  bool residues_share_keys() const { return lists_.most > 0; }

  void segments(const GridPlace& place, kernel::AttentionTask<T>& task) const {
    const Index count = lists_.count[place.item];
    if (count > 0) {
      const Index key_head = place.group * this->heads_per_group() / call_.heads_per_key_head();
      kernel::KeySegment<T>& globals = task.segments[task.segment_count++];
      globals = this->band_segment(0, place.item, key_head, 0, 1);
      globals.rows = lists_.of(place.item), globals.count = count;
      if (call_.scores->causal) globals.after = 0;
      this->add_key_mask(place.item, 0, 1, globals);
    }
    const int band = task.segment_count;
    BandPattern<T>::segments(place, task);
    for (int s = band; s < task.segment_count; ++s) {
      task.segments[s].opens_range = count > 0;
      task.segments[s].excluded = lists_.of(place.item), task.segments[s].excluded_count = count;
    }
  }

 private:
  const BandCall<T>& call_;
  const GlobalLists& lists_;
};

/// Rows of global tokens: every real token.
template <typename T>
class GlobalRows {
 public:
  GlobalRows(const BandCall<T>& call, const GlobalLists& lists) : call_(all_keys(call)), band_(call_), lists_(lists) {}

  Index items() const { return band_.items(); }
  Index groups() const { return band_.groups(); }
  Index residues(Index) const { return 1; }
  bool residues_share_keys() const { return false; }
  Index most_rows(Index) const { return band_.heads_per_group() * lists_.most; }
  Index span() const { return band_.span(); }
  RowSet rows(const GridPlace& place) const {
    RowSet rows = band_.rows(place);
    rows.rows = lists_.of(place.item), rows.count = lists_.count[place.item];
    return rows;
  }
  void lane(const GridPlace& place, Index head, Index query, int lane, kernel::QueryBlock<T>& block) const {
    band_.lane(place, head, query, lane, block);
  }
  void segments(const GridPlace& place, kernel::AttentionTask<T>& task) const { band_.segments(place, task); }

 private:
  static BandCall<T> all_keys(BandCall<T> call) {
    call.window = {unlimited, unlimited, 1};
    call.head_windows = {};
    return call;
  }

  BandCall<T> call_;
  BandPattern<T> band_;
  const GlobalLists& lists_;
};

}  // namespace longview
