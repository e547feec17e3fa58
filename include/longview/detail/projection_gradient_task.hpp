// SPDX-License-Identifier: Apache-2.0
/// \file
/// From the gradients of a projection to the tasks of its kernel.
#pragma once

#include <array>

#include "longview/detail/projection_task.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// Gradients of a projection of rows, already checked. `of.out` is not used.
template <typename T>
struct ProjectionGradientCall {
  ProjectionCall<T> of;
  TensorView<const T, 4> d_out;
  TensorView<T, 4> d_input{};
  TensorView<T, 3> d_matrix{}, d_convolution{};
  TensorView<T, 2> d_slot_bias{}, d_channel_bias{};
  bool adds = false;  // to what the gradients of matrix, convolution and biases hold

  bool any() const { return d_input || d_matrix || d_convolution || d_slot_bias || d_channel_bias; }
};

/// The gradients that are present, cut into tasks.
template <typename T>
class ProjectionGradientWork {
 public:
  ProjectionGradientWork(const ProjectionGradientCall<T>& call, Index workers)
      : kernel_(kernel::projection_kernel<T>()), call_(call), workers_(workers) {
    if (call.d_input) add_input();
    if (call.d_matrix) add_matrix();
    if (call.d_convolution) add_convolution();
    if (call.d_slot_bias) add_bias(call.d_slot_bias, 2, 3);
    if (call.d_channel_bias) add_bias(call.d_channel_bias, 3, 2);
  }

  Index tasks() const {
    Index tasks = 0;
    for (Index at = 0; at < count_; ++at) tasks += jobs_[static_cast<std::size_t>(at)].tasks();
    return tasks;
  }
  /// Bytes for each worker.
  ByteCount scratch() const {
    ByteCount most;
    for (const auto& job : jobs_)
      if (const ByteCount own = job.scratch(); most.bytes() < own.bytes()) most = own;
    return most;
  }
  void run(Index number, std::byte* scratch) const {
    const ProjectionBlocks<T>* job = jobs_.data();
    for (; number >= job->tasks(); ++job) number -= job->tasks();
    kernel_.run(job->task(number), Carver(scratch).take<T>(0));
  }

 private:
  using Outer = typename ProjectionBlocks<T>::Outer;
  using Task = kernel::ProjectionTask<T>;

  void add(const Task& task, const std::array<Outer, 3>& outers) {
    jobs_[static_cast<std::size_t>(count_++)] = ProjectionBlocks<T>(task, outers, workers_, kernel_.block_rows / 3);
  }

  /// A task that sums over items and, where `heads` is 1, over heads.
  Task summed(Task task, const TensorView<const T, 4>& vector, Index heads) const {
    const auto& d_out = call_.d_out;
    task.items = d_out.extent(0), task.heads = heads == 1 ? d_out.extent(1) : 1;
    task.scalar_item = d_out.stride(0), task.vector_item = vector.stride(0);
    if (heads == 1) task.scalar_head = d_out.stride(1), task.vector_head = vector.stride(1);
    task.adds = call_.adds;
    return task;
  }

  void add_input() {
    const auto& d_out = call_.d_out;
    const auto& d_input = call_.d_input;
    Task task = masked_task(call_.of);
    Outer item{.count = d_out.extent(0),
               .scalar = d_out.stride(0),
               .out = d_input.stride(0),
               .keep = task.keep_item,
               .lengths = 1};
    Outer head{.count = d_out.extent(1), .scalar = d_out.stride(1), .out = d_input.stride(1)};
    task.scalar = d_out.data_handle(), task.out = d_input.data_handle();
    if (const auto& matrix = call_.of.matrix) {
      // Transposed: channels are the rows, so that rows of the matrix are read as they lie.
      task.rows = d_input.extent(3), task.columns = d_input.extent(2), task.terms = matrix.extent(1);
      task.scalar_row = d_out.stride(3), task.scalar_term = d_out.stride(2);
      task.vector = matrix.data_handle(), task.vector_term = matrix.stride(1), task.vector_column = matrix.stride(2);
      task.out_row = d_input.stride(3), task.out_column = d_input.stride(2), task.input_column = 1;
      head.vector = repeated(matrix.extent(0), matrix.stride(0));
      return add(task, {item, head});
    }
    const Index rate = call_.of.rate;
    task.rows = d_out.extent(2), task.columns = d_input.extent(3), task.input_row = rate;
    task.out_row = rate * d_input.stride(2), task.out_column = d_input.stride(3);
    task.scalar_row = d_out.stride(2);
    if (const auto& weights = call_.of.convolution) {
      task.scalar_term = d_out.stride(3), task.terms = weights.extent(0);
      task.vector = weights.data_handle(), task.vector_term = weights.stride(0), task.vector_column = weights.stride(1);
      add(task, {item, head, Outer{.count = rate, .vector = weights.stride(2), .out = d_input.stride(2), .input = 1}});
    } else {
      const auto& input = call_.of.input;
      task.kind = call_.of.kind == kernel::ProjectionKind::mean ? kernel::ProjectionKind::mean_gradient
                                                                : kernel::ProjectionKind::maximum_gradient;
      task.scalar_column = d_out.stride(3), task.terms = rate, task.input_term = 1;
      task.out_term = d_input.stride(2);
      task.vector = input.data_handle();
      task.vector_row = rate * input.stride(2), task.vector_term = input.stride(2),
      task.vector_column = input.stride(3);
      item.vector = input.stride(0), head.vector = input.stride(1);
      add(task, {item, head});
    }
    add_tail(d_out.extent(2) * rate);
  }

