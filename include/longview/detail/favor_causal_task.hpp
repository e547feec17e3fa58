// SPDX-License-Identifier: Apache-2.0
/// \file
/// The tasks of causal kernelised attention, and their execution: streams, and sequences in segments.
#pragma once

#include <vector>

#include "longview/detail/favor_call.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// Where a stream of causal attention is kept: memory of a state, or none.
template <typename T>
struct FavorStreams {
  T* elements = nullptr;
  Index* indices = nullptr;
  Index position = 0;
};

template <typename T>
void start_stream(kernel::FavorStream<T>& stream, T* elements, Index* indices, Index features, Index value_dim) {
  for (Index at = 0; at < kernel::favor_stream_elements(features, value_dim); ++at) elements[at] = 0;
  for (Index at = 0; at < kernel::favor_stream_indices; ++at) indices[at] = 0;
  stream = kernel::favor_stream(elements, elements + kernel::favor_sums_elements(features, value_dim), indices, features,
                                value_dim);
  stream.shift[kernel::favor_chunk] = stream.shift[kernel::favor_chunk + 1] = static_cast<T>(kernel::favor_no_shift);
}

/// Memory of the streams of a state of shape (batch, key heads, features, value_dim).
template <typename T>
void allocate_streams(const Shape<4>& shape, std::vector<T>& elements, std::vector<Index>& indices) {
  const Run run;
  Contract contract("PerformerState", run);
  constexpr const char* names[] = {"batch", "heads", "features", "value_dim"};
  for (std::size_t axis = 0; axis < 4; ++axis) contract.at_least("shape", names[axis], shape[axis], 0);
  constexpr Index most = Index{1} << (sizeof(Index) == 8 ? 30 : 12);
  Index streams = 0, bytes = 0;
  if (contract.ok() &&
      !(shape[2] < most && shape[3] < most && multiply(shape[0], shape[1], streams) &&
        multiply(streams, kernel::favor_stream_elements(shape[2], shape[3]), bytes) && multiply(bytes, sizeof(T), bytes)))
    contract.fail("shape", "byte count overflows", true);
  if (!contract.accepted()) return;
  elements.resize(static_cast<std::size_t>(bytes) / sizeof(T));
  indices.resize(static_cast<std::size_t>(streams * kernel::favor_stream_indices));
}
template <typename T>
void restart_streams(const Shape<4>& shape, std::vector<T>& elements, std::vector<Index>& indices) {
  for (Index number = 0; number < shape[0] * shape[1]; ++number) {
    kernel::FavorStream<T> stream;
    start_stream(stream, elements.data() + number * kernel::favor_stream_elements(shape[2], shape[3]),
                 indices.data() + number * kernel::favor_stream_indices, shape[2], shape[3]);
  }
}

/// Causal, on more workers than there are (batch, key head)s: a search for the sums with which segments begin, then all
/// segments at once.
template <typename T>
class FavorCausalSegments {
 public:
  FavorCausalSegments(Contract& contract, const FavorCall<T>& call, const FavorSegmentation& segments)
      : contract_(contract), call_(call), segments_(segments), kernels_(kernel::favor_kernel<T>()) {}

  void execute() {
    const Index all = call_.query.extent(0) * call_.key_heads();
    const Index threads = call_.most_workers(contract_.run().concurrency());
    const Index own_elements = favor_worker_elements(call_, kernels_.block_rows, false);
    const Index causal_elements = favor_worker_elements(call_, kernels_.block_rows, true);
    kernel_elements_ = own_elements > causal_elements ? own_elements : causal_elements;
    const ByteCount slot = slot_size();
    ByteCount shared, each;
    each.add(kernel_elements_, sizeof(T)).add(chunk_elements(), sizeof(T)).add(call_.group(), sizeof(T));
    each.add(kernel::favor_stream_indices, sizeof(Index));
    ProjectionColumns<T>::add(shared, call_);
    slot_bytes_ = slot.bytes();
    shared.add(slot_bytes_, all);
    if (!slot.fits()) shared.add(-1, 2);
    const Scratch scratch(contract_, shared, each, threads);
    if (!scratch) return;
    Carver carver(scratch.shared());
    ProjectionColumns<T>::fill(carver, call_);
    call_.clear_projected_keys();
    slots_ = carver.take<std::byte>(0);

    const FavorDeal deal(contract_.run(), threads);
    const auto run = [&](kernel::FavorTask<T>& task, kernel::FavorStep step, Index worker) {
      task.step = step;
      kernels_.run(task, reinterpret_cast<T*>(scratch.of(worker)));
    };
    const auto over_blocks = [&](kernel::FavorStep step) {
      deal.over_blocks(all, call_.blocks(), [&](Index of, Index block, Index worker) {
        kernel::FavorTask<T> task = this->task(of);
        task.block_begin = block, task.block_end = block + 1;
        run(task, step, worker);
      });
    };
    if (call_.needs_maximum()) over_blocks(kernel::FavorStep::maximum);
    if (call_.shape.shift == kernel::FavorShift::running) {
      // The last segment finds its own.
      const Index length = (segments_.count - 1) * segments_.length;
      deal.over_stretches(all, length, [&](Index of, Index first, Index last, Index worker) {
        kernel::FavorTask<T> task = this->task(of);
        task.first = first, task.last = last;
        run(task, kernel::FavorStep::find_shifts, worker);
      });
      deal(all, [&](Index of, Index worker) {
        kernel::FavorTask<T> task = this->task(of);
        task.last = length;
        run(task, kernel::FavorStep::join_shifts, worker);
      });
    }
    over_blocks(kernel::FavorStep::segment_keys);
    deal(all * segments_.count, [&](Index number, Index worker) {
      kernel::FavorTask<T> task = this->task(number / segments_.count);
      begin_segment(task, number % segments_.count, scratch.of(worker));
      run(task, kernel::FavorStep::causal, worker);
    });
  }

