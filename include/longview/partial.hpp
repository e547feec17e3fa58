// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention to parts of the keys, and the merge of such partial results: split keys, rings, machines.
///
/// Sources: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018, section 3, arXiv:1805.02867; Dao et
/// al., "FlashAttention", 2022, section 3.1, arXiv:2205.14135; Liu et al., "Ring Attention", 2023, arXiv:2310.01889.
#pragma once

#include "longview/detail/repeat.hpp"
#include "longview/detail/scratch.hpp"
#include "longview/kernel/targets.hpp"
#include "longview/scores.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD {
namespace detail {

/// Stretches of rows of each (batch, head).
class MergeGrid {
 public:
  explicit MergeGrid(const Shape<4>& out) : out_(out) {}

  Index tasks() const { return out_[0] * out_[1] * stretches(); }
  struct Place {
    Index item, head, first, rows;
  };
  Place place(Index number) const {
    const Index first = number % stretches() * rows_per_task, head = number / stretches();
    const Index left = out_[2] - first;
    return {head / out_[1], head % out_[1], first, left < rows_per_task ? left : rows_per_task};
  }

 private:
  static constexpr Index rows_per_task = 64;
  Index stretches() const { return (out_[2] + rows_per_task - 1) / rows_per_task; }

  Shape<4> out_;
};

template <typename U>
kernel::MergeRows<U> merge_rows(const Output<U>& of, const MergeGrid::Place& at) {
  return {of.out ? element_at(of.out, at.item, at.head, at.first) : nullptr,
          of.lse ? element_at(of.lse, at.item, at.head, at.first) : nullptr, of.out.stride(2), of.out.stride(3),
          of.lse.stride(2)};
}

/// A merge cut into tasks.
template <typename T>
class MergeWork {
 public:
  MergeWork(std::span<const Output<const T>> parts, const Output<T>& whole)
      : grid_(whole.out.shape()), parts_(parts), whole_(whole) {}

  Index tasks() const { return grid_.tasks(); }

  /// Bytes for each worker.
  ByteCount scratch() const {
    const Index count = static_cast<Index>(parts_.size());
    return ByteCount()
        .add(count, kernel::most_merge_lanes * static_cast<Index>(sizeof(T)))
        .add(count, sizeof(kernel::MergePart<T>))
        .add(count, sizeof(kernel::MergeSource<T>));
  }

  void run(Index number, std::byte* scratch) const {
    const MergeGrid::Place place = grid_.place(number);
    const Index count = static_cast<Index>(parts_.size());
    Carver carver(scratch);
    kernel::MergeTask<T> task{};
    task.weights = carver.take<T>(count * kernel::most_merge_lanes);
    auto* const parts = carver.take<kernel::MergePart<T>>(count);
    task.sources = carver.take<kernel::MergeSource<T>>(count);
    for (Index p = 0; p < count; ++p) parts[p] = merge_rows(parts_[static_cast<std::size_t>(p)], place);
    task.parts = parts, task.part_count = count, task.rows = place.rows, task.channels = whole_.out.extent(3);
    const kernel::MergeRows<T> to = merge_rows(whole_, place);
    task.out = to.out, task.out_row = to.out_row, task.out_channel = to.out_channel;
    task.lse = to.lse, task.lse_row = to.lse_row;
    kernel_.run(task);
  }

 private:
  const MergeGrid grid_;
  std::span<const Output<const T>> parts_;
  const Output<T>& whole_;
  const kernel::MergeKernel<T> kernel_ = kernel::merge_kernel<T>();
};

/// The gradients of a merge cut into tasks.
template <typename T>
class MergeGradientWork {
 public:
  MergeGradientWork(std::span<const Output<const T>> parts, const Output<const T>& whole,
                    const Output<const T>& d_whole, std::span<const Output<T>> d_parts)
      : grid_(whole.out.shape()), parts_(parts), whole_(whole), d_whole_(d_whole), d_parts_(d_parts) {}

  Index tasks() const { return parts_.empty() ? 0 : grid_.tasks(); }

  /// Bytes for each worker.
  ByteCount scratch() const {
    const Index count = static_cast<Index>(parts_.size());
    return ByteCount().add(count, sizeof(kernel::MergePart<T>)).add(count, sizeof(kernel::MergeRows<T>));
  }

  void run(Index number, std::byte* scratch) const {
    const MergeGrid::Place place = grid_.place(number);
    const Index count = static_cast<Index>(parts_.size());
    Carver carver(scratch);
    auto* const parts = carver.take<kernel::MergePart<T>>(count);
    auto* const gradients = carver.take<kernel::MergeRows<T>>(count);
    for (Index p = 0; p < count; ++p) {
      parts[p] = merge_rows(parts_[static_cast<std::size_t>(p)], place);
      gradients[p] = merge_rows(d_parts_[static_cast<std::size_t>(p)], place);
    }
    kernel_.run({parts, gradients, count, place.rows, whole_.out.extent(3), merge_rows(whole_, place),
                 merge_rows(d_whole_, place)});
  }

 private:
  const MergeGrid grid_;
  std::span<const Output<const T>> parts_;
  const Output<const T>&whole_, &d_whole_;
  std::span<const Output<T>> d_parts_;
  const kernel::MergeGradientKernel<T> kernel_ = kernel::merge_gradient_kernel<T>();
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

