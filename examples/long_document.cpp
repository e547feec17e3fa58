// Encoding one long document with every attention operator: what each costs at which length, and how far it is from
// full attention.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "attention_operators.hpp"
#include "byte_transformer.hpp"
#include "document.hpp"
#include "longview/instruction_set.hpp"
#include "progress_bar.hpp"

namespace {

using longview::Index;

struct Arguments {
  std::vector<std::filesystem::path> files;
  std::vector<Index> lengths{1024, 4096, 16384, 65536};
  double patience = 15;  ///< seconds for one document with full attention
  int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 64U));
  std::filesystem::path checkpoint, save;
  Index heads = 2;
};

struct Choice {
  std::string name;
  bool sees_everything, causal;
  std::function<std::unique_ptr<Attention>()> make;
};

template <typename Operator, typename... Sizes>
Choice choice(const std::string& name, bool sees_everything, bool causal, Sizes... sizes) {
  return {name, sees_everything, causal, [=] { return std::make_unique<Operator>(sizes...); }};
}

/// Those that see everything stand before the ones that are compared with them.
const std::vector<Choice>& choices() {
  static const std::vector<Choice> all{
      choice<FullAttention>("full", true, false),
      choice<WindowAttention>("sliding window, 256 each side", false, false, Index{256}),
      choice<WindowAndGlobals>("longformer, 128 and 32 global", false, false, Index{128}, Index{32}),
      choice<PooledAttention>("linformer, 256 pooled slots", false, false, Index{256}),
      choice<RandomFeatureAttention>("performer, 256 features", false, false, Index{256}),
      choice<WholePast>("relative, whole past", true, true),
      choice<SegmentMemory>("relative, memory of 512", false, true, Index{512}),
      choice<CompressedPast>("compressive memory, 512 + 512", false, true, Index{512}, Index{512}, Index{4})};
  return all;
}

struct Measurement {
  std::string name;
  Index length = 0;
  bool exact = false, causal = false;
  double microseconds = 0, in_attention = 0;  ///< per token
  std::size_t extra_bytes = 0;
  std::optional<double> error{};
};

/// Root mean square of the difference, relative to that of the expected.
double relative_error(const Matrix& got, const Matrix& expected) {
  return std::sqrt((got - expected).cast<double>().squaredNorm() / expected.cast<double>().squaredNorm());
}

/// The fastest of some runs; of one if that takes long enough.
Matrix measure(Encoder& encoder, std::span<const std::uint8_t> bytes, Attention& attention, Measurement& measured) {
  Matrix encoded;
  double spent = 0;
  measured.microseconds = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 5 && spent < 0.4; ++round) {
    encoded = encoder.encode(bytes, attention);
    spent += encoder.seconds();
    const double per_token = 1e6 / static_cast<double>(bytes.size());
    if (encoder.seconds() * per_token >= measured.microseconds) continue;
    measured.microseconds = encoder.seconds() * per_token;
    measured.in_attention = encoder.seconds_in_attention() * per_token;
  }
  measured.extra_bytes = encoder.extra_bytes();
  return encoded;
}

std::string text_of_bytes(std::size_t bytes) {
  char text[32];
  const double size = static_cast<double>(bytes);
  if (size < 1024 * 1024)
    std::snprintf(text, sizeof text, "%.0f KiB", std::ceil(size / 1024));
  else
    std::snprintf(text, sizeof text, "%.1f MiB", size / (1024 * 1024));
  return text;
}

void print_header() {
  std::printf("%7s  %-30s %14s %13s %13s %9s\n", "length", "attention", "time per token", "in attention",
              "extra memory", "error");
}
void print(const Measurement& row) {
  char error[16] = "-";
  if (row.error) std::snprintf(error, sizeof error, "%.4f", *row.error);
  std::printf("%7td  %-30s %11.2f us %10.2f us %13s %9s\n", row.length, row.name.c_str(), row.microseconds,
              row.in_attention, text_of_bytes(row.extra_bytes).c_str(), error);
  std::fflush(stdout);
}

void print_skipped(const std::string& name, Index length, double seconds) {
  std::printf("%7td  %-30s left out, it would take about %.0f s\n", length, name.c_str(), seconds);
}

/// Seconds that a document should take, where time grows with the square of the length.
double predicted_seconds(const std::vector<Measurement>& rows, const std::string& name, Index length) {
  double seconds = length <= 16384 ? 0 : std::numeric_limits<double>::infinity();
  for (const Measurement& row : rows)
    if (row.name == name)
      seconds = 1e-6 * row.in_attention * static_cast<double>(length) * static_cast<double>(length) /
                static_cast<double>(row.length);
  return seconds;
}

