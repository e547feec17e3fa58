// From a golden file to the problem it states, for the reference and for the library alike, and the reference's
// solution. A look-up marks what it looks at; what nobody looked at makes `unconsumed()` non-empty, so that no option
// or tensor is passed over in silence.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "golden_file.hpp"
#include "reference/attention.hpp"
#include "reference/compressive.hpp"
#include "reference/linformer.hpp"
#include "reference/longformer.hpp"
#include "reference/partial.hpp"
#include "reference/performer.hpp"
#include "reference/projection.hpp"
#include "reference/relative.hpp"

namespace golden {

using reference::Bounded;
using reference::Index;
using reference::Precision;
using reference::Tensor;

class Case {
 public:
  explicit Case(const std::filesystem::path& path) : name_(path.stem().string()), file_(read_file(path)) {}

  const std::string& name() const { return name_; }
  const std::string& op() const { return file_.op; }
  const std::string& note() const { return file_.note; }
  /// The reference does something that is not to be imitated.
  bool quirk() const { return note().find("QUIRK") != std::string::npos; }
  const std::vector<std::string>& outputs() const { return file_.outputs; }

  bool has_option(const std::string& name) const { return file_.options.contains(name); }
  double number(const std::string& name) const { return option(name).get<double>(); }
  Index integer(const std::string& name) const { return option(name).get<Index>(); }
  bool flag(const std::string& name) const { return option(name).get<bool>(); }
  std::string text(const std::string& name) const { return option(name).get<std::string>(); }
  std::vector<Index> integers(const std::string& name) const { return option(name).get<std::vector<Index>>(); }
  std::optional<double> optional_number(const std::string& name) const {
    return has_option(name) ? std::optional<double>(number(name)) : std::nullopt;
  }
  std::optional<Index> optional_integer(const std::string& name) const {
    return has_option(name) ? std::optional<Index>(integer(name)) : std::nullopt;
  }
  /// An option with only one value that anyone knows.
  void expect_text(const std::string& name, const std::string& value) const {
    require(text(name) == value, name_ + ": option " + name);
  }

  bool has(const std::string& name) const { return file_.tensors.contains(name); }
  const std::vector<Index>& shape(const std::string& name) const { return tensor_named(name).shape; }
  /// Throws if absent; `optional` gives an absent tensor instead.
  template <typename Real>
  Tensor<Real> tensor(const std::string& name) const {
    return converted<Real, double>(name);
  }
  template <typename Real>
  Tensor<Real> optional(const std::string& name) const {
    return has(name) ? tensor<Real>(name) : Tensor<Real>();
  }
  Tensor<std::uint8_t> mask(const std::string& name) const {
    return has(name) ? converted<std::uint8_t, std::uint8_t>(name) : Tensor<std::uint8_t>();
  }
  template <typename Real>
  std::vector<Real> list(const std::string& name) const {
    return has(name) ? tensor<Real>(name).elements() : std::vector<Real>();
  }
  std::vector<Index> lengths(const std::string& name) const {
    return has(name) ? converted<Index, std::int64_t>(name).elements() : std::vector<Index>();
  }

  /// Names the file holds that no look-up asked for.
  std::vector<std::string> unconsumed() const {
    std::vector<std::string> names;
    for (const auto& [name, value] : file_.options.items())
      if (!consumed_.contains("option " + name)) names.push_back("option " + name);
    for (const auto& [name, value] : file_.tensors)
      if (!consumed_.contains(name)) names.push_back(name);
    return names;
  }

 private:
  const nlohmann::json& option(const std::string& name) const {
    require(has_option(name), name_ + ": no option " + name);
    consumed_.insert("option " + name);
    return file_.options.at(name);
  }
  const StoredTensor& tensor_named(const std::string& name) const {
    require(has(name), name_ + ": no tensor " + name);
    consumed_.insert(name);
    return file_.tensors.at(name);
  }
  template <typename Element, typename Stored>
  Tensor<Element> converted(const std::string& name) const {
    const StoredTensor& from = tensor_named(name);
    const auto* elements = std::get_if<std::vector<Stored>>(&from.elements);
    require(elements != nullptr, name_ + ": type of " + name);
    Tensor<Element> to(from.shape);
    for (std::size_t at = 0; at < elements->size(); ++at) to.elements()[at] = static_cast<Element>((*elements)[at]);
    return to;
  }

