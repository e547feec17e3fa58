// SPDX-License-Identifier: Apache-2.0
/// \file
/// The arguments of kernelised attention, and the scratch that its tasks need.
#pragma once

#include "longview/detail/scratch.hpp"
#include "longview/kernel/targets.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

template <typename T>
kernel::FavorMatrix<T> favor_matrix(const TensorView<T, 4>& view, Index item, Index head) {
  if (!view) return {};
  return {view.data_handle() + item * view.stride(0) + head * view.stride(1), view.stride(1), view.stride(2),
          view.stride(3)};
}

/// The arguments of a call, already checked.
template <typename T>
struct FavorCall {
  kernel::FavorShape<T> shape;
  TensorView<const T, 2> projection;
  TensorView<const T, 4> query, key, value;     // of the features alone: query absent, value absent
  TensorView<T, 4> out, projected_query, projected_key, key_sums;
  std::span<const Index> key_lengths{};
  TensorView<const std::uint8_t, 2> keep_keys;

  Index features() const { return shape.halves * shape.rows; }
  Index blocks() const { return (shape.rows + kernel::favor_block - 1) / kernel::favor_block; }
  Index key_heads() const { return key.extent(1); }
  /// No step has more tasks.
  Index most_workers(Index workers) const {
    const auto chunks = [](Index positions) { return (positions + kernel::favor_chunk - 1) / kernel::favor_chunk; };
    const Index tasks = query.extent(0) * (query.extent(1) * chunks(query.extent(2)) +
                                           key_heads() * (chunks(key.extent(2)) + blocks()));
    return workers < tasks || tasks == 0 ? workers : tasks;
  }
  Index group() const { return key_heads() > 0 ? query.extent(1) / key_heads() : 0; }
  bool needs_maximum() const {
    if (key_sums && shape.reads_saved) return false;
    if (shape.query_side)
      return shape.map == kernel::FavorMap::trigonometric && shape.shift == kernel::FavorShift::published;
    return shape.shift == kernel::FavorShift::published || shape.shift == kernel::FavorShift::rounded ||
           shape.shifts_channels();
  }

  kernel::FavorTask<T> task(Index item, Index key_head) const {
    kernel::FavorTask<T> task;
    task.shape = &shape;
    task.key = key.data_handle() + item * key.stride(0) + key_head * key.stride(1);
    task.key_row = key.stride(2), task.key_channel = key.stride(3);
    if (value) task.value = value.data_handle() + item * value.stride(0) + key_head * value.stride(1);
    task.value_row = value.stride(2), task.value_channel = value.stride(3);
    task.keys = key_lengths.empty() ? key.extent(2) : key_lengths[static_cast<std::size_t>(item)];
    if (keep_keys) {
      task.keep = keep_keys.data_handle() + (keep_keys.extent(0) == 1 ? 0 : item * keep_keys.stride(0));
      task.keep_row = keep_keys.extent(1) == 1 ? 0 : keep_keys.stride(1);
    }
    task.block_end = blocks();
    task.projected_key = favor_matrix(projected_key, item, key_head);
    task.saved_sums = favor_matrix(key_sums, item, key_head);
    return task;
  }
  /// Keys that do not exist have no U, which is left as 0.
  void clear_projected_keys() const {
    for (Index item = 0; projected_key && item < projected_key.extent(0); ++item)
      for (Index head = 0; head < projected_key.extent(1); ++head) {
        const kernel::FavorTask<T> of = task(item, head);
        for (Index j = 0; j < projected_key.extent(2); ++j)
          for (Index f = 0; !of.is_kept(j) && f < projected_key.extent(3); ++f) projected_key(item, head, j, f) = 0;
      }
  }
  void set_queries(kernel::FavorTask<T>& task, Index item, Index head) const {
    task.query = query.data_handle() + item * query.stride(0) + head * query.stride(1);
    task.query_head = query.stride(1), task.query_row = query.stride(2), task.query_channel = query.stride(3);
    task.projected_query = favor_matrix(projected_query, item, head);
    set_out(task, item, head);
    task.queries = task.last = query.extent(2);
  }
  void set_out(kernel::FavorTask<T>& task, Index item, Index head) const {
    task.out = out.data_handle() + item * out.stride(0) + head * out.stride(1);
    task.out_head = out.stride(1), task.out_row = out.stride(2), task.out_channel = out.stride(3);
  }
};

