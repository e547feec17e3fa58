// SPDX-License-Identifier: Apache-2.0
/// \file
/// The tasks of kernelised attention that is not causal, and of its features alone, and their execution.
#pragma once

#include "longview/detail/favor_call.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// Not causal: the sums over all keys, then the queries. Where there are fewer (batch, key head)s than workers, their sums
/// are shared and dealt out by blocks of features.
template <typename T>
class FavorBothWays {
 public:
  FavorBothWays(Contract& contract, const FavorCall<T>& call)
      : contract_(contract), call_(call), kernels_(kernel::favor_kernel<T>()) {}

  void execute() {
    const bool idle = call_.query.extent(2) == 0 && !call_.projected_key && !call_.key_sums;
    const Index all = idle ? 0 : call_.query.extent(0) * call_.key_heads();
    const Index threads = call_.most_workers(contract_.run().concurrency());
    const ByteCount sums = FavorSumsScratch<T>::size(call_);
    ByteCount shared, each;
    each.add(favor_worker_elements(call_, kernels_.block_rows, false), sizeof(T));
    kernel_bytes_ = each.bytes();
    const bool splits = all < threads;
    if (all > 0) ProjectionColumns<T>::add(shared, call_);
    sums_bytes_ = sums.bytes();
    splits ? shared.add(sums_bytes_, all) : each.add(sums_bytes_, 1);
    if (!sums.fits()) shared.add(-1, 2), contract_.fail("run", "workspace byte count overflows", true);
    const Scratch scratch(contract_, shared, each, all == 0 ? 0 : splits ? threads : all < threads ? all : threads);
    if (!scratch || all == 0) return;
    Carver carver(scratch.shared());
    ProjectionColumns<T>::fill(carver, call_);
    call_.clear_projected_keys();
    scratch_ = &scratch, sums_ = carver.take<std::byte>(0);
    splits ? split(all, threads) : whole(all, threads);
  }

 private:
  kernel::FavorTask<T> task(Index number, std::byte* sums) const {
    kernel::FavorTask<T> task = call_.task(number / call_.key_heads(), number % call_.key_heads());
    Carver carver(sums);
    task.sums = FavorSumsScratch<T>::carve(carver, call_);
    return task;
  }
  void run(kernel::FavorTask<T>& task, kernel::FavorStep step, std::byte* own) const {
    task.step = step;
    kernels_.run(task, reinterpret_cast<T*>(own));
  }
  void whole(Index all, Index threads) {
    run_tasks(contract_.run(), threads, all, [&](Index number, Index worker) {
      std::byte* const own = scratch_->of(worker);
      kernel::FavorTask<T> task = this->task(number, own + kernel_bytes_);
      if (call_.needs_maximum()) run(task, kernel::FavorStep::maximum, own);
      run(task, kernel::FavorStep::keys, own);
      for (Index head = 0; head < call_.group(); ++head) {
        call_.set_queries(task, number / call_.key_heads(), number % call_.key_heads() * call_.group() + head);
        run(task, kernel::FavorStep::queries, own);
      }
    });
  }
  void split(Index all, Index threads) {
    const Index blocks = call_.blocks(), tasks = all * blocks;
    const auto over_blocks = [&](kernel::FavorStep step) {
      run_tasks(contract_.run(), threads < tasks ? threads : tasks, tasks, [&](Index number, Index worker) {
        kernel::FavorTask<T> task = this->task(number / blocks, sums_ + number / blocks * sums_bytes_);
        task.block_begin = number % blocks, task.block_end = task.block_begin + 1;
        run(task, step, scratch_->of(worker));
      });
    };
    if (call_.needs_maximum()) over_blocks(kernel::FavorStep::maximum);
    over_blocks(kernel::FavorStep::keys);
    const Index heads = call_.query.extent(1), queries = call_.query.extent(2), rows = kernels_.block_rows;
    Index stretch = (call_.query.extent(0) * heads * queries / 4 / threads + rows - 1) / rows * rows;
    if (stretch < rows) stretch = rows;
    const Index stretches = (queries + stretch - 1) / stretch, parts = call_.query.extent(0) * heads * stretches;
    run_tasks(contract_.run(), threads < parts ? threads : parts, parts, [&](Index number, Index worker) {
      const Index head = number / stretches % heads, item = number / stretches / heads;
      const Index slot = item * call_.key_heads() + head / call_.group();
      kernel::FavorTask<T> task = this->task(slot, sums_ + slot * sums_bytes_);
      call_.set_queries(task, item, head);
      task.first = number % stretches * stretch;
      task.last = task.first + stretch < queries ? task.first + stretch : queries;
      run(task, kernel::FavorStep::queries, scratch_->of(worker));
    });
  }

  Contract& contract_;
  FavorCall<T> call_;
  kernel::FavorKernel<T> kernels_;
  Index kernel_bytes_ = 0, sums_bytes_ = 0;
  const Scratch* scratch_ = nullptr;
  std::byte* sums_ = nullptr;
};

/// The features alone: one task per (batch, head).
template <typename T>
void favor_features(Contract& contract, FavorCall<T> call) {
  const Run& run = contract.run();
  const kernel::FavorKernel<T> kernels = kernel::favor_kernel<T>();
  const Index all = call.key.extent(2) == 0 ? 0 : call.key.extent(0) * call.key.extent(1);
  const Index workers = run.concurrency() < all ? run.concurrency() : all;
  const Index own_elements = favor_worker_elements(call, kernels.block_rows, false);
  ByteCount shared, each;
  each.add(own_elements, sizeof(T));
  if (all > 0) ProjectionColumns<T>::add(shared, call);
  each.add(FavorSumsScratch<T>::size(call).bytes(), 1);
  const Scratch scratch(contract, shared, each, workers);
  if (!scratch || all == 0) return;
  Carver columns(scratch.shared());
  ProjectionColumns<T>::fill(columns, call);
  run_tasks(run, workers, all, [&](Index number, Index worker) {
    Carver carver(scratch.of(worker));
    T* const own = carver.take<T>(own_elements);
    const Index item = number / call.key.extent(1), head = number % call.key.extent(1);
    kernel::FavorTask<T> task = call.task(item, head);
    call.set_out(task, item, head);
    task.queries = call.key.extent(2);
    task.sums = FavorSumsScratch<T>::carve(carver, call);
    if (call.needs_maximum()) task.step = kernel::FavorStep::maximum, kernels.run(task, own);
    if (call.shape.shifts_channels()) task.step = kernel::FavorStep::keys, kernels.run(task, own);
    task.step = kernel::FavorStep::features;
    kernels.run(task, own);
  });
}

}  // namespace longview
