// A Hugging Face LongformerForMaskedLM: configuration and weights as transformers writes them, and the forward pass.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dense_layers.hpp"
#include "longview/eigen.hpp"
#include "longview/longformer_attention.hpp"
#include "safetensors.hpp"
#include "thread_pool.hpp"

namespace longformer {

using longview::Index;

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Config {
  Index vocab_size = 0, hidden_size = 0, intermediate_size = 0, max_position_embeddings = 0, type_vocab_size = 0;
  Index num_attention_heads = 0, num_hidden_layers = 0, pad_token_id = 0;
  std::vector<Index> attention_window{};  ///< one a layer, both sides together
  float layer_norm_eps = 0;
  Gelu hidden_act = Gelu::exact;
  bool tie_word_embeddings = true;
};

/// Reads config.json and refuses what the forward pass does not do.
class ConfigReader {
 public:
  explicit ConfigReader(std::filesystem::path path) : path_(std::move(path)) {
    std::ifstream stream(path_);
    if (!stream) fail("cannot be read");
    try {
      json_ = nlohmann::json::parse(stream);
    } catch (const nlohmann::json::exception& error) {
      fail(std::string("is not JSON: ") + error.what());
    }
    if (!json_.is_object()) fail("is not a JSON object");
  }

  Config read() const {
    expect("model_type", "longformer", true);
    expect("position_embedding_type", "absolute", false);
    Config config;
    config.vocab_size = size("vocab_size");
    config.hidden_size = size("hidden_size");
    config.intermediate_size = size("intermediate_size");
    config.max_position_embeddings = size("max_position_embeddings");
    config.type_vocab_size = size("type_vocab_size");
    config.num_attention_heads = size("num_attention_heads");
    config.num_hidden_layers = integer("num_hidden_layers", field("num_hidden_layers"), 1, 10000);
    if (config.hidden_size % config.num_attention_heads != 0)
      fail("hidden_size " + std::to_string(config.hidden_size) + " is no multiple of num_attention_heads " +
           std::to_string(config.num_attention_heads));
    config.pad_token_id = integer("pad_token_id", field("pad_token_id"), 0);
    if (config.pad_token_id >= config.vocab_size) fail("pad_token_id is not below vocab_size");
    config.attention_window = windows(config.num_hidden_layers);
    config.layer_norm_eps = epsilon();
    config.hidden_act = activation();
    config.tie_word_embeddings = flag("tie_word_embeddings", true);
    return config;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(path_.string() + ": " + what); }
  [[noreturn]] void refuse(const std::string& name, const nlohmann::json& value, const std::string& expected) const {
    using Handler = nlohmann::json::error_handler_t;
    const std::string given = value.is_structured()
                                  ? std::string("an ") + value.type_name() + " of " + std::to_string(value.size())
                                  : value.dump(-1, ' ', false, Handler::replace);
    fail(name + " is " + given + ", expected " + expected);
  }

  const nlohmann::json& field(const std::string& name) const {
    const auto found = json_.find(name);
    if (found == json_.end()) fail("no " + name);
    return *found;
  }
  void expect(const std::string& name, const std::string& only, bool required) const {
    if (!required && !json_.contains(name)) return;
    if (field(name) != only) refuse(name, field(name), "\"" + only + "\"");
  }
  Index integer(const std::string& name, const nlohmann::json& value, Index least,
                Index most = std::numeric_limits<std::int32_t>::max()) const {
    if (!value.is_number_integer() || value < least || value > most)
      refuse(name, value, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return value.get<Index>();
  }
  Index size(const std::string& name) const { return integer(name, field(name), 1); }
  bool flag(const std::string& name, bool otherwise) const {
    if (!json_.contains(name)) return otherwise;
    if (!field(name).is_boolean()) refuse(name, field(name), "true or false");
    return field(name).get<bool>();
  }
  float epsilon() const {
    const nlohmann::json& value = field("layer_norm_eps");
    if (!value.is_number() || value < 0 || value > 1) refuse("layer_norm_eps", value, "a number from 0 to 1");
    return value.get<float>();
  }
  Gelu activation() const {
    static const std::set<std::string> exact{"gelu", "gelu_python"};
    static const std::set<std::string> tanh{"gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"};
    const nlohmann::json& value = field("hidden_act");
    const std::string name = value.is_string() ? value.get<std::string>() : "";
    if (!exact.contains(name) && !tanh.contains(name))
      refuse("hidden_act", value, "gelu, gelu_python, gelu_new, gelu_fast, gelu_accurate or gelu_pytorch_tanh");
    return exact.contains(name) ? Gelu::exact : Gelu::tanh;
  }
  std::vector<Index> windows(Index layers) const {
    const nlohmann::json& value = field("attention_window");
    std::vector<Index> all;
    if (value.is_array())
      for (const auto& one : value) all.push_back(window(one));
    else
      all.assign(static_cast<std::size_t>(layers), window(value));
    if (static_cast<Index>(all.size()) != layers)
      refuse("attention_window", value, "one number, or one for each of " + std::to_string(layers) + " layers");
    return all;
  }
  Index window(const nlohmann::json& value) const {
    const Index both_sides = integer("attention_window", value, 2);
    if (both_sides % 2 != 0) refuse("attention_window", value, "even numbers");
    return both_sides;
  }

  std::filesystem::path path_;
  nlohmann::json json_;
};

/// Takes weights of known shape from a checkpoint.
class Weights {
 public:
  explicit Weights(const std::filesystem::path& path) : file_(path) {}