/// S^T, z and what belongs to them, in scratch.
template <typename T>
struct FavorSumsScratch {
  static ByteCount size(const FavorCall<T>& call) {
    const Index row = kernel::favor_row(call.features());
    return ByteCount()
        .add(2 * kernel::favor_values(call.shape.value_dim), row * static_cast<Index>(sizeof(T)))
        .add(call.blocks(), sizeof(T))
        .add(row, sizeof(T))
        .add(1, sizeof(Index));
  }
  static kernel::FavorSums<T> carve(Carver& carver, const FavorCall<T>& call) {
    const Index row = kernel::favor_row(call.features()), rows = kernel::favor_values(call.shape.value_dim);
    kernel::FavorSums<T> sums;
    sums.sums = carver.take<T>(2 * rows * row), sums.carry = sums.sums + rows * row;
    sums.shift = carver.take<T>(call.blocks());
    sums.maxima = carver.take<T>(row);
    sums.seen = carver.take<Index>(1);
    return sums;
  }
};

/// The projection transposed, once per call; the padding of a row repeats its last element.
template <typename T>
struct ProjectionColumns {
  static void add(ByteCount& bytes, const FavorCall<T>& call) {
    if (call.projection) bytes.add(call.shape.head_dim, kernel::favor_row(call.shape.rows) * static_cast<Index>(sizeof(T)));
  }
  static void fill(Carver& carver, FavorCall<T>& call) {
    if (!call.projection) return;
    const Index row = kernel::favor_row(call.shape.rows), last = call.shape.rows - 1;
    T* const columns = carver.take<T>(call.shape.head_dim * row);
    for (Index f = 0; f < row; ++f)
      for (Index c = 0; c < call.shape.head_dim; ++c) columns[c * row + f] = call.projection(f < last ? f : last, c);
    call.shape.columns = columns;
  }
};

/// Causal: a sequence in `count` segments of `length` positions, whole chunks, so that every worker has one.
struct FavorSegmentation {
  Index count = 1, length = 0;

  FavorSegmentation(Index positions, Index sequences, Index workers) {
    const auto pieces = [](Index whole, Index piece) { return whole / piece + (whole % piece != 0); };
    const Index chunks = pieces(positions, kernel::favor_chunk), wanted = sequences > 0 ? pieces(workers, sequences) : 1;
    if (chunks == 0) return;
    length = pieces(chunks, wanted < chunks ? wanted : chunks) * kernel::favor_chunk;
    count = pieces(positions, length);
  }
};

/// Deals out a step at a time.
class FavorDeal {
 public:
  FavorDeal(const Run& run, Index workers) : run_(run), workers_(workers) {}

  template <typename Body>
  void operator()(Index tasks, const Body& body) const {
    run_tasks(run_, workers_ < tasks ? workers_ : tasks, tasks, body);
  }
  /// body(item, block, worker)
  template <typename Body>
  void over_blocks(Index items, Index blocks, const Body& body) const {
    (*this)(items * blocks, [&](Index number, Index worker) { body(number / blocks, number % blocks, worker); });
  }
  /// body(item, first, last, worker): stretches of whole chunks, four for each worker.
  template <typename Body>
  void over_stretches(Index items, Index length, const Body& body) const {
    const Index rows = kernel::favor_chunk;
    Index stretch = (items * length / 4 / workers_ + rows - 1) / rows * rows;
    if (stretch < rows) stretch = rows;
    const Index stretches = (length + stretch - 1) / stretch;
    (*this)(items * stretches, [&](Index number, Index worker) {
      const Index first = number % stretches * stretch;
      body(number / stretches, first, first + stretch < length ? first + stretch : length, worker);
    });
  }

 private:
  const Run& run_;
  const Index workers_;
};

template <typename T>
Index favor_worker_elements(const FavorCall<T>& call, Index width, bool causal) {
  return kernel::favor_scratch(call.shape.head_dim, call.shape.value_dim, call.features(), width, causal,
                               causal && !call.needs_maximum());
}

template <typename T>
void check_key_mask(Contract& contract, const FavorCall<T>& call) {
  const Index batch = call.key.extent(0), keys = call.key.extent(2);
  if (!call.key_lengths.empty()) {
    contract.size("options.key_lengths", call.key_lengths, batch, "batch");
    for (std::size_t item = 0; contract.ok() && item < call.key_lengths.size(); ++item)
      if (call.key_lengths[item] < 0 || call.key_lengths[item] > keys)
        contract.fail("options.key_lengths[" + std::to_string(item) + "]",
                      "out of range (got " + std::to_string(call.key_lengths[item]) + ", expected 0 to " +
                          std::to_string(keys) + ")");
  }
  if (!call.keep_keys) return;
  contract.input("options.keep_keys", call.keep_keys);
  contract.broadcasts("options.keep_keys", call.keep_keys, Shape<2>{batch, keys});
}

}  // namespace longview