 private:
  Index sums_elements() const { return kernel::favor_sums_elements(call_.features(), call_.shape.value_dim); }
  Index chunk_elements() const { return kernel::favor_chunk_elements(call_.features(), call_.shape.value_dim); }
  ByteCount slot_size() const {
    return ByteCount()
        .add(sums_elements(), segments_.count * static_cast<Index>(sizeof(T)))
        .add(kernel::favor_row(call_.features()), sizeof(T))
        .add(call_.key.extent(2), sizeof(T));
  }
  kernel::FavorTask<T> task(Index number) const {
    const Index item = number / call_.key_heads(), key_head = number % call_.key_heads();
    kernel::FavorTask<T> task = call_.task(item, key_head);
    call_.set_queries(task, item, key_head * call_.group());
    task.heads = call_.group();
    Carver carver(slots_ + number * slot_bytes_);
    task.segment.count = segments_.count, task.segment.length = segments_.length;
    task.segment.sums = carver.take<T>(segments_.count * sums_elements());
    task.sums.maxima = carver.take<T>(kernel::favor_row(call_.features()));
    task.segment.key_shift = carver.take<T>(call_.key.extent(2));
    return task;
  }
  void begin_segment(kernel::FavorTask<T>& task, Index number, std::byte* own) const {
    Carver carver(own);
    carver.take<T>(kernel_elements_);
    T* const sums = task.segment.sums + number * sums_elements();
    T* const chunk = carver.take<T>(chunk_elements());
    task.longest = carver.take<T>(call_.group());
    task.stream = kernel::favor_stream(sums, chunk, carver.take<Index>(kernel::favor_stream_indices), call_.features(),
                                       call_.shape.value_dim);
    task.segment.number = number, task.first = task.segment.begin();
    const Index end = task.first + segments_.length;
    if (end < task.last) task.last = end;
  }

  Contract& contract_;
  FavorCall<T> call_;
  const FavorSegmentation segments_;
  const kernel::FavorKernel<T> kernels_;
  Index kernel_elements_ = 0, slot_bytes_ = 0;
  std::byte* slots_ = nullptr;
};

/// Causal: one task per (batch, key head), or segments of them. False in a rehearsal.
template <typename T>
bool favor_causal(Contract& contract, FavorCall<T> call, const FavorStreams<T>& streams) {
  const Run& run = contract.run();
  const FavorSegmentation segments(call.query.extent(2), call.query.extent(0) * call.key_heads(), run.concurrency());
  if (streams.elements == nullptr && segments.count > 1 && call.query.extent(0) * call.query.extent(1) > 0) {
    FavorCausalSegments<T>(contract, call, segments).execute();
    return true;
  }
  const kernel::FavorKernel<T> kernels = kernel::favor_kernel<T>();
  const Index features = call.features(), elements = kernel::favor_stream_elements(features, call.shape.value_dim);
  const Index all = call.query.extent(2) == 0 ? 0 : call.query.extent(0) * call.key_heads();
  const Index workers = run.concurrency() < all ? run.concurrency() : all;
  const Index own_elements = favor_worker_elements(call, kernels.block_rows, true);
  ByteCount shared, each;
  each.add(own_elements, sizeof(T));
  if (all > 0) ProjectionColumns<T>::add(shared, call);
  if (call.needs_maximum()) each.add(kernel::favor_row(features), sizeof(T));
  if (call.shape.needs_longest_query()) each.add(call.group(), sizeof(T));
  if (streams.elements == nullptr) each.add(elements, sizeof(T)).add(kernel::favor_stream_indices, sizeof(Index));
  const Scratch scratch(contract, shared, each, workers);
  if (!scratch || all == 0) return static_cast<bool>(scratch);
  Carver columns(scratch.shared());
  ProjectionColumns<T>::fill(columns, call);
  call.clear_projected_keys();
  run_tasks(run, workers, all, [&](Index number, Index worker) {
    Carver carver(scratch.of(worker));
    T* const own = carver.take<T>(own_elements);
    const Index item = number / call.key_heads(), key_head = number % call.key_heads();
    kernel::FavorTask<T> task = call.task(item, key_head);
    call.set_queries(task, item, key_head * call.group());
    task.heads = call.group(), task.position = streams.position;
    if (call.needs_maximum()) {
      task.sums.maxima = carver.take<T>(kernel::favor_row(features));
      task.step = kernel::FavorStep::maximum;
      kernels.run(task, own);
    }
    if (call.shape.needs_longest_query()) task.longest = carver.take<T>(call.group());
    if (streams.elements != nullptr) {
      T* const from = streams.elements + number * elements;
      task.stream = kernel::favor_stream(from, from + kernel::favor_sums_elements(features, call.shape.value_dim),
                                         streams.indices + number * kernel::favor_stream_indices, features,
                                         call.shape.value_dim);
    } else {
      T* const from = carver.take<T>(elements);
      start_stream(task.stream, from, carver.take<Index>(kernel::favor_stream_indices), features, call.shape.value_dim);
    }
    task.step = kernel::FavorStep::causal;
    kernels.run(task, own);
  });
  return true;
}

}  // namespace longview