  std::string name_;
  File file_;
  mutable std::set<std::string> consumed_;
};

/// What the reference says about the outputs of a case, by name, each with its certified bound.
template <typename Real>
using Solution = std::map<std::string, Bounded<Real>>;

namespace detail {

template <typename Real>
std::optional<Real> to_real(std::optional<double> number) {
  return number ? std::optional<Real>(static_cast<Real>(*number)) : std::nullopt;
}

template <typename Real>
Solution<Real> solution(const Case& of, reference::AttentionResult<Real> result) {
  Solution<Real> all;
  all.emplace("out", std::move(result.out));
  if (of.has("lse")) all.emplace("lse", std::move(result.lse));
  return all;
}

/// (n) -> (1, n), absent stays absent.
template <typename Real>
Tensor<Real> with_leading_axis(const Tensor<Real>& input) {
  if (!input.present()) return {};
  std::vector<Index> shape = input.shape();
  shape.insert(shape.begin(), 1);
  Tensor<Real> output(shape);
  output.elements() = input.elements();
  return output;
}

}  // namespace detail

// ---- full_attention

enum class Alignment { top_left, bottom_right };

template <typename Real>
struct AttentionProblem {
  Tensor<Real> query{}, key{}, value{};
  Alignment alignment = Alignment::bottom_right;
  reference::Window window{};  // unlimited: full attention
  reference::Scores<Real> scores{};
};

template <typename Real>
AttentionProblem<Real> attention_problem(const Case& of) {
  AttentionProblem<Real> problem{of.tensor<Real>("query"), of.tensor<Real>("key"), of.tensor<Real>("value")};
  const std::string causal = of.text("causal");
  require(causal == "none" || causal == "top_left" || causal == "bottom_right", "causal " + causal);
  if (causal == "top_left") problem.alignment = Alignment::top_left;
  problem.window = {of.optional_integer("window_before"), of.optional_integer("window_after")};
  auto& scores = problem.scores;
  scores.scale = static_cast<Real>(of.number("scale"));
  scores.softcap = detail::to_real<Real>(of.optional_number("softcap"));
  scores.causal = causal != "none";
  scores.offset = problem.alignment == Alignment::top_left ? 0 : problem.key.extent(2) - problem.query.extent(2);
  scores.key_lengths = of.lengths("key_lengths");
  scores.keep_mask = of.mask("keep_mask");
  scores.bias = of.optional<Real>("bias");
  scores.alibi_slopes = of.list<Real>("alibi_slopes");
  scores.sinks = of.list<Real>("sinks");
  return problem;
}

template <typename Real>
Solution<Real> solve_attention(const Case& of, const Precision& precision) {
  const auto problem = attention_problem<Real>(of);
  return detail::solution(of, reference::attention<Real>(problem.query, problem.key, problem.value, problem.scores,
                                                         {problem.window}, precision));
}

// ---- longformer_attention

template <typename Real>
struct LongformerProblem {
  Tensor<Real> query{}, key{}, value{};
  Tensor<Real> query_global{}, key_global{}, value_global{};  // absent: no global tokens
  std::vector<reference::Window> windows{};                   // per head
  bool causal = false;
  Real scale = 1;
  Tensor<std::uint8_t> global_tokens{}, keep_tokens{};  // (batch, length), or absent
};

template <typename Real>
LongformerProblem<Real> longformer_problem(const Case& of) {
  LongformerProblem<Real> problem{of.tensor<Real>("query"), of.tensor<Real>("key"), of.tensor<Real>("value")};
  problem.query_global = of.optional<Real>("query_global");
  problem.key_global = of.optional<Real>("key_global");
  problem.value_global = of.optional<Real>("value_global");
  for (const Index dilation : of.integers("dilation"))
    problem.windows.push_back({of.integer("window_before"), of.integer("window_after"), dilation});
  require(static_cast<Index>(problem.windows.size()) == problem.query.extent(1), "one dilation per head");
  problem.causal = of.flag("causal");
  problem.scale = static_cast<Real>(of.number("scale"));
  problem.global_tokens = of.mask("global_mask");
  problem.keep_tokens = of.mask("padding_mask");
  return problem;
}

template <typename Real>
reference::LongformerOptions<Real> longformer_options(const LongformerProblem<Real>& problem) {
  reference::LongformerOptions<Real> options;
  options.windows = problem.windows;
  options.global_tokens = problem.global_tokens;
  options.keep_tokens = problem.keep_tokens;
  options.query_global = problem.query_global;
  options.key_global = problem.key_global;
  options.value_global = problem.value_global;
  options.scores.scale = problem.scale;
  options.scores.causal = problem.causal;
  return options;
}

template <typename Real>
Solution<Real> solve_longformer(const Case& of, const Precision& precision) {
  const auto problem = longformer_problem<Real>(of);
  return detail::solution(of, reference::longformer_attention<Real>(problem.query, problem.key, problem.value,
                                                                    longformer_options(problem), precision));
}

// ---- linformer_attention

template <typename Real>
struct LinformerProblem {
  Tensor<Real> query{}, key{}, value{};
  reference::LinformerOptions<Real> options;
};

namespace detail {

/// The projection of "key" or "value".
template <typename Real>
reference::Projection<Real> linformer_projection(const Case& of, const std::string& side) {
  const std::string kind = of.text("projection");
  reference::Projection<Real> projection;
  if (kind == "linear") {
    const auto matrix = of.tensor<Real>(side + "_projection");
    const bool per_head = of.has_option("per_head_projection") && of.flag("per_head_projection");
    require(matrix.rank() == (per_head ? 3 : 2), "rank of the projection");
    projection.matrix = per_head ? matrix : with_leading_axis(matrix);
    require(projection.matrix.extent(2) == of.integer("max_length"), "max_length");
    projection.slot_bias = with_leading_axis(of.optional<Real>(side + "_projection_bias"));
    projection.channel_bias = of.optional<Real>("slot_" + side + "_bias");
  } else if (kind == "convolution") {
    projection.convolution = of.tensor<Real>(side + "_conv_weight");
    projection.channel_bias = with_leading_axis(of.tensor<Real>(side + "_conv_bias"));
    require(projection.convolution.extent(2) == of.integer("rate"), "rate");
  } else {
    require(kind == "mean_pool" || kind == "max_pool", "projection " + kind);
    (kind == "mean_pool" ? projection.mean_pool : projection.max_pool) = of.integer("rate");
  }
  return projection;
}

}  // namespace detail

template <typename Real>
LinformerProblem<Real> linformer_problem(const Case& of) {
  LinformerProblem<Real> problem{of.tensor<Real>("query"), of.tensor<Real>("key"), of.tensor<Real>("value"), {}};
  const Index length = problem.key.extent(2);
  auto& options = problem.options;
  options.key_projection = detail::linformer_projection<Real>(of, "key");
  if (!of.flag("shared_projection")) options.value_projection = detail::linformer_projection<Real>(of, "value");
  options.keep_keys = of.mask("padding_mask");
  options.scores.scale = static_cast<Real>(of.number("scale"));
  require(length <= of.integer("max_length"), "max_length");
  require(reference::slots_of(options.key_projection, length) == of.integer("slots"), "slots");
  if (of.has_option("per_head_projection")) of.flag("per_head_projection");
  if (of.flag("shared_key_value")) require(problem.key.elements() == problem.value.elements(), "shared_key_value");
  return problem;
}

template <typename Real>
Solution<Real> solve_linformer(const Case& of, const Precision& precision) {
  const auto problem = linformer_problem<Real>(of);
  return detail::solution(
      of, reference::linformer_attention<Real>(problem.query, problem.key, problem.value, problem.options, precision));
}

// ---- performer_attention, random_features

template <typename Real>
struct PerformerProblem {
  Tensor<Real> query{}, key{}, value{};
  reference::PerformerOptions<Real> options;
};

template <typename Real>
struct FeaturesProblem {
  Tensor<Real> input;
  reference::FeatureSide side;
  reference::PerformerOptions<Real> options;
};

namespace detail {

inline reference::FeatureMap feature_map(const std::string& kernel) {
  using reference::FeatureMap;
  static const std::map<std::string, FeatureMap> known{{"softmax_positive", FeatureMap::positive},
                                                       {"trigonometric", FeatureMap::trigonometric},
                                                       {"relu", FeatureMap::relu},
                                                       {"elu_plus_one", FeatureMap::elu_plus_one},
                                                       {"softmax_features", FeatureMap::softmax}};
  require(known.contains(kernel), "kernel " + kernel);
  return known.at(kernel);
}

template <typename Real>
reference::PerformerOptions<Real> feature_options(const Case& of, Index head_dim) {
  reference::PerformerOptions<Real> options;
  options.features = feature_map(of.text("kernel"));
  options.projection = of.optional<Real>("projection");
  const Real scaled = std::pow(static_cast<Real>(head_dim), Real(-0.25));
  options.input_scale = of.flag("scaled_inputs") ? scaled : Real(1);
  options.epsilon = static_cast<Real>(of.number("epsilon"));
  of.expect_text("stabilizer", "reference");
  options.stabiliser = reference::Stabiliser::reference;
  return options;
}

}  // namespace detail

template <typename Real>
PerformerProblem<Real> performer_problem(const Case& of) {
  PerformerProblem<Real> problem{of.tensor<Real>("query"), of.tensor<Real>("key"), of.tensor<Real>("value"), {}};
  auto& options = problem.options;
  options = detail::feature_options<Real>(of, problem.query.extent(3));
  options.causal = of.flag("causal");
  options.normalize = of.flag("renormalize");
  options.denominator_guard = static_cast<Real>(of.number("denominator_guard"));
  options.key_sum_epsilon = static_cast<Real>(of.number("key_sum_epsilon"));
  options.keep_keys = of.mask("key_padding_mask");
  const std::string gradient = of.text("stabilizer_gradient"), rule = of.text("source_eps_rule");
  require(gradient == "through_max" || gradient == "detached" || gradient == "none", "stabilizer_gradient");
  require(rule.starts_with("google: eps inside the ratio") || rule.starts_with("lucidrains: eps inside the ratio"),
          "source_eps_rule");
  options.differentiate_maximum = gradient == "through_max";
  return problem;
}

template <typename Real>
FeaturesProblem<Real> features_problem(const Case& of) {
  const auto input = of.tensor<Real>("input");
  const auto side = of.flag("is_query") ? reference::FeatureSide::query : reference::FeatureSide::key;
  return {input, side, detail::feature_options<Real>(of, input.extent(3))};
}

template <typename Real>
Solution<Real> solve_performer(const Case& of, const Precision& precision) {
  const auto problem = performer_problem<Real>(of);
  return {{"out", reference::performer_attention<Real>(problem.query, problem.key, problem.value, problem.options,
                                                       precision)}};
}

template <typename Real>
Solution<Real> solve_features(const Case& of, const Precision& precision) {
  const auto problem = features_problem<Real>(of);
  return {{"out", reference::performer_features<Real>(problem.input, problem.side, problem.options, precision)}};
}

// ---- relative_attention, sinusoidal_positions

template <typename Real>
struct RelativeProblem {
  Tensor<Real> query, key, value;                            // keys: [compressed, memory, current]
  Index compressed_length = 0, memory_length = 0;            // the second counts the first, too
  Tensor<Real> position{}, content_bias{}, position_bias{};  // the biases may be absent
  std::optional<Index> before{};
  Real scale = 1;
  Tensor<std::uint8_t> visible{};  // (queries, keys), or absent: the pairs a query may see
};

template <typename Real>
RelativeProblem<Real> relative_problem(const Case& of) {
  RelativeProblem<Real> problem{of.tensor<Real>("query"), of.tensor<Real>("key"), of.tensor<Real>("value")};
  problem.compressed_length = of.optional_integer("compressed_length").value_or(0);
  problem.memory_length = of.integer("memory_length");
  require(problem.memory_length + problem.query.extent(2) == problem.key.extent(2), "memory_length");
  require(problem.compressed_length <= problem.memory_length, "compressed_length");
  require(of.flag("causal"), "causal");
  problem.position = of.tensor<Real>("position");
  problem.content_bias = of.optional<Real>("content_bias");
  problem.position_bias = of.optional<Real>("position_bias");
  const Index limit = of.integer("memory_limit");
  if (of.flag("same_length")) problem.before = limit - 1;
  problem.scale = static_cast<Real>(of.number("scale"));
  problem.visible = of.mask("keep_mask");
  return problem;
}

/// The pairs are the reference's own; that they are those of the file is checked here.
template <typename Real>
void check_visible(const RelativeProblem<Real>& problem) {
  if (!problem.visible.present()) return;
  const Index queries = problem.query.extent(2), keys = problem.key.extent(2);
  for (Index i = 0; i < queries; ++i)
    for (Index j = 0; j < keys; ++j)
      require(reference::relative_allows(keys - queries + i - j, problem.before) == (problem.visible(i, j) != 0),
              "keep_mask");
}

template <typename Real>
reference::RelativeOptions<Real> relative_options(const RelativeProblem<Real>& problem) {
  reference::RelativeOptions<Real> options;
  options.position = problem.position;
  options.content_bias = problem.content_bias;
  options.position_bias = problem.position_bias;
  options.before = problem.before;
  options.scores.scale = problem.scale;
  return options;
}

template <typename Real>
Solution<Real> solve_relative(const Case& of, const Precision& precision) {
  const auto problem = relative_problem<Real>(of);
  check_visible(problem);
  return detail::solution(of, reference::relative_attention<Real>(problem.query, problem.key, problem.value,
                                                                  relative_options(problem), precision));
}

struct PositionsProblem {
  Index length, width;
  std::optional<Index> clamp;
};

inline PositionsProblem positions_problem(const Case& of) {
  const Index clamp = of.integer("clamp_length");
  return {of.integer("length"), of.integer("width"), clamp > 0 ? std::optional<Index>(clamp) : std::nullopt};
}

template <typename Real>
Solution<Real> solve_positions(const Case& of, const Precision& precision) {
  const PositionsProblem problem = positions_problem(of);
  return {{"out", reference::sinusoidal_positions<Real>(problem.length, problem.width, problem.clamp, precision)}};
}

// ---- compression, compressive_memory

template <typename Real>
struct CompressionProblem {
  Tensor<Real> input;
  reference::Projection<Real> compression;
};

template <typename Real>
struct StreamProblem {
  std::vector<Tensor<Real>> pushes;                     // per step (batch, 1, length, width)
  Tensor<Real> query_weight, key_weight, value_weight;  // (width, width), y = x W^T
  Index heads = 1, segment_length = 0;
  reference::MemoryLengths lengths;
  reference::Projection<Real> compression;
  Tensor<Real> position_table;  // absent: no positions
  Real scale = 1;
};

namespace detail {

template <typename Real>
reference::Projection<Real> compression_of(const Case& of) {
  const std::string kind = of.text("compression");
  const Index rate = of.integer("rate");
  reference::Projection<Real> compression;
  if (kind == "convolution") {
    compression.convolution = of.tensor<Real>("compression_weight");
    compression.channel_bias = with_leading_axis(of.tensor<Real>("compression_bias"));
    require(compression.convolution.extent(2) == rate, "rate");
  } else {
    require(kind == "mean" || kind == "max", "compression " + kind);
    (kind == "mean" ? compression.mean_pool : compression.max_pool) = rate;
  }
  return compression;
}

}  // namespace detail

template <typename Real>
CompressionProblem<Real> compression_problem(const Case& of) {
  return {of.tensor<Real>("input"), detail::compression_of<Real>(of)};
}

template <typename Real>
StreamProblem<Real> stream_problem(const Case& of) {
  StreamProblem<Real> problem;
  for (Index step = 0; step < of.integer("steps"); ++step)
    problem.pushes.push_back(of.tensor<Real>("push_" + std::to_string(step)));
  problem.query_weight = of.tensor<Real>("query_weight");
  problem.key_weight = of.tensor<Real>("key_weight");
  problem.value_weight = of.tensor<Real>("value_weight");
  problem.heads = of.integer("heads");
  problem.segment_length = of.integer("segment_length");
  problem.lengths = {of.integer("memory_length"), of.integer("compressed_length")};
  problem.compression = detail::compression_of<Real>(of);
  if (of.flag("learned_positions")) problem.position_table = of.tensor<Real>("position_table");
  problem.scale = static_cast<Real>(of.number("scale"));
  of.expect_text("initial_memory", "empty");
  of.expect_text("loss_target", "whole_memory_before_update");
  of.expect_text("remainder", "none");
  require(of.flag("update_only_on_full_segment"), "update_only_on_full_segment");
  return problem;
}

/// Rows by distance: the table's run backwards from where distance 0 stands while the memories fill.
template <typename Real>
Tensor<Real> stream_positions(const StreamProblem<Real>& problem, Index segment, Index keys) {
  const Tensor<Real>& table = problem.position_table;
  Tensor<Real> position({table.extent(0), keys, table.extent(2)});
  for (Index h = 0; h < table.extent(0); ++h)
    for (Index r = 0; r < keys; ++r)
      for (Index c = 0; c < table.extent(2); ++c)
        position(h, r, c) = table(h, problem.segment_length - segment + keys - 1 - r, c);
  return position;
}

template <typename Real>
class Stream {
 public:
  Stream(const StreamProblem<Real>& problem, const Precision& precision)
      : problem_(problem),
        precision_(precision),
        memory_(problem.pushes.front().extent(0), 1, problem.pushes.front().extent(3), problem.lengths) {}

