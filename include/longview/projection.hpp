// SPDX-License-Identifier: Apache-2.0
/// \file
/// Rows to fewer rows, along the length: matrix, pooling, strided convolution.
///
/// Sources: Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, section 4, arXiv:2006.04768
/// (matrices and pooling); Rae et al., "Compressive Transformers", 2019, section 3.1, arXiv:1911.05507 (kernel = stride
/// = rate).
#pragma once

#include "longview/detail/projection_gradient_task.hpp"
#include "longview/detail/random.hpp"

namespace longview::inline v0 {

/// Exactly one of the first five. Pooling and convolution drop a tail of rows shorter than the rate.
template <Storage T>
struct Projection {
  TensorView<const T, 3> matrix{};        ///< (heads or 1, slots, length)
  Index mean_pool = 0, max_pool = 0;      ///< the rate: kernel and stride
  TensorView<const T, 3> convolution{};   ///< (dim out, dim in, rate), one for all heads
  Index most_used = 0;                    ///< the rate; compressive memory only
  TensorView<const T, 2> slot_bias{};     ///< (heads or 1, slots), added after projecting
  TensorView<const T, 2> channel_bias{};  ///< (heads or 1, dim out), likewise
};

/// `out` arrives, the others leave where they are present, overwritten; `out` and `input` in project_backward alone.
/// Summed over the batch and, where the extent of heads is 1, over heads.
template <Storage T>
struct ProjectionGradients {
  TensorView<const T, 4> out{};
  TensorView<T, 4> input{};
  TensorView<T, 3> matrix{}, convolution{};
  TensorView<T, 2> slot_bias{}, channel_bias{};
};

inline namespace LONGVIEW_BUILD {
namespace detail {

/// Where a projection stands, for messages.
struct ProjectionNames {
  const char *projection, *matrix, *mean_pool, *max_pool, *convolution, *most_used, *slot_bias, *channel_bias;
};
#define LONGVIEW_PROJECTION_NAMES(of)                                                                       \
  {                                                                                                         \
    of, of ".matrix", of ".mean_pool", of ".max_pool", of ".convolution", of ".most_used", of ".slot_bias", \
        of ".channel_bias"                                                                                  \
  }
inline constexpr ProjectionNames projection_names = LONGVIEW_PROJECTION_NAMES("projection");
inline constexpr ProjectionNames key_projection_names = LONGVIEW_PROJECTION_NAMES("options.key_projection");
inline constexpr ProjectionNames value_projection_names = LONGVIEW_PROJECTION_NAMES("options.value_projection");
inline constexpr ProjectionNames projection_gradient_names = LONGVIEW_PROJECTION_NAMES("gradients");
inline constexpr ProjectionNames key_gradient_names = LONGVIEW_PROJECTION_NAMES("gradients.key_projection");
inline constexpr ProjectionNames value_gradient_names = LONGVIEW_PROJECTION_NAMES("gradients.value_projection");
#undef LONGVIEW_PROJECTION_NAMES

template <typename T>
Index kinds_of(const Projection<T>& projection) {
  return Index{static_cast<bool>(projection.matrix)} + (projection.mean_pool != 0) + (projection.max_pool != 0) +
         static_cast<bool>(projection.convolution) + (projection.most_used != 0);
}
template <typename T>
bool is_absent(const Projection<T>& projection) {
  return kinds_of(projection) == 0 && !projection.slot_bias && !projection.channel_bias;
}

/// Kernel and stride; 1 for a matrix.
template <typename T>
Index rate_of(const Projection<T>& projection) {
  return projection.matrix        ? 1
         : projection.convolution ? projection.convolution.extent(2)
         : projection.mean_pool   ? projection.mean_pool
                                  : projection.max_pool;
}
/// (batch, heads, slots, dim out) of a checked projection of an input of this shape.
template <typename T>
Shape<4> projected_shape(const Projection<T>& projection, const Shape<4>& input) {
  return {input[0], input[1], projection.matrix ? projection.matrix.extent(1) : input[2] / rate_of(projection),
          projection.convolution ? projection.convolution.extent(0) : input[3]};
}

template <typename T>
void check_bias(Contract& contract, const char* name, const TensorView<const T, 2>& bias, Index heads, Index count) {
  if (!bias) return;
  contract.input(name, bias);
  const Shape<2> expected{bias.extent(0) == 1 ? 1 : heads, count};
  contract.shape(name, bias, expected);
}

/// Checks all but the biases; `source` is what the projection is applied to.
template <typename T>
void check_kind(Contract& contract, const Projection<T>& projection, const ProjectionNames& names,
                const Shape<4>& input, const char* source) {
  const Index kinds = kinds_of(projection);
  if (kinds != 1)
    contract.fail(names.projection, "exactly one of matrix, mean_pool, max_pool, convolution (got " +
                                        std::to_string(kinds) + ", expected 1)");
  contract.require(projection.most_used == 0, names.most_used,
                   "has no meaning outside a compressive memory, which counts uses");
  if (projection.mean_pool != 0) contract.at_least(names.mean_pool, "rate", projection.mean_pool, 1);
  if (projection.max_pool != 0) contract.at_least(names.max_pool, "rate", projection.max_pool, 1);
  if (projection.matrix) {
    contract.input(names.matrix, projection.matrix);
    if (projection.matrix.extent(0) != 1)
      contract.equal(names.matrix, "heads", projection.matrix.extent(0), input[1], source);
    contract.equal(names.matrix, "length", projection.matrix.extent(2), input[2], source);
  }
  if (projection.convolution) {
    contract.input(names.convolution, projection.convolution);
    contract.equal(names.convolution, "dim in", projection.convolution.extent(1), input[3], source);
    contract.at_least(names.convolution, "rate", projection.convolution.extent(2), 1);
  }
}

/// Checks a projection of an input of this shape. Returns the shape of its output, or zeros if it is at fault.
template <typename T>
Shape<4> check_projection(Contract& contract, const Projection<T>& projection, const ProjectionNames& names,
                          const Shape<4>& input, const char* source) {
  check_kind(contract, projection, names, input, source);
  if (!contract.ok()) return {};
  const Shape<4> out = projected_shape(projection, input);
  check_bias(contract, names.slot_bias, projection.slot_bias, out[1], out[2]);
  check_bias(contract, names.channel_bias, projection.channel_bias, out[1], out[3]);
  return out;
}

/// Checks the gradients of what a checked projection is made of; `slots`: the shape of its output.
template <typename T>
void check_gradients(Contract& contract, const ProjectionGradients<T>& gradients, const Projection<T>& projection,
                     const ProjectionNames& names, const Shape<4>& input, const Shape<4>& slots) {
  contract.require(!gradients.matrix || projection.matrix, names.matrix, "has no meaning without a matrix");
  contract.require(!gradients.convolution || projection.convolution, names.convolution,
                   "has no meaning without a convolution");
  contract.head_gradient(names.matrix, gradients.matrix, Shape<3>{input[1], slots[2], input[2]});
  contract.gradient(names.convolution, gradients.convolution, projection.convolution.shape());
  contract.head_gradient(names.slot_bias, gradients.slot_bias, Shape<2>{input[1], slots[2]});
  contract.head_gradient(names.channel_bias, gradients.channel_bias, Shape<2>{input[1], slots[3]});
}

template <typename T>
ProjectionCall<T> projection_call(const TensorView<const T, 4>& input, const TensorView<T, 4>& out,
                                  const Projection<T>& projection) {
  ProjectionCall<T> call{.input = input, .out = out};
  if (projection.mean_pool != 0) call.kind = kernel::ProjectionKind::mean;
  if (projection.max_pool != 0) call.kind = kernel::ProjectionKind::maximum;
  call.matrix = projection.matrix, call.convolution = projection.convolution;
  call.rate = rate_of(projection);
  call.slot_bias = projection.slot_bias, call.channel_bias = projection.channel_bias;
  return call;
}

template <typename T>
ProjectionGradientCall<T> gradient_call(const ProjectionCall<T>& of, const TensorView<const T, 4>& d_out,
                                        const TensorView<T, 4>& d_input, const ProjectionGradients<T>& gradients) {
  return {.of = of,
          .d_out = d_out,
          .d_input = d_input,
          .d_matrix = gradients.matrix,
          .d_convolution = gradients.convolution,
          .d_slot_bias = gradients.slot_bias,
          .d_channel_bias = gradients.channel_bias};
}

}  // namespace detail

/// The compiled body, named in `extern template` only.
template <Storage T>
struct ProjectRows {
  static void forward(const TensorView<const T, 4>& input, const TensorView<T, 4>& out, const Projection<T>& projection,
                      Run run) {
    detail::Contract contract("project", run);
    contract.input("input", input);
    contract.output("out", out);
    const Shape<4> expected =
        detail::check_projection(contract, projection, detail::projection_names, input.shape(), "input");
    contract.shape("out", out, expected);
    if (!contract.accepted()) return;
    const auto call = detail::projection_call(input, out, projection);
    const detail::ProjectionWork<T> work(call, run.concurrency());
    const Index tasks = work.tasks(), workers = run.concurrency() < tasks ? run.concurrency() : tasks;
    const detail::Scratch scratch(contract, {}, work.scratch(), workers);
    if (!scratch || tasks == 0) return;
    detail::run_tasks(run, workers, tasks, [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
  }

  static void backward(const TensorView<const T, 4>& input, const ProjectionGradients<T>& gradients,
                       const Projection<T>& projection, Run run) {
    detail::Contract contract("project_backward", run);
    contract.input("input", input);
    contract.require(static_cast<bool>(gradients.out), "gradients.out", "is required");
    contract.input("gradients.out", gradients.out);
    const Shape<4> slots =
        detail::check_projection(contract, projection, detail::projection_names, input.shape(), "input");
    contract.shape("gradients.out", gradients.out, slots);
    if (gradients.input) {
      contract.output("gradients.input", gradients.input);
      contract.shape("gradients.input", gradients.input, input.shape());
    }
    detail::check_gradients(contract, gradients, projection, detail::projection_gradient_names, input.shape(), slots);
    if (!contract.accepted()) return;
    const auto call = detail::gradient_call(detail::projection_call(input, TensorView<T, 4>(), projection),
                                            gradients.out, gradients.input, gradients);
    const detail::ProjectionGradientWork<T> work(call, run.concurrency());
    const Index tasks = work.tasks(), workers = run.concurrency() < tasks ? run.concurrency() : tasks;
    const detail::Scratch scratch(contract, {}, work.scratch(), workers);
    if (!scratch || tasks == 0) return;
    detail::run_tasks(run, workers, tasks, [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
  }
};

/// out[b,h,s] = sum_j matrix[h,s,j] input[b,h,j], or for groups of `rate` rows their mean, their maximum or
/// sum_a convolution[:,:,a] input[b,h,rate s + a]; plus slot_bias[h,s] + channel_bias[h].
///
/// \param input (batch, heads, length, dim)
/// \param out   (batch, heads, slots, dim out), written; slots are length / rate rounded down unless a matrix says so
/// \throws ContractError on shapes that disagree, no kind or several, outputs that overlap anything; SizeError on
/// overflow
///
/// Work: batch * heads * slots * length * dim multiply-adds for a matrix, batch * heads * length * dim * dim out for a
/// convolution. Scratch: at most 256 KiB a worker.
template <Element X>
void project(TensorView<X, 4> input, const TensorView<Value<X>, 4>& out, const Projection<Value<X>>& projection,
             Run run = {}) {
  ProjectRows<Value<X>>::forward(input, out, projection, run);
}

/// The gradients of project() for those of its output: d_input = matrix^T d_out and d_matrix = sum d_out input^T, and
/// likewise for the other kinds. A maximum passes its gradient to the first of equals, or to the first NaN; a row
/// without a slot gets zeros. Which gradients are asked for does not change their bits.
///
/// \param input      as in the call of project()
/// \param gradients  `out` (batch, heads, slots, dim out) arrives, the others leave where they are present; `matrix`
///                   (heads or 1, slots, length), `slot_bias` (heads or 1, slots), `channel_bias` (heads or 1, dim
///                   out): an extent of 1 sums over heads
/// \param projection as in that call; its biases are not read
/// \throws ContractError on shapes that disagree, gradients of what the projection has not, outputs that overlap
///         anything; SizeError on overflow
///
/// Work: for `input` and for `matrix` or `convolution` that of project() each. Scratch: at most 256 KiB a worker.
template <Element X>
void project_backward(TensorView<X, 4> input, const ProjectionGradients<Value<X>>& gradients,
                      const Projection<Value<X>>& projection, Run run = {}) {
  ProjectRows<Value<X>>::backward(input, gradients, projection, run);
}

/// Independent normal elements of variance 1 / slots: the fixed projection of Linformer's theorem 2.
///
/// `matrix`: (heads, slots, length), any strides. The values depend on seed, heads and slots alone, not on the platform
/// or the compiler: formed in double, rounded to T at the end. A shorter matrix holds the first columns of a longer
/// one.
/// \throws ContractError or SizeError on a shape without meaning
template <Storage T>
void random_projection(TensorView<T, 3> matrix, std::uint64_t seed) {
  const Run run;
  detail::Contract contract("random_projection", run);
  contract.output("matrix", matrix);
  if (!contract.accepted()) return;
  const detail::DoublePrecision precision;
  const Index heads = matrix.extent(0), slots = matrix.extent(1);
  const detail::Rounded width = sqrt(detail::Rounded(static_cast<double>(slots)));
  std::uint64_t index = 0;
  for (Index column = 0; column < matrix.extent(2); ++column)
    for (Index head = 0; head < heads; ++head)
      for (Index slot = 0; slot < slots; ++slot) {
        const detail::Rounded sample(detail::normal(seed, detail::Stream::projection, index++));
        matrix(head, slot, column) = static_cast<T>(static_cast<Compute<T>>((sample / width).value()));
      }
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
