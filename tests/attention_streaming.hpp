// SPDX-License-Identifier: Apache-2.0
// Keys in pieces and queries in chunks: the same bits as everything at once.
#pragma once

#include "test_operators.hpp"

namespace test {

/// Rows first ... first + count - 1.
template <typename T, std::size_t Rank>
TensorView<T, Rank> rows_of(const TensorView<T, Rank>& view, Index first, Index count) {
  return view.slice(2, first, count);
}

/// Keys first ... end - 1 of a problem in up to `pieces` pieces.
template <typename T>
KeyValueView<T> pieces_of(const Problem<T>& problem, Index first, Index end, Index pieces, Random& random) {
  std::vector<Index> cuts{first, end};
  for (Index at = 1; at < pieces; ++at) cuts.push_back(random.integer(first, end));
  std::sort(cuts.begin(), cuts.end());
  const auto piece = [&](std::size_t at) {
    const Index begin = cuts[at], count = cuts[at + 1] - begin;
    return longview::KeyValue<T>{rows_of(problem.key_view(), begin, count), rows_of(problem.value_view(), begin, count),
                                 at == 0 && first > 0 ? std::optional<Index>(first) : std::nullopt};
  };
  switch (pieces) {
    case 1: return {piece(0)};
    case 2: return {piece(0), piece(1)};
    case 3: return {piece(0), piece(1), piece(2)};
    default: return {piece(0), piece(1), piece(2), piece(3)};
  }
}

/// `run(query, keys, out)` is causal, queries the newest positions. `reach`: how far back a query looks.
template <typename T, typename Call>
void expect_the_same_in_chunks(const Sizes& sizes, Index reach, Call run, std::uint64_t seed) {
  Random random(seed);
  const Problem<T> problem(sizes, random);
  under_all_sets([&] {
    Answer<T> whole(sizes);
    run(problem.query_view(), KeyValueView<T>(problem.key_view(), problem.value_view()), whole.output(sizes));
    const Index offset = sizes.keys - sizes.queries;
    for (const Index most : {Index{1}, Index{7}, Index{100}, sizes.queries}) {
      Answer<T> got(sizes);
      const auto out = got.output(sizes);
      for (Index begin = 0; begin < sizes.queries;) {
        const Index count = std::min(most == 1 ? 1 : random.integer(1, most), sizes.queries - begin);
        const Index end = offset + begin + count;
        const Index oldest = std::max<Index>(0, offset + begin - std::min(reach, end));
        const Index first = random.chance(50) ? 0 : random.integer(0, oldest);
        run(rows_of(problem.query_view(), begin, count),
            pieces_of(problem, first, end, random.integer(1, 4), random),
            Output<T>{rows_of(out.out, begin, count), rows_of(out.lse, begin, count)});
        begin += count;
      }
      EXPECT_TRUE(same_answer(sizes, whole, got)) << "chunks of up to " << most << ", " << sizes;
    }
  });
}

/// Keys in pieces against the same keys in one; pieces may be empty.
template <typename T, typename Call>
void expect_the_same_in_pieces(const Sizes& sizes, Call run, std::uint64_t seed) {
  Random random(seed);
  const Problem<T> problem(sizes, random);
  under_all_sets([&] {
    Answer<T> whole(sizes);
    run(problem.query_view(), KeyValueView<T>(problem.key_view(), problem.value_view()), whole.output(sizes));
    for (Index turn = 0; turn < 24; ++turn) {
      Answer<T> got(sizes);
      run(problem.query_view(), pieces_of(problem, 0, sizes.keys, 1 + turn % 4, random), got.output(sizes));
      EXPECT_TRUE(same_answer(sizes, whole, got)) << "turn " << turn << ", " << sizes;
    }
  });
}

/// Keys in pieces with gaps between them against all keys and a mask: `run(query, keys, out, scores)`.
template <typename T, typename Call>
void expect_the_same_with_gaps(Index queries, Index keys, bool slopes, Call run, std::uint64_t seed) {
  for (std::uint64_t turn = 0; turn < 40; ++turn) {
    Random random(seed + turn);
    const Sizes all{1, 4, 2, queries, keys, 5, 6};
    const Problem<T> problem(all, random);
    // Alternately a gap and a piece; the last piece is there.
    std::vector<Index> cuts(static_cast<std::size_t>(random.integer(1, 4)) * 2);
    for (Index& cut : cuts) cut = random.integer(0, keys);
    std::sort(cuts.begin(), cuts.end());
    cuts.back() = keys;
    std::vector<longview::KeyValue<T>> pieces;
    std::vector<Index> places;
    for (std::size_t at = 0; at < cuts.size(); at += 2) {
      const Index begin = cuts[at], count = cuts[at + 1] - begin;
      pieces.push_back({rows_of(problem.key_view(), begin, count), rows_of(problem.value_view(), begin, count), begin});
      for (Index j = begin; j < begin + count; ++j) places.push_back(j);
    }
    const auto view = [&]() -> KeyValueView<T> {
      switch (pieces.size()) {
        case 1: return {pieces[0]};
        case 2: return {pieces[0], pieces[1]};
        case 3: return {pieces[0], pieces[1], pieces[2]};
        default: return {pieces[0], pieces[1], pieces[2], pieces[3]};
      }
    }();
    const bool by_pair = random.chance(50);
    const auto rows = by_pair ? queries : 1, present = static_cast<Index>(places.size());
    const auto open = random.bytes(rows * keys, random.chance(50) ? 100 : 60);
    const auto bias = random.values<T>(queries * keys), sinks = random.values<T>(4), steep = random.values<T>(4, 0.1);
    std::vector<std::uint8_t> keep(open.size()), keep_present(to_size(rows * present));
    std::vector<T> bias_present(to_size(queries * present));
    for (Index at = 0; at < present; ++at) {
      const Index j = places[to_size(at)];
      for (Index i = 0; i < rows; ++i)
        keep_present[to_size(i * present + at)] = keep[to_size(i * keys + j)] = open[to_size(i * keys + j)];
      for (Index i = 0; i < queries; ++i) bias_present[to_size(i * present + at)] = bias[to_size(i * keys + j)];
    }
    const std::vector<Index> lengths{random.integer(0, keys)};
    Scores<T> whole{.softcap = random.chance(50) ? std::optional<double>(4) : std::nullopt,
                    .keep_mask = {keep.data(), {1, 1, rows, keys}}};
    if (random.chance(50)) whole.key_lengths = lengths;
    if (random.chance(50)) whole.sinks = sinks;
    if (slopes && random.chance(50)) whole.alibi_slopes = steep;
    Scores<T> in_pieces = whole;
    in_pieces.keep_mask = {keep_present.data(), {1, 1, rows, present}};
    if (random.chance(50)) {
      whole.bias = {bias.data(), {1, 1, queries, keys}};
      in_pieces.bias = {bias_present.data(), {1, 1, queries, present}};
    }
    under_all_sets([&] {
      Answer<T> expected(all), got(all);
      run(problem.query_view(), KeyValueView<T>(problem.key_view(), problem.value_view()), expected.output(all), whole);
      run(problem.query_view(), view, got.output(all), in_pieces);
      EXPECT_TRUE(same_answer(all, expected, got)) << "turn " << turn << " pieces from " << text_of(cuts);
    });
  }
}

/// Outputs of equal scores and unit vectors as values, by the keys that each query sees.
template <typename T, typename Sees>
std::vector<T> mean_of_unit_vectors(const Sizes& sizes, Sees sees) {
  std::vector<T> out;
  for (Index b = 0; b < sizes.batch; ++b)
    for (Index h = 0; h < sizes.heads; ++h)
      for (Index i = 0; i < sizes.queries; ++i) {
        T count = 0;
        for (Index j = 0; j < sizes.keys; ++j) count += sees(b, h, i, j) ? T(1) : T(0);
        for (Index j = 0; j < sizes.keys; ++j) out.push_back(sees(b, h, i, j) ? T(1) / count : T(0));
      }
  return out;
}

/// A problem of equal scores whose values are unit vectors: its outputs are mean_of_unit_vectors, bit for bit.
template <typename T>
Problem<T> membership_problem(Sizes sizes) {
  Random random(0);
  sizes.head_dim = 2, sizes.value_dim = sizes.keys;
  Problem<T> problem(sizes, random, 0);
  const TensorView<T, 4> value(problem.value.data(), sizes.value());
  for (Index b = 0; b < sizes.batch; ++b)
    for (Index h = 0; h < sizes.key_heads; ++h)
      for (Index j = 0; j < sizes.keys; ++j)
        for (Index c = 0; c < sizes.value_dim; ++c) value(b, h, j, c) = j == c ? T(1) : T(0);
  return problem;
}

}  // namespace test
