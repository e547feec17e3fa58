// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention to parts of the keys, and the merge of such partial results: split keys, rings, machines.
///
/// Sources: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018, section 3, arXiv:1805.02867; Dao et
/// al., "FlashAttention", 2022, section 3.1, arXiv:2205.14135; Liu et al., "Ring Attention", 2023, arXiv:2310.01889.
#pragma once

#include "longview/detail/scratch.hpp"
#include "longview/kernel/targets.hpp"
#include "longview/scores.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD {
namespace detail {

/// A merge cut into tasks: stretches of rows of one (batch, head).
template <typename T>
class MergeWork {
 public:
  MergeWork(std::span<const Output<const T>> parts, const Output<T>& whole) : parts_(parts), whole_(whole) {}

  Index tasks() const { return whole_.out.extent(0) * whole_.out.extent(1) * stretches(); }

  /// Bytes for each worker.
  ByteCount scratch() const {
    const Index count = static_cast<Index>(parts_.size());
    return ByteCount()
        .add(count, kernel::most_merge_lanes * static_cast<Index>(sizeof(T)))
        .add(count, sizeof(kernel::MergePart<T>))
        .add(count, sizeof(kernel::MergeSource<T>));
  }

  void run(Index number, std::byte* scratch) const {
    const auto& out = whole_.out;
    const auto& lse = whole_.lse;
    const Index first = number % stretches() * rows_per_task, head = number / stretches() % out.extent(1);
    const Index item = number / stretches() / out.extent(1), count = static_cast<Index>(parts_.size());
    Carver carver(scratch);
    kernel::MergeTask<T> task{};
    task.weights = carver.take<T>(count * kernel::most_merge_lanes);
    auto* const parts = carver.take<kernel::MergePart<T>>(count);
    task.sources = carver.take<kernel::MergeSource<T>>(count);
    for (Index p = 0; p < count; ++p) {
      const auto& from = parts_[static_cast<std::size_t>(p)].out;
      const auto& own_lse = parts_[static_cast<std::size_t>(p)].lse;
      parts[p] = {at(from, item, head, first), at(own_lse, item, head, first), from.stride(2), from.stride(3),
                  own_lse.stride(2)};
    }
    task.parts = parts, task.part_count = count;
    task.rows = out.extent(2) - first < rows_per_task ? out.extent(2) - first : rows_per_task;
    task.channels = out.extent(3);
    task.out = at(out, item, head, first), task.out_row = out.stride(2), task.out_channel = out.stride(3);
    if (lse) task.lse = at(lse, item, head, first), task.lse_row = lse.stride(2);
    kernel_.run(task);
  }

 private:
  static constexpr Index rows_per_task = 64;
  Index stretches() const { return (whole_.out.extent(2) + rows_per_task - 1) / rows_per_task; }
  template <typename View>
  static auto at(const View& view, Index item, Index head, Index row) {
    return view.data_handle() + item * view.stride(0) + head * view.stride(1) + row * view.stride(2);
  }

  std::span<const Output<const T>> parts_;
  const Output<T>& whole_;
  const kernel::MergeKernel<T> kernel_ = kernel::merge_kernel<T>();
};

}  // namespace detail

/// The compiled body, named in `extern template` only.
template <Storage T>
struct Merge {
  static void forward(std::span<const Output<const T>> parts, const Output<T>& whole, Run run) {
    detail::Contract contract("merge", run);
    check_whole(contract, whole);
    if (parts.empty() && !contract.accepted()) return;
    // One contract for each part: there may be any number of them.
    for (std::size_t p = 0; p < parts.size(); ++p)
      if (!check_part(contract, parts[p], p, whole)) return;
    const detail::MergeWork<T> work(parts, whole);
    const Index tasks = work.tasks(), workers = run.concurrency() < tasks ? run.concurrency() : tasks;
    const detail::Scratch scratch(contract, {}, work.scratch(), workers);
    if (!scratch || tasks == 0) return;
    detail::run_tasks(run, workers, tasks, [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
  }

 private:
  static void check_whole(detail::Contract& contract, const Output<T>& whole) {
    const auto& out = whole.out;
    contract.output("whole.out", out);
    if (!whole.lse) return;
    contract.output("whole.lse", whole.lse);
    contract.shape("whole.lse", whole.lse, Shape<3>{out.extent(0), out.extent(1), out.extent(2)});
  }
  static bool check_part(const detail::Contract& of_whole, const Output<const T>& part, std::size_t number,
                         const Output<T>& whole) {
    detail::Contract contract("merge", of_whole.run());
    const std::string name = "parts[" + std::to_string(number) + "]", out = name + ".out", lse = name + ".lse";
    check_whole(contract, whole);
    contract.input(out.c_str(), part.out);
    contract.shape(out, part.out, whole.out.shape());
    contract.require(static_cast<bool>(part.lse), lse.c_str(), "is required");
    contract.input(lse.c_str(), part.lse);
    contract.shape(lse, part.lse, Shape<3>{part.out.extent(0), part.out.extent(1), part.out.extent(2)});
    return contract.accepted();
  }
};

/// whole = softmax over the union of the parts' keys: lse = log sum_p e^lse_p, out = sum_p e^(lse_p - lse) out_p.
///
/// A part whose lse is -inf is empty and adds exactly nothing, whatever its rows hold: merging it with x gives x, bit
/// for bit. All empty, or no parts: 0 and -inf. A sink belongs to one part. Sums run in the order of the parts;
/// exponentials are those of the instruction set in use.
/// \param parts (batch, heads, queries, value_dim) with their log-sum-exp (batch, heads, queries), as attention writes them
/// \param whole likewise, the log-sum-exp if wanted; written
/// \throws ContractError on shapes that disagree, a part without lse, outputs that overlap anything; SizeError on overflow
///
/// Work: parts * batch * heads * queries * value_dim multiply-adds, every row read once. Scratch: at most 192 bytes a
/// worker and part.
template <Storage T>
void merge(std::span<const Output<const std::type_identity_t<T>>> parts, const Output<T>& whole, Run run = {}) {
  Merge<T>::forward(parts, whole, run);
}

}  // namespace longview