  Matrix matrix(const std::string& name, Index rows, Index columns) {
    used_.insert(name);
    const std::vector<float> elements = file_.read<float>(name, {rows, columns});
    return Eigen::Map<const Matrix>(elements.data(), rows, columns);
  }
  Eigen::RowVectorXf row(const std::string& name, Index columns) {
    used_.insert(name);
    const std::vector<float> elements = file_.read<float>(name, {columns});
    return Eigen::Map<const Eigen::RowVectorXf>(elements.data(), columns);
  }
  Dense dense(const std::string& name, Index outputs, Index inputs) {
    return {matrix(name + ".weight", outputs, inputs), row(name + ".bias", outputs)};
  }
  LayerNorm layer_norm(const std::string& name, const Config& config) {
    return {row(name + ".weight", config.hidden_size), row(name + ".bias", config.hidden_size), config.layer_norm_eps};
  }
  bool contains(const std::string& name) const { return file_.contains(name); }

  /// Tensors of the file that nobody asked for.
  std::vector<std::string> unused() const {
    std::vector<std::string> names;
    for (const std::string& name : file_.names())
      if (!used_.contains(name)) names.push_back(name);
    return names;
  }

 private:
  safetensors::File file_;
  std::set<std::string> used_;
};

/// Token ids and masks, each (batch, length), row-major.
struct Inputs {
  Index batch = 0, length = 0;
  std::vector<std::int64_t> ids;
  std::vector<std::uint8_t> attention_mask, global_attention_mask;  ///< 1: a real token; 1: a global one
  std::vector<std::int64_t> logit_positions;                        ///< of every item; see has_logit_positions
  bool has_logit_positions = false;                                 ///< otherwise logits of all positions
};

struct Outputs {
  std::vector<Matrix> hidden;  ///< (batch * length, hidden size) after the embeddings and after each layer
  Matrix logits;               ///< (batch * positions, vocabulary)
};

/// Reads input_ids, attention_mask, global_attention_mask and, where present, logit_positions.
inline Inputs read_inputs(const std::filesystem::path& path) {
  const safetensors::File file(path);
  const safetensors::Extents shape = file.shape("input_ids");
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1)
    file.fail("input_ids", "shape " + safetensors::text_of(shape) + ", expected [batch, length]");
  const auto mask = [&](const std::string& name) {
    std::vector<std::uint8_t> bits;
    for (const std::int64_t value : file.read<std::int64_t>(name, shape)) {
      if (value != 0 && value != 1) file.fail(name, "has " + std::to_string(value) + ", expected 0 or 1");
      bits.push_back(static_cast<std::uint8_t>(value));
    }
    return bits;
  };
  Inputs inputs{.batch = static_cast<Index>(shape[0]),
                .length = static_cast<Index>(shape[1]),
                .ids = file.read<std::int64_t>("input_ids"),
                .attention_mask = mask("attention_mask"),
                .global_attention_mask = mask("global_attention_mask"),
                .logit_positions = {},
                .has_logit_positions = file.contains("logit_positions")};
  if (inputs.has_logit_positions) {
    inputs.logit_positions = file.read<std::int64_t>("logit_positions");
    for (const std::int64_t position : inputs.logit_positions)
      if (position < 0 || position >= inputs.length)
        file.fail("logit_positions",
                  "has " + std::to_string(position) + ", the length is " + std::to_string(inputs.length));
  }
  return inputs;
}

class Model {
 public:
  /// From config.json and model.safetensors.
  explicit Model(const std::filesystem::path& directory) : config_(ConfigReader(directory / "config.json").read()) {
    Weights weights(directory / "model.safetensors");
    const Index width = config_.hidden_size;
    const std::string embeddings = "longformer.embeddings.";
    word_ = weights.matrix(embeddings + "word_embeddings.weight", config_.vocab_size, width);
    position_ = weights.matrix(embeddings + "position_embeddings.weight", config_.max_position_embeddings, width);
    token_type_ = weights.matrix(embeddings + "token_type_embeddings.weight", config_.type_vocab_size, width);
    norm_ = weights.layer_norm(embeddings + "LayerNorm", config_);
    for (Index layer = 0; layer < config_.num_hidden_layers; ++layer) layers_.push_back(read_layer(weights, layer));
    head_ = weights.dense("lm_head.dense", width, width);
    head_norm_ = weights.layer_norm("lm_head.layer_norm", config_);
    const std::string decoder = config_.tie_word_embeddings ? "" : "lm_head.decoder.";
    if (!decoder.empty()) decoder_ = weights.matrix(decoder + "weight", config_.vocab_size, width);
    const bool own_bias = !decoder.empty() && weights.contains(decoder + "bias");
    decoder_bias_ = weights.row(own_bias ? decoder + "bias" : "lm_head.bias", config_.vocab_size);
    unused_ = weights.unused();
  }

