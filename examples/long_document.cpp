// Reading a long document with every attention operator: what each costs at which length of context, and how well a
// trained model then says what comes next.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "attention_operators.hpp"
#include "byte_transformer.hpp"
#include "checkpoint.hpp"
#include "encoding_operators.hpp"
#include "longview/instruction_set.hpp"
#include "progress_bar.hpp"
#include "training_text.hpp"

namespace {

using longview::Index;
using Clock = std::chrono::steady_clock;

struct Arguments {
  std::vector<std::filesystem::path> files;
  std::vector<Index> lengths{1024, 4096, 16384, 65536};
  double patience = 10;  ///< seconds for the document with an operator that sees everything
  int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 64U));
  std::filesystem::path checkpoint;
};

struct Choice {
  std::string name;
  bool quadratic = false;  ///< in the length; sees everything, so that the others are compared with it
  bool predicts = true;    ///< does not see what it is to say
  std::function<std::unique_ptr<Attention>()> make{};
};

/// Operators that can stand in the place of the one that the model was trained with.
std::vector<Choice> choices_for(const ByteTransformer& model) {
  using Lengths = RecurrentAttention::Lengths;
  const auto recurrent = [](const Lengths& lengths) {
    return [=] { return std::make_unique<RecurrentAttention>(lengths); };
  };
  const TransformerSizes& sizes = model.sizes;
  const Lengths compressive{.segment = 512, .memory = 512, .compressed = 512, .rate = sizes.rate};
  if (model.kind == AttentionKind::relative || model.kind == AttentionKind::compressive)
    return {{"relative, whole past", true, true, recurrent({})},
            {"relative, memory of 512", false, true, recurrent({.segment = 512, .memory = 512})},
            {"compressive memory, 512 + 512", false, true, recurrent(compressive)}};
  return {{"full", true, true, [] { return std::make_unique<FullAttention>(); }},
          {"sliding window of 256", false, true, [] { return std::make_unique<WindowAttention>(255); }},
          {"windows of " + std::to_string(sizes.reach) + " and more, dilated", false, true,
           [] { return std::make_unique<GrowingWindows>(); }},
          {"longformer, 256 and 32 global", false, true, [] { return std::make_unique<WindowAndGlobals>(255, 32); }},
          {"linformer, 256 pooled slots", false, false, [] { return std::make_unique<PooledAttention>(256); }},
          {"performer, 256 features", false, true, [] { return std::make_unique<RandomFeatureAttention>(256); }},
          {"memory of 512", false, true, recurrent({.segment = 512, .memory = 512})},
          {"compressive memory, 512 + 512", false, true, recurrent(compressive)}};
}

struct Measurement {
  std::string name;
  Index length = 0;
  bool predicts = true;
  double bits = 0;                            ///< per byte
  double microseconds = 0, in_attention = 0;  ///< per byte
  std::optional<double> error{};              ///< of the encoded rows, relative to those of full attention
  std::size_t extra_bytes = 0;
};

/// The text in passages of this length, one after the other; `encoded` takes the rows of all.
Measurement measure(const ByteTransformer& model, const Choice& choice, const Passages& all, Index length,
                    const ThreadPool& pool, Matrix& encoded) {
  encoded.resize(all.count() * length, model.sizes.width);
  Measurement measured{.name = choice.name, .length = length, .predicts = choice.predicts};
  const std::unique_ptr<Attention> attention = choice.make();
  Transformer transformer(model, *attention, pool);
  double total = 0, bytes = 0;
  for (const Index first : all.first) {
    const Passages passage{all.text, {first}};
    transformer.begin(1, length);
    const Index step = attention->rows_at_once(length);
    for (Index row = 0; row < length; row += step) {
      const Index count = std::min(step, length - row);
      const Clock::time_point start = Clock::now();
      transformer.forward(passage, row, count, Transformer::Then::remember);
      total += std::chrono::duration<double>(Clock::now() - start).count();
      const std::vector<double>& bits = transformer.bits(passage, row);
      measured.bits = std::accumulate(bits.begin(), bits.end(), measured.bits);
      encoded.middleRows(static_cast<Index>(bytes), count) = transformer.encoded();
      bytes += static_cast<double>(count);
      measured.extra_bytes = std::max(measured.extra_bytes, attention->extra_bytes());
    }
    measured.in_attention += transformer.seconds_in_attention();
  }
  measured.bits /= bytes;
  measured.microseconds = 1e6 * total / bytes, measured.in_attention *= 1e6 / bytes;
  return measured;
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
  std::printf("%7s  %-34s %13s %7s %13s %13s %13s\n", "context", "attention", "bits per byte", "error", "time per byte",
              "in attention", "extra memory");
}
void print(const Measurement& row) {
  char bits[16] = "-", error[16] = "-";
  if (row.predicts) std::snprintf(bits, sizeof bits, "%.3f", row.bits);
  if (row.error) std::snprintf(error, sizeof error, "%.3f", *row.error);
  std::printf("%7td  %-34s %13s %7s %10.2f us %10.2f us %13s\n", row.length, row.name.c_str(), bits, error,
              row.microseconds, row.in_attention, text_of_bytes(row.extra_bytes).c_str());
  std::fflush(stdout);
}