  static void backward(std::span<const Output<const T>> parts, const Output<const T>& whole,
                       const Output<const T>& d_whole, std::span<const Output<T>> d_parts, Run run) {
    detail::Contract contract("merge_backward", run);
    check_arrivals(contract, whole, d_whole);
    if (d_parts.size() != parts.size())
      contract.fail("d_parts", "size (got " + std::to_string(d_parts.size()) + ", expected " +
                                   std::to_string(parts.size()) + " from parts)");
    if (!contract.accepted()) return;
    for (std::size_t p = 0; p < parts.size(); ++p)
      for (std::size_t other = 0; other < parts.size(); ++other)
        if (!check_gradient(contract, parts, whole, d_whole, d_parts, p, other)) return;
    const detail::MergeGradientWork<T> work(parts, whole, d_whole, d_parts);
    const Index tasks = work.tasks(), workers = run.concurrency() < tasks ? run.concurrency() : tasks;
    const detail::Scratch scratch(contract, {}, work.scratch(), workers);
    if (!scratch || tasks == 0) return;
    detail::run_tasks(run, workers, tasks, [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
  }

 private:
  static Shape<3> rows_of(const Shape<4>& out) { return {out[0], out[1], out[2]}; }

  static void check_whole(detail::Contract& contract, const Output<T>& whole) {
    contract.output("whole.out", whole.out);
    if (!whole.lse) return;
    contract.output("whole.lse", whole.lse);
    contract.shape("whole.lse", whole.lse, rows_of(whole.out.shape()));
  }
  static void check_rows(detail::Contract& contract, const char* out, const char* lse, const Output<const T>& part,
                         const Shape<4>& shape) {
    contract.input(out, part.out);
    contract.shape(out, part.out, shape);
    contract.require(static_cast<bool>(part.lse), lse, "is required");
    contract.input(lse, part.lse);
    contract.shape(lse, part.lse, rows_of(shape));
  }
  static bool check_part(const detail::Contract& of_whole, const Output<const T>& part, std::size_t number,
                         const Output<T>& whole) {
    detail::Contract contract("merge", of_whole.run());
    const std::string name = "parts[" + std::to_string(number) + "]", out = name + ".out", lse = name + ".lse";
    check_whole(contract, whole);
    check_rows(contract, out.c_str(), lse.c_str(), part, whole.out.shape());
    return contract.accepted();
  }

  static void check_arrivals(detail::Contract& contract, const Output<const T>& whole, const Output<const T>& d_whole) {
    check_rows(contract, "whole.out", "whole.lse", whole, whole.out.shape());
    contract.require(static_cast<bool>(d_whole.out), "d_whole.out", "is required");
    contract.input("d_whole.out", d_whole.out);
    contract.shape("d_whole.out", d_whole.out, whole.out.shape());
    if (!d_whole.lse) return;
    contract.input("d_whole.lse", d_whole.lse);
    contract.shape("d_whole.lse", d_whole.lse, rows_of(whole.out.shape()));
  }
  /// Checks the gradients of a part, beside another part and its gradients.
  static bool check_gradient(const detail::Contract& of_whole, std::span<const Output<const T>> parts,
                             const Output<const T>& whole, const Output<const T>& d_whole,
                             std::span<const Output<T>> d_parts, std::size_t number, std::size_t other) {
    detail::Contract contract("merge_backward", of_whole.run());
    const auto name = [](const char* list, std::size_t at, const char* field) {
      return list + ('[' + std::to_string(at)) + field;
    };
    const std::string part_out = name("parts", other, "].out"), part_lse = name("parts", other, "].lse"),
                      out = name("d_parts", number, "].out"), lse = name("d_parts", number, "].lse"),
                      other_out = name("d_parts", other, "].out"), other_lse = name("d_parts", other, "].lse");
    if (number == other) check_arrivals(contract, whole, d_whole);
    check_rows(contract, part_out.c_str(), part_lse.c_str(), parts[other], whole.out.shape());
    contract.gradient(out.c_str(), d_parts[number].out, whole.out.shape());
    contract.gradient(lse.c_str(), d_parts[number].lse, rows_of(whole.out.shape()));
    if (number != other) {
      contract.gradient(other_out.c_str(), d_parts[other].out, whole.out.shape());
      contract.gradient(other_lse.c_str(), d_parts[other].lse, rows_of(whole.out.shape()));
    }
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

/// The gradients of merge() for those of its result: with w_p = e^(lse_p - lse), d_out_p = w_p d_out and
/// d_lse_p = w_p (<d_out, out_p - out> + d_lse).
///
/// Each part stands for itself, so that `parts` may be some of those that were merged. Empty parts get zeros, whatever
/// their rows hold, and so do all where the whole is empty.
/// \param parts   as in the call of merge()
/// \param whole   what that call wrote, log-sum-exp included
/// \param d_whole the gradients of its rows and, if the loss depends on it, of its log-sum-exp
/// \param d_parts for each part, written where present
/// \throws ContractError on shapes that disagree, numbers of parts that differ, a log-sum-exp left out, outputs that
///         overlap anything; SizeError on overflow
///
/// Work: 2 * parts * batch * heads * queries * value_dim multiply-adds. Scratch: at most 128 bytes a worker and part.
template <Element W>
void merge_backward(std::span<const Output<const Value<W>>> parts, const Output<W>& whole,
                    const std::type_identity_t<Output<const Value<W>>>& d_whole,
                    std::span<const Output<Value<W>>> d_parts, Run run = {}) {
  Merge<Value<W>>::backward(parts, whole, d_whole, d_parts, run);
}

}  // namespace longview
