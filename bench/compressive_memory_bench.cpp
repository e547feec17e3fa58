// SPDX-License-Identifier: Apache-2.0
// Attention of a segment over [compressed, memory, current] as three segments of keys, beside the same keys in one
// piece, which should be no faster than by 5 %; and what a segment costs the memory.
// smallest cell: ^received_attention/f32/b1/h1/n64/

#include <longview/compressive_memory.hpp>
#include <longview/full_attention.hpp>
#include <longview/partial.hpp>
#include <longview/relative_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;
using longview::TensorView;

/// compressive_forward and compressive_backward, or compressive_contiguous: the keys in one piece. relpos1: with relative
/// positions; their table gets no gradient. The backward pass counts five products, with the relative term, too.
template <typename T>
void attend(benchmark::State& state, const Cell& cell) {
  const Index n = cell["n"], memory = cell["mem"], compressed = cell["cmem"], keys = n + memory + compressed,
              d = cell["d"];
  AttentionTensors<T> x(cell, keys);
  const std::vector<T> table = normal<T>(keys * d, 4);
  const longview::Scores<T> plain{.causal = true};
  const longview::RelativeOptions<T> relative{.position = {table.data(), {1, keys, d}}};
  const bool is_relative = cell.has("relpos");
  const double pairs = static_cast<double>(n * keys) - static_cast<double>(n * (n - 1)) / 2;
  const double product = attention_flops(cell, pairs) / 2;

  const auto piece = [&](Index first, Index count) {
    return longview::KeyValue<T>{x.key().slice(2, first, count), x.value().slice(2, first, count), {}};
  };
  using Keys = longview::KeyValueView<T>;
  const Keys view = cell.name().starts_with("compressive_contiguous")
                        ? Keys{x.key(), x.value()}
                        : Keys{piece(0, compressed), piece(compressed, memory), piece(compressed + memory, n)};
  const auto forward = [&](longview::Run run) {
    is_relative ? longview::relative_attention(x.query(), view, {x.out(), x.lse()}, relative, run)
                : longview::full_attention(x.query(), view, {x.out(), x.lse()}, plain, run);
  };
  if (!cell.backward()) return measure<T>(state, cell, (is_relative ? 3 : 2) * product, forward);

  const auto gradient = [&](Index first, Index count) {
    return longview::KeyValueGradient<T>{x.d_key().slice(2, first, count), x.d_value().slice(2, first, count)};
  };
  const longview::SegmentGradients<T> segments{gradient(0, compressed), gradient(compressed, memory),
                                               gradient(compressed + memory, n)};
  forward({});
  measure<T>(state, cell, 5 * product, [&](longview::Run run) {
    if (is_relative)
      longview::relative_attention_backward(x.query(), view, {x.out(), x.lse()},
                                            {.out = x.d_out(), .query = x.d_query(), .segments = segments}, relative, run);
    else
      longview::full_attention_backward(x.query(), view, {x.out(), x.lse()},
                                        {.out = x.d_out(), .query = x.d_query(), .segments = segments}, plain, run);
  });
}

/// The products with the keys alone count.
template <typename T>
void receive(benchmark::State& state, const Cell& cell) {
  const Index n = cell["n"], keys = n + cell["mem"];
  AttentionTensors<T> x(cell, keys);
  std::vector<T> lse(static_cast<std::size_t>(cell["b"] * cell["h"] * n)),
      received(static_cast<std::size_t>(cell["b"] * keys));
  const longview::Shape<3> rows{cell["b"], cell["h"], n};
  longview::full_attention(x.query(), x.key(), x.value(), {x.out(), {lse.data(), rows}});
  measure<T>(state, cell, attention_flops(cell, static_cast<double>(n * keys)) / 2, [&](longview::Run run) {
    longview::received_attention(x.query(), longview::KeyValueView<T>{x.key(), x.value()},
                                 longview::Output<const T>({}, {lse.data(), rows}),
                                 TensorView<T, 2>(received.data(), {cell["b"], keys}), {}, run);
  });
}