/// Of those that predict, the fastest whose bits are nearly the fewest; with random weights, the fastest.
void print_what_fits(const std::vector<Measurement>& rows, const std::vector<Index>& lengths, bool trained) {
  const double nearly = trained ? 1.02 : std::numeric_limits<double>::infinity();
  std::printf("fits best (the fastest%s):", trained ? " within 2 % of the fewest bits" : "; random weights tell no more");
  const Measurement* last = nullptr;
  for (const Index length : lengths) {
    double fewest = std::numeric_limits<double>::infinity();
    const Measurement* best = nullptr;
    for (const Measurement& row : rows)
      if (row.length == length && row.predicts) fewest = std::min(fewest, row.bits);
    for (const Measurement& row : rows)
      if (row.length == length && row.predicts && row.bits <= nearly * fewest &&
          (best == nullptr || row.microseconds < best->microseconds))
        best = &row;
    if (last == nullptr || last->name != best->name)
      std::printf("%s %s at %td", last == nullptr ? "" : ";", best->name.c_str(), length);
    else
      std::printf(", %td", length);
    last = best;
  }
  std::printf("\n");
}

/// Seconds that the text should take at this length, as time per byte grows with the length.
double predicted_seconds(const std::vector<Measurement>& rows, const Choice& choice, Index length, Index bytes) {
  double seconds = 0;
  for (const Measurement& row : rows)
    if (row.name == choice.name && choice.quadratic)
      seconds =
          1e-6 * static_cast<double>(bytes) *
          (row.microseconds + row.in_attention * (static_cast<double>(length) / static_cast<double>(row.length) - 1));
  return seconds;
}

/// Ascending, none beyond the text.
std::vector<Index> lengths_within(std::vector<Index> lengths, Index size) {
  for (Index& length : lengths) length = std::min(length, size);
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

void print_setting(const Arguments& arguments, const std::optional<Checkpoint>& checkpoint,
                   const ByteTransformer& model, Index bytes, const ThreadPool& pool) {
  std::printf("text: %td bytes%s\n", bytes, arguments.files.empty() ? " that training holds out" : "");
  const TransformerSizes& sizes = model.sizes;
  std::printf("model: %td layers, width %td, %td heads, ", sizes.layers, sizes.width, sizes.heads);
  if (checkpoint)
    std::printf("trained with %s attention for %td of %td steps (%s)\n", name_of(model.kind), checkpoint->step,
                checkpoint->plan.steps, arguments.checkpoint.c_str());
  else
    std::printf("random weights, of which the bits say nothing: --checkpoint FILE\n");
  std::printf("runs on: %td thread(s), %s\n\n", pool.concurrency(), longview::name_of(longview::instruction_set()));
}

void run(const Arguments& arguments) {
  std::optional<Checkpoint> checkpoint;
  if (!arguments.checkpoint.empty()) checkpoint = load_checkpoint(arguments.checkpoint);
  const ByteTransformer model = checkpoint ? checkpoint->model : random_transformer(AttentionKind::full, {}, 1);
  constexpr std::size_t everything = std::size_t{1} << 40;
  const std::vector<std::uint8_t> text = arguments.files.empty() ? read_headers_of_this_machine().held_out
                                                                 : read_document(arguments.files, everything).bytes;
  if (text.size() < 2) throw std::runtime_error("the text is too short");
  const std::vector<Index> lengths = lengths_within(arguments.lengths, static_cast<Index>(text.size()) - 1);
  const Index bytes = lengths.back();
  const ThreadPool pool(arguments.threads);
  print_setting(arguments, checkpoint, model, bytes, pool);
  print_header();

  const std::vector<Choice> choices = choices_for(model);
  ProgressBar progress(std::numeric_limits<double>::infinity());
  std::vector<Measurement> rows;
  double done = 0;
  Matrix exact, encoded;
  for (const Index length : lengths) {
    Passages passages{text, {}};
    exact.resize(0, 0);
    for (Index first = 0; first + length <= bytes; first += length) passages.first.push_back(first);
    for (const Choice& choice : choices) {
      progress.show(done++ / static_cast<double>(lengths.size() * choices.size()),
                    choice.name + " at " + std::to_string(length));
      const double seconds = predicted_seconds(rows, choice, length, bytes);
      if (seconds > arguments.patience) {
        progress.clear();
        std::printf("%7td  %-34s left out, it would take about %.0f s\n", length, choice.name.c_str(), seconds);
        continue;
      }
      rows.push_back(measure(model, choice, passages, length, pool, encoded));
      if (choice.quadratic)
        exact = encoded;
      else if (exact.size() != 0)
        rows.back().error = (encoded - exact).norm() / exact.norm();
      progress.clear();
      print(rows.back());
    }
  }
  std::printf("\n");
  print_what_fits(rows, lengths, checkpoint.has_value());
  std::printf(R"(
bits per byte: of what comes next, in the same %td bytes cut into contexts of that length; the model was not trained anew for
  the operator. Linformer sees what is to come, so it says nothing
error: of the encoded rows against those with full attention, relative to them, in the root of the mean square
extra memory: scratch, as a dry run reports it, and the operator's own tables and memories (counted)
)",
              bytes);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Reads a long document of bytes with every attention operator.");
  app.add_option("FILE", arguments.files, "text; by default C++ headers of this machine that training holds out");
  app.add_option("--lengths", arguments.lengths, "of context, in bytes; the longest is the length of the text")
      ->delimiter(',')
      ->check(CLI::Range(Index{1}, Index{1} << 40));
  app.add_option("--patience", arguments.patience, "seconds that full attention may take for the text");
  app.add_option("--threads", arguments.threads, "threads to run on")->check(CLI::Range(1, 1024));
  app.add_option("--checkpoint", arguments.checkpoint, "a model of train_language_model");
  CLI11_PARSE(app, argc, argv);
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "long_document: %s\n", error.what());
    return 1;
  }
  return 0;
}