  /// What a loss of the step is about: rows before and after they were compressed.
  struct Eviction {
    Index step;
    Tensor<Real> segment;
    Bounded<Real> before;
    Tensor<Real> evicted;
    Bounded<Real> compressed;
  };
  const std::vector<Eviction>& evictions() const { return evictions_; }

  /// Queries, keys or values of some rows.
  Bounded<Real> projected(const Bounded<Real>& rows, const Tensor<Real>& weight) const {
    return reference::linear_heads(rows, weight, problem_.heads, precision_);
  }
  reference::KeysAndValues<Real> keys_and_values(const Bounded<Real>& rows) const {
    return {projected(rows, problem_.key_weight), projected(rows, problem_.value_weight)};
  }

  /// Attends, then remembers; adds the outputs of the step to the solution.
  void step(Index number, Solution<Real>& solution) {
    const std::string suffix = "_" + std::to_string(number);
    const Tensor<Real>& segment = problem_.pushes[reference::to_size(number)];
    solution["out" + suffix] = solution["out"] = attend(segment);
    if (segment.extent(2) == problem_.segment_length) {
      const Bounded<Real> before(memory_.memory);
      const auto pushed = memory_.push(segment, problem_.compression, precision_);
      if (pushed.evicted.extent(2) > 0) {
        solution["reconstruction_loss" + suffix] = loss(segment, before, pushed.compressed);
        evictions_.push_back({number, segment, before, pushed.evicted, pushed.compressed});
      }
    }
    solution["memory" + suffix] = reference::stored(Bounded<Real>(memory_.memory), precision_);
    solution["compressed_memory" + suffix] = memory_.compressed;
  }