/// A segment of n hidden states of width d into full queues, compressed by a convolution.
template <typename T>
void push(benchmark::State& state, const Cell& cell) {
  const Index n = cell["n"], d = cell["d"], rate = cell["rate"];
  const std::vector<T> rows = normal<T>(n * d, 1), weights = normal<T>(d * d * rate, 2);
  longview::CompressiveMemory<T> memory({1, 1, d}, {cell["mem"], cell["cmem"]});
  const auto once = [&](longview::Run run) {
    memory.push({rows.data(), {1, 1, n, d}}, {.convolution = {weights.data(), {d, d, rate}}}, run);
  };
  for (int turn = 0; turn < 8; ++turn) once({});
  measure<T>(state, cell, 2 * static_cast<double>(n * d * d), once);
}

/// Multiply-adds of the rows.
template <typename T>
void merge(benchmark::State& state, const Cell& cell) {
  const Index parts = cell["parts"];
  std::vector<AttentionTensors<T>> x;
  std::vector<std::vector<T>> lse;
  std::vector<longview::Output<const T>> views;
  std::vector<longview::Output<T>> gradients;
  for (Index p = 0; p < parts; ++p)
    x.emplace_back(cell), lse.push_back(normal<T>(cell["b"] * cell["h"] * cell["n"], 7));
  const longview::Shape<3> rows{cell["b"], cell["h"], cell["n"]};
  for (std::size_t p = 0; p < x.size(); ++p) {
    views.emplace_back(TensorView<const T, 4>(x[p].query()), TensorView<const T, 3>(lse[p].data(), rows));
    gradients.emplace_back(x[p].key(), x[p].lse());
  }
  std::vector<T> whole_lse(lse[0]);
  const longview::Output<T> whole(x[0].out(), {whole_lse.data(), rows});
  const double elements = static_cast<double>(AttentionTensors<T>::count(x[0].shape)),
               work = 2 * static_cast<double>(parts) * elements;
  const auto forward = [&](longview::Run run) { longview::merge(views, whole, run); };
  if (!cell.backward()) {
    measure<T>(state, cell, work, forward);
  } else {
    forward({});
    measure<T>(state, cell, 2 * work, [&](longview::Run run) {
      longview::merge_backward(views, whole, TensorView<const T, 4>(x[0].value()), gradients, run);
    });
  }
  const double bytes =
      (cell.backward() ? 2 * static_cast<double>(parts) + 2 : static_cast<double>(parts) + 1) * elements * sizeof(T);
  state.counters["bytes"] =
      benchmark::Counter(bytes * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

template <typename T>
void body(benchmark::State& state, const Cell& cell) {
  const std::string& name = cell.name();
  if (name.starts_with("compressive")) return attend<T>(state, cell);
  if (name.starts_with("received")) return receive<T>(state, cell);
  name.starts_with("memory_push") ? push<T>(state, cell) : merge<T>(state, cell);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cells(
      argc, argv, LONGVIEW_BY_TYPE(body),
      {"compressive_forward/f32/b1/h1/n512/d64/mem512/cmem512",
       "compressive_contiguous/f32/b1/h1/n512/d64/mem512/cmem512",
       "compressive_forward/f32/b1/h1/n512/d64/mem512/cmem512/relpos1",
       "compressive_contiguous/f32/b1/h1/n512/d64/mem512/cmem512/relpos1",
       "compressive_backward/f32/b1/h1/n512/d64/mem512/cmem512",
       "compressive_backward/f32/b1/h1/n512/d64/mem512/cmem512/relpos1", "received_attention/f32/b1/h1/n64/d64/mem0",
       "received_attention/f32/b1/h8/n512/d64/mem1024", "memory_push/f32/b1/h1/n512/d512/mem512/cmem512/rate4",
       "merge/f32/b1/h8/n512/d64/parts2", "merge/f32/b1/h8/n512/d64/parts8", "merge/f32/b1/h8/n4096/d64/parts4",
       "merge_backward/f32/b1/h8/n4096/d64/parts4"});
}