  const Config& config() const { return config_; }
  /// Tensors of the checkpoint that take no part.
  const std::vector<std::string>& unused() const { return unused_; }

  Outputs forward(const Inputs& inputs, const ThreadPool& pool) const {
    std::vector<Index> storage;
    const Masks masks{
        .keep = {inputs.attention_mask.data(), {inputs.batch, inputs.length}},
        .global = longview::token_sets({inputs.global_attention_mask.data(), {inputs.batch, inputs.length}}, storage)};
    Outputs outputs;
    outputs.hidden.push_back(embed(inputs, pool));
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      outputs.hidden.push_back(run(layers_[layer], outputs.hidden.back(), masks, pool));
    outputs.logits = logits(inputs, outputs.hidden.back(), pool);
    return outputs;
  }

 private:
  struct Layer {
    Dense query, key, value, query_global, key_global, value_global, mix;
    LayerNorm mix_norm;
    Dense up, down;
    LayerNorm down_norm;
    Index reach;
  };
  struct Masks {
    longview::TensorView<const std::uint8_t, 2> keep;
    longview::TokenSets global;
  };

  Layer read_layer(Weights& weights, Index index) const {
    const std::string layer = "longformer.encoder.layer." + std::to_string(index) + ".";
    const std::string attention = layer + "attention.", self = attention + "self.";
    const Index width = config_.hidden_size, inner = config_.intermediate_size;
    return {.query = weights.dense(self + "query", width, width),
            .key = weights.dense(self + "key", width, width),
            .value = weights.dense(self + "value", width, width),
            .query_global = weights.dense(self + "query_global", width, width),
            .key_global = weights.dense(self + "key_global", width, width),
            .value_global = weights.dense(self + "value_global", width, width),
            .mix = weights.dense(attention + "output.dense", width, width),
            .mix_norm = weights.layer_norm(attention + "output.LayerNorm", config_),
            .up = weights.dense(layer + "intermediate.dense", inner, width),
            .down = weights.dense(layer + "output.dense", width, inner),
            .down_norm = weights.layer_norm(layer + "output.LayerNorm", config_),
            .reach = config_.attention_window[static_cast<std::size_t>(index)] / 2};
  }

  /// Word, position and type 0. Positions count the tokens that are no padding, from pad_token_id + 1.
  Matrix embed(const Inputs& inputs, const ThreadPool& pool) const {
    Matrix x(inputs.batch * inputs.length, config_.hidden_size);
    for (Index item = 0; item < inputs.batch; ++item) {
      Index last_position = config_.pad_token_id;
      for (Index row = item * inputs.length; row < (item + 1) * inputs.length; ++row) {
        const std::int64_t id = inputs.ids[static_cast<std::size_t>(row)];
        if (id < 0 || id >= config_.vocab_size)
          throw Error("input_ids has " + std::to_string(id) + ", vocab_size is " + std::to_string(config_.vocab_size));
        const Index position = id == config_.pad_token_id ? config_.pad_token_id : ++last_position;
        if (position >= config_.max_position_embeddings)
          throw Error("too many tokens: max_position_embeddings " + std::to_string(config_.max_position_embeddings) +
                      " allows " + std::to_string(config_.max_position_embeddings - config_.pad_token_id - 1));
        x.row(row) = word_.row(static_cast<Index>(id)) + position_.row(position) + token_type_.row(0);
      }
    }
    norm_(x, pool);
    return x;
  }