 private:
  Bounded<Real> attend(const Tensor<Real>& segment) const {
    const Bounded<Real> rows =
        join_rows(join_rows(memory_.compressed, Bounded<Real>(memory_.memory)), Bounded<Real>(segment));
    const auto query = projected(segment, problem_.query_weight);
    const auto key = projected(rows, problem_.key_weight), value = projected(rows, problem_.value_weight);
    if (problem_.position_table.present()) {
      reference::RelativeOptions<Real> options;
      options.position = stream_positions(problem_, segment.extent(2), rows.extent(2));
      options.scores.scale = problem_.scale;
      return reference::relative_attention(query, key, value, options, precision_).out;
    }
    reference::Scores<Real> scores;
    scores.scale = problem_.scale;
    scores.causal = true;
    scores.offset = rows.extent(2) - segment.extent(2);
    return reference::attention(query, key, value, scores, {}, precision_).out;
  }

  Bounded<Real> loss(const Tensor<Real>& segment, const Bounded<Real>& old, const Bounded<Real>& fresh) const {
    const auto query = projected(segment, problem_.query_weight);
    Bounded<Real> result(std::vector<Index>{1});
    result.set(reference::attention_reconstruction_loss(query, keys_and_values(old), keys_and_values(fresh),
                                                        std::optional<Real>(problem_.scale), true, precision_),
               0);
    return result;
  }