  /// Rows that belong to no slot: sums without terms.
  void add_tail(Index first) {
    const auto& d_input = call_.d_input;
    Task task;
    task.rows = d_input.extent(2) - first, task.columns = d_input.extent(3);
    task.out_row = d_input.stride(2), task.out_column = d_input.stride(3);
    if (task.rows > 0) task.out = d_input.data_handle() + first * d_input.stride(2);
    add(task, {Outer{.count = d_input.extent(0), .out = d_input.stride(0)},
               Outer{.count = d_input.extent(1), .out = d_input.stride(1)}});
  }

  void add_matrix() {
    const auto &d_out = call_.d_out, &input = call_.of.input;
    const auto& d_matrix = call_.d_matrix;
    Task task = summed(masked_task(call_.of), input, d_matrix.extent(0));
    task.rows = d_out.extent(2), task.columns = input.extent(2), task.terms = input.extent(3), task.input_column = 1;
    task.scalar = d_out.data_handle(), task.scalar_row = d_out.stride(2), task.scalar_term = d_out.stride(3);
    task.vector = input.data_handle(), task.vector_term = input.stride(3), task.vector_column = input.stride(2);
    task.out = d_matrix.data_handle(), task.out_row = d_matrix.stride(1), task.out_column = d_matrix.stride(2);
    add(task, {by_head(d_matrix.extent(0), input.stride(1), d_matrix.stride(0))});
  }

  void add_convolution() {
    const auto &d_out = call_.d_out, &input = call_.of.input;
    const auto& weights = call_.d_convolution;
    const Index rate = weights.extent(2);
    Task task = summed(masked_task(call_.of), input, 1);
    task.rows = weights.extent(0), task.columns = weights.extent(1), task.terms = d_out.extent(2);
    task.input_term = rate;
    task.scalar = d_out.data_handle(), task.scalar_row = d_out.stride(3), task.scalar_term = d_out.stride(2);
    task.vector = input.data_handle();
    task.vector_term = rate * input.stride(2), task.vector_column = input.stride(3);
    task.out = weights.data_handle(), task.out_row = weights.stride(0), task.out_column = weights.stride(1);
    add(task, {Outer{.count = rate, .vector = input.stride(2), .out = weights.stride(2), .input = 1}});
  }

  /// Sums of d_out along an axis: products with 1.
  void add_bias(const TensorView<T, 2>& bias, std::size_t along, std::size_t across) {
    static constexpr T one = 1;
    const auto& d_out = call_.d_out;
    Task task = summed({}, d_out, bias.extent(0));
    task.scalar_item = task.scalar_head = 0;
    task.rows = 1, task.columns = d_out.extent(along), task.terms = d_out.extent(across);
    task.length = 1, task.scalar = &one;
    task.vector = d_out.data_handle(), task.vector_term = d_out.stride(across),
    task.vector_column = d_out.stride(along);
    task.out = bias.data_handle(), task.out_column = bias.stride(1);
    Outer head = by_head(bias.extent(0), d_out.stride(1), bias.stride(0));
    head.scalar = 0;
    add(task, {head});
  }

  Outer by_head(Index heads, Index vector, Index out) const {
    if (heads == 1) return {};
    return {.count = heads, .scalar = call_.d_out.stride(1), .vector = vector, .out = out};
  }

  const kernel::ProjectionKernel<T> kernel_;
  const ProjectionGradientCall<T>& call_;
  const Index workers_;
  std::array<ProjectionBlocks<T>, 6> jobs_{};
  Index count_ = 0;
};

}  // namespace longview