/// All operators at one length.
void measure_length(Encoder& encoder, std::span<const std::uint8_t> bytes, double patience, ProgressBar& progress,
                    std::vector<Measurement>& rows) {
  const auto length = static_cast<Index>(bytes.size());
  std::map<bool, Matrix> expected;  // by causal
  for (const Choice& one : choices()) {
    progress.step(one.name + " at " + std::to_string(length));
    if (one.sees_everything && predicted_seconds(rows, one.name, length) > patience) {
      progress.clear();
      print_skipped(one.name, length, predicted_seconds(rows, one.name, length));
      continue;
    }
    const std::unique_ptr<Attention> attention = one.make();
    Measurement row{.name = one.name, .length = length, .exact = one.sees_everything, .causal = one.causal};
    Matrix encoded = measure(encoder, bytes, *attention, row);
    if (one.sees_everything)
      expected[one.causal] = std::move(encoded);
    else if (expected.contains(one.causal))
      row.error = relative_error(encoded, expected.at(one.causal));
    progress.clear();
    print(row);
    rows.push_back(row);
  }
}

/// Of the operators of one direction at one length: full attention if it takes at most twice the time of the fastest,
/// else, among those within twice that time, the one whose error was smallest at the longest length where errors are
/// known.
std::string best_at(const std::vector<Measurement>& rows, Index length, bool causal) {
  double fastest = std::numeric_limits<double>::infinity();
  for (const Measurement& row : rows)
    if (row.length == length && row.causal == causal) fastest = std::min(fastest, row.microseconds);
  const auto error_of = [&](const std::string& name) {
    double last = std::numeric_limits<double>::infinity();
    for (const Measurement& row : rows)
      if (row.name == name && row.error) last = *row.error;
    return last;
  };
  std::string best;
  double least = std::numeric_limits<double>::infinity();
  for (const Measurement& row : rows) {
    if (row.length != length || row.causal != causal || row.microseconds > 2 * fastest) continue;
    const double error = row.exact ? -1 : error_of(row.name);
    if (best.empty() || error < least) best = row.name.substr(0, row.name.find(',')), least = error;
  }
  return best;
}

void print_summary(const std::vector<Measurement>& rows, const std::vector<Index>& lengths) {
  std::string line;
  for (const Index length : lengths)
    line += (line.empty() ? "" : "; ") + std::to_string(length) + ": " + best_at(rows, length, false);
  std::printf("\nfits (least error within twice the shortest time): %s\n", line.c_str());
}

/// Ascending, none beyond the document.
std::vector<Index> lengths_within(std::vector<Index> lengths, Index size) {
  for (Index& length : lengths) length = std::min(length, size);
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

void print_setting(const Document& document, const ByteTransformer& model, const std::string& weights,
                   const ThreadPool& pool) {
  std::printf("document: %zu bytes of %zu file(s)\n", document.bytes.size(), document.files);
  std::printf("model: %zu layers, width %td, %td heads, %s\n", model.layers.size(), model.width(), model.heads,
              weights.c_str());
  std::printf("runs on: %td thread(s), %s\n\n", pool.concurrency(), longview::name_of(longview::instruction_set()));
}

void run(const Arguments& arguments) {
  const bool random = arguments.checkpoint.empty();
  const ByteTransformer model = random ? random_transformer({.heads = arguments.heads}, 1)
                                       : load_transformer(arguments.checkpoint, arguments.heads);
  if (!arguments.save.empty()) save_transformer(arguments.save, model);
  const Index longest = *std::max_element(arguments.lengths.begin(), arguments.lengths.end());
  const Document document = read_document(arguments.files.empty() ? headers_of_this_machine() : arguments.files,
                                          static_cast<std::size_t>(longest));
  const auto size = static_cast<Index>(document.bytes.size());
  const std::vector<Index> lengths = lengths_within(arguments.lengths, size);
  const ThreadPool pool(arguments.threads);
  print_setting(document, model, random ? "random weights" : arguments.checkpoint.string(), pool);
  print_header();

  Encoder encoder(model, pool, size);
  ProgressBar progress(static_cast<int>(lengths.size() * choices().size()));
  std::vector<Measurement> rows;
  for (const Index length : lengths)
    measure_length(encoder, std::span(document.bytes).first(static_cast<std::size_t>(length)), arguments.patience,
                   progress, rows);
  progress.clear();
  std::puts(R"(
extra memory: scratch, as a dry run reports it, and the operator's own tables and memories (counted)
error: of the encoding, root mean square relative to full attention; of the causal operators (relative, compressive
  memory) relative to relative attention over the whole past)");
  print_summary(rows, lengths);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Encodes a long document of bytes with every attention operator.");
  app.add_option("FILE", arguments.files, "text; by default C++ headers of this machine");
  app.add_option("--lengths", arguments.lengths, "in bytes")
      ->delimiter(',')
      ->check(CLI::Range(Index{1}, Index{1} << 40));
  app.add_option("--patience", arguments.patience, "seconds that full attention may take for one document");
  app.add_option("--threads", arguments.threads, "threads to run on")->check(CLI::Range(1, 1024));
  app.add_option("--checkpoint", arguments.checkpoint, "weights, as --save writes them; by default random ones");
  app.add_option("--save", arguments.save, "writes the weights to this safetensors file");
  app.add_option("--heads", arguments.heads, "heads of the model")->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "long_document: %s\n", error.what());
    return 1;
  }
  return 0;
}