  StreamProblem<Real> problem_;
  Precision precision_;
  reference::CompressiveMemory<Real> memory_;
  std::vector<Eviction> evictions_;
};

template <typename Real>
Solution<Real> solve_compression(const Case& of, const Precision& precision) {
  const auto problem = compression_problem<Real>(of);
  return {
      {"out", reference::stored(reference::project<Real>(problem.input, problem.compression, precision), precision)}};
}

template <typename Real>
Solution<Real> solve_stream(const Case& of, const Precision& precision) {
  const auto problem = stream_problem<Real>(of);
  Stream<Real> stream(problem, precision);
  Solution<Real> solution;
  for (Index step = 0; step < static_cast<Index>(problem.pushes.size()); ++step) stream.step(step, solution);
  return solution;
}

// ---- all

/// The reference's solution of any case, by name of the output; gradients are not among them.
template <typename Real>
Solution<Real> solve(const Case& of, const Precision& precision) {
  using Solve = Solution<Real> (*)(const Case&, const Precision&);
  static const std::map<std::string, Solve> known{
      {"full_attention", &solve_attention<Real>},       {"longformer_attention", &solve_longformer<Real>},
      {"linformer_attention", &solve_linformer<Real>},  {"performer_attention", &solve_performer<Real>},
      {"random_features", &solve_features<Real>},       {"relative_attention", &solve_relative<Real>},
      {"sinusoidal_positions", &solve_positions<Real>}, {"compression", &solve_compression<Real>},
      {"compressive_memory", &solve_stream<Real>}};
  require(known.contains(of.op()), "op " + of.op());
  return known.at(of.op())(of, precision);
}

}  // namespace golden