  Matrix run(const Layer& layer, const Matrix& x, const Masks& masks, const ThreadPool& pool) const {
    Matrix h = layer.mix(attend(layer, x, masks, pool), pool);
    h += x;
    layer.mix_norm(h, pool);
    Matrix inner = layer.up(h, pool);
    gelu(inner, config_.hidden_act, pool);
    Matrix y = layer.down(inner, pool);
    y += h;
    layer.down_norm(y, pool);
    return y;
  }

  Matrix attend(const Layer& layer, const Matrix& x, const Masks& masks, const ThreadPool& pool) const {
    const Index batch = masks.keep.extent(0);
    const auto heads_of = [&](auto& rows) {  // (batch * length, width) as (batch, heads, length, head_dim)
      return longview::split_heads(longview::view(rows).unflatten(0, batch), config_.num_attention_heads);
    };
    longview::LongformerOptions<float> options{.window = {.before = layer.reach, .after = layer.reach},
                                               .keep_tokens = masks.keep};
    Matrix query_global, key_global, value_global;
    if (!masks.global.indices.empty()) {
      query_global = global_queries(layer, x, masks);
      key_global = layer.key_global(x, pool), value_global = layer.value_global(x, pool);
      options.global = {.tokens = masks.global,
                        .query = heads_of(query_global),
                        .key = heads_of(key_global),
                        .value = heads_of(value_global)};
    }
    const Matrix query = layer.query(x, pool), key = layer.key(x, pool), value = layer.value(x, pool);
    Matrix out(x.rows(), x.cols());
    longview::longformer_attention(heads_of(query), heads_of(key), heads_of(value), heads_of(out), options, pool);
    return out;
  }

  /// Only the rows of global tokens are ever read, so only they are projected.
  Matrix global_queries(const Layer& layer, const Matrix& x, const Masks& masks) const {
    Matrix query = Matrix::Zero(x.rows(), x.cols());
    for (std::size_t item = 0; item + 1 < masks.global.offsets.size(); ++item)
      for (Index at = masks.global.offsets[item]; at < masks.global.offsets[item + 1]; ++at) {
        const Index row =
            static_cast<Index>(item) * masks.keep.extent(1) + masks.global.indices[static_cast<std::size_t>(at)];
        query.row(row) = x.row(row) * layer.query_global.weight.transpose() + layer.query_global.bias;
      }
    return query;
  }

  /// The head's own activation is the exact one, whatever hidden_act says.
  Matrix logits(const Inputs& inputs, const Matrix& hidden, const ThreadPool& pool) const {
    Matrix h = head_(inputs.has_logit_positions ? chosen_rows(inputs, hidden) : hidden, pool);
    gelu(h, Gelu::exact, pool);
    head_norm_(h, pool);
    Matrix result;
    multiply(h, config_.tie_word_embeddings ? word_ : decoder_, result, pool);
    result.rowwise() += decoder_bias_;
    return result;
  }

  static Matrix chosen_rows(const Inputs& inputs, const Matrix& hidden) {
    const auto chosen = static_cast<Index>(inputs.logit_positions.size());
    Matrix rows(inputs.batch * chosen, hidden.cols());
    for (Index item = 0; item < inputs.batch; ++item)
      for (Index at = 0; at < chosen; ++at)
        rows.row(item * chosen + at) =
            hidden.row(item * inputs.length + static_cast<Index>(inputs.logit_positions[static_cast<std::size_t>(at)]));
    return rows;
  }

  Config config_;
  Matrix word_, position_, token_type_, decoder_;
  LayerNorm norm_, head_norm_;
  std::vector<Layer> layers_;
  Dense head_;
  Eigen::RowVectorXf decoder_bias_;
  std::vector<std::string> unused_;
};

/// hidden_0 ... hidden_L (batch, length, hidden size) and logits (batch, positions, vocabulary).
inline void write_outputs(const std::filesystem::path& path, const Inputs& inputs, const Outputs& outputs) {
  std::vector<safetensors::FloatTensor> tensors;
  const auto add = [&](const std::string& name, const Matrix& matrix) {
    tensors.push_back({name,
                       {inputs.batch, matrix.rows() / inputs.batch, matrix.cols()},
                       {matrix.data(), static_cast<std::size_t>(matrix.size())}});
  };
  for (std::size_t layer = 0; layer < outputs.hidden.size(); ++layer)
    add("hidden_" + std::to_string(layer), outputs.hidden[layer]);
  add("logits", outputs.logits);
  safetensors::write(path, tensors);
}

}  // namespace longformer
