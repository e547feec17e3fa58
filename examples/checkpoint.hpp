// A model, and where its training stands, in one safetensors file with a JSON configuration in its metadata.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "adam.hpp"
#include "byte_transformer.hpp"
#include "safetensors.hpp"

inline constexpr std::array<const char*, 5> attention_names{"full", "window", "performer", "relative", "compressive"};
inline const char* name_of(AttentionKind kind) { return attention_names[static_cast<std::size_t>(kind)]; }

/// Which passages a training reads when, and how fast it learns: with the seed and the text, this decides every bit.
struct TrainingPlan {
  longview::Index steps = 0, passages = 8;
  longview::Index segments = 1;  ///< of a passage, one step each
  std::uint64_t seed = 1;
  double rate = 4e-3;
  std::uint64_t text = 0;  ///< a hash of what is learnt from
};

struct Checkpoint {
  ByteTransformer model;
  TrainingPlan plan;
  longview::Index step = 0;  ///< done so far
  Adam adam;
};

/// Sizes and plan by name, for writing and reading alike.
template <typename Visit>
void visit_sizes(TransformerSizes& sizes, const Visit& visit) {
  visit("layers", sizes.layers), visit("width", sizes.width), visit("heads", sizes.heads), visit("inner", sizes.inner);
  visit("history", sizes.history), visit("segment", sizes.segment), visit("reach", sizes.reach);
  visit("features", sizes.features), visit("memory", sizes.memory), visit("compressed", sizes.compressed);
  visit("rate", sizes.rate);
}

/// A file is replaced only by a whole one.
inline void save_checkpoint(const std::filesystem::path& path, Checkpoint& checkpoint) {
  std::vector<safetensors::FloatTensor> tensors;
  const auto add = [&](const std::string& prefix, ByteTransformer& model) {
    visit_weights(model, [&](const std::string& name, const Matrix& matrix) {
      tensors.push_back(
          {prefix + name, {matrix.rows(), matrix.cols()}, {matrix.data(), static_cast<std::size_t>(matrix.size())}});
    });
  };
  add("", checkpoint.model), add("adam.mean.", checkpoint.adam.mean()), add("adam.square.", checkpoint.adam.square());
  nlohmann::json config{{"attention", name_of(checkpoint.model.kind)}};
  visit_sizes(checkpoint.model.sizes, [&](const char* name, longview::Index size) { config[name] = size; });
  const TrainingPlan& plan = checkpoint.plan;
  config["training"] = {{"step", checkpoint.step},   {"steps", plan.steps}, {"passages", plan.passages},
                        {"segments", plan.segments}, {"seed", plan.seed},   {"rate", plan.rate},
                        {"text", plan.text}};
  const std::filesystem::path unfinished = path.string() + ".part";
  safetensors::write(unfinished, tensors, {{"config", config.dump()}});
  std::filesystem::rename(unfinished, path);
}

/// Takes the configuration of a checkpoint apart and refuses what is not one.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::filesystem::path& path) : file_(path) {
    const auto found = file_.metadata().find("config");
    if (found == file_.metadata().end()) file_.fail("no config in its metadata: not written by train_language_model");
    try {
      config_ = nlohmann::json::parse(found->second);
    } catch (const nlohmann::json::exception& error) {
      file_.fail(std::string("config is not JSON: ") + error.what());
    }
    if (!config_.is_object()) file_.fail("config is not a JSON object");
  }

  Checkpoint read() const {
    TransformerSizes sizes;
    visit_sizes(sizes, [&](const char* name, longview::Index& size) {
      const bool may_be_zero = std::string(name) == "memory" || std::string(name) == "compressed";
      size = integer(config_, name, may_be_zero ? 0 : 1, 1 << 16);
    });
    if (sizes.width % sizes.heads != 0 || sizes.width % 2 != 0)
      file_.fail("config: width " + std::to_string(sizes.width) + ", expected an even multiple of the heads, " +
                 std::to_string(sizes.heads));
    const AttentionKind kind = attention();
    ByteTransformer model = read_weights("", kind, sizes);
    const nlohmann::json& training = field(config_, "training");
    if (!training.is_object()) file_.fail("config: training is not an object");
    TrainingPlan plan;
    constexpr std::int64_t most = std::int64_t{1} << 40;
    plan.steps = integer(training, "steps", 1, most), plan.passages = integer(training, "passages", 1, 1 << 20);
    plan.segments = integer(training, "segments", 1, 1 << 20);
    plan.seed = bits(training, "seed"), plan.text = bits(training, "text");
    if (!field(training, "rate").is_number()) file_.fail("config: rate is not a number");
    plan.rate = field(training, "rate").get<double>();
    const longview::Index step = integer(training, "step", 0, plan.steps);
    Adam adam(model, {.rate = plan.rate});
    adam.mean() = read_weights("adam.mean.", kind, sizes);
    adam.square() = read_weights("adam.square.", kind, sizes);
    return {std::move(model), plan, step, std::move(adam)};
  }

 private:
  const nlohmann::json& field(const nlohmann::json& of, const std::string& name) const {
    if (!of.contains(name)) file_.fail("config: no " + name);
    return of.at(name);
  }
  longview::Index integer(const nlohmann::json& of, const std::string& name, std::int64_t least,
                          std::int64_t most) const {
    const nlohmann::json& value = field(of, name);
    if (!value.is_number_integer() || value < least || value > most)
      file_.fail("config: " + name + " is " + value.dump() + ", expected an integer from " + std::to_string(least) +
                 " to " + std::to_string(most));
    return value.get<longview::Index>();
  }
  std::uint64_t bits(const nlohmann::json& of, const std::string& name) const {
    const nlohmann::json& value = field(of, name);
    if (!value.is_number_unsigned()) file_.fail("config: " + name + " is " + value.dump() + ", expected an integer");
    return value.get<std::uint64_t>();
  }
  AttentionKind attention() const {
    const nlohmann::json& value = field(config_, "attention");
    for (std::size_t kind = 0; kind < attention_names.size(); ++kind)
      if (value == attention_names[kind]) return static_cast<AttentionKind>(kind);
    file_.fail("config: attention is " + value.dump() + ", expected full, window, performer, relative or compressive");
  }
  ByteTransformer read_weights(const std::string& prefix, AttentionKind kind, const TransformerSizes& sizes) const {
    ByteTransformer model = zero_transformer(kind, sizes);
    visit_weights(model, [&](const std::string& name, Matrix& matrix) {
      const std::vector<float> elements = file_.read<float>(prefix + name, {matrix.rows(), matrix.cols()});
      matrix = Eigen::Map<const Matrix>(elements.data(), matrix.rows(), matrix.cols());
    });
    return model;
  }

  safetensors::File file_;
  nlohmann::json config_;
};

inline Checkpoint load_checkpoint(const std::filesystem::path& path) { return CheckpointReader(path).read(); }
