// SPDX-License-Identifier: Apache-2.0
// golden_test [--golden DIR] [GoogleTest options]: the library against every *.safetensors file found directly in DIR,
// in float64 and float32 on every instruction set of the machine.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <set>

#include "golden_check.hpp"

namespace {

using golden::GoldenFile;
using golden::Report;
using longview::InstructionSet;

// ---- The files

/// What ran, for the lines at the end.
class Summary {
 public:
  /// One run of one file.
  void add(const std::string& file, const char* type, const char* set, const Report& report) {
    (report.quirk.empty() ? files_ : skipped_).insert(file);
    for (Part* part : {&all_, &sets_[std::string(type) + " " + set], &operators_[report.op + " " + type]}) {
      part->compared += report.compared;
      part->gradients += report.gradients;
      part->unbounded += report.unbounded;
      if (report.worst >= part->worst) part->worst = report.worst, part->worst_of = file + ", " + report.worst_of;
    }
  }

  void print() const {
    for (const auto* parts : {&operators_, &sets_})
      for (const auto& [name, part] : *parts)
        if (part.compared > 0)
          std::cout << "golden: " << name << ": " << part.compared << " forward comparisons, " << part.gradients
                    << " gradient comparisons, worst error " << part.worst << " of what is allowed (" << part.worst_of
                    << ")\n";
    std::cout << "golden: " << files_.size() << " files, " << all_.compared << " forward comparisons, "
              << all_.gradients << " gradient comparisons, " << all_.unbounded << " elements without a finite bound, "
              << skipped_.size() << " files skipped as quirks\n";
  }

 private:
  struct Part {
    golden::Index compared = 0, gradients = 0, unbounded = 0;
    double worst = 0;
    std::string worst_of;
  };
  Part all_;
  std::map<std::string, Part> sets_, operators_;
  std::set<std::string> files_, skipped_;
};

Summary summary;

template <typename T>
constexpr const char* type_name = sizeof(T) == 8 ? "float64" : "float32";

template <typename T>
class GoldenTest : public testing::Test {
 public:
  GoldenTest(std::shared_ptr<const GoldenFile> file, InstructionSet set) : file_(std::move(file)), set_(set) {}

  void TestBody() override {
    const Report report = golden::run<T>(*file_, set_);
    summary.add(file_->path().stem().string(), type_name<T>, longview::name_of(set_), report);
    for (const std::string& error : report.errors) ADD_FAILURE() << error;
    if (!report.quirk.empty()) GTEST_SKIP() << report.quirk;
  }

 private:
  std::shared_ptr<const GoldenFile> file_;
  InstructionSet set_;
};

/// A filter takes what follows a `-` as excluded, and would select nothing.
std::string selectable(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

template <typename T>
void register_test(const std::shared_ptr<const GoldenFile>& file, InstructionSet set) {
  const std::string suite = "Golden/" + selectable(file->path().stem().string());
  const std::string name = std::string(type_name<T>) + "." + longview::name_of(set);
  testing::RegisterTest(suite.c_str(), name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                        [=]() -> testing::Test* { return new GoldenTest<T>(file, set); });
}

constexpr std::array all_sets{InstructionSet::portable, InstructionSet::baseline, InstructionSet::avx2,
                              InstructionSet::avx512};

/// False if there is no file.
bool register_files(const std::filesystem::path& directory) {
  const auto paths = golden::files_in(directory);
  for (const auto& path : paths) {
    const auto file = std::make_shared<const GoldenFile>(path);
    for (const InstructionSet set : all_sets) {
      if (!longview::available(set)) continue;
      register_test<double>(file, set);
      register_test<float>(file, set);
    }
  }
  return !paths.empty();
}

// ---- A file that says anything the schema does not must fail.

using Json = nlohmann::json;

/// A copy of a file of this repository with another header, removed at the end. Its data stay.
class Doctored {
 public:
  Doctored(const std::string& stem, const std::function<void(Json& header)>& edit)
      : file_(std::filesystem::temp_directory_path() / (stem + "." + std::to_string(getpid()) + ".safetensors")) {
    std::ifstream stream(std::filesystem::path(LONGVIEW_GOLDEN_DIR) / (stem + ".safetensors"), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    Json header = Json::parse(bytes.substr(sizeof length, length));
    edit(header);
    const std::string text = header.dump(), data = bytes.substr(sizeof length + length);
    length = text.size();
    std::ofstream out(file_.path(), std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length) << text << data;
  }
  ~Doctored() { std::filesystem::remove(file_.path()); }
  Doctored(const Doctored&) = delete;
  Doctored& operator=(const Doctored&) = delete;

  /// All errors in one text.
  template <typename T>
  std::string errors() const {
    std::string text;
    for (const std::string& error : golden::run<T>(file_, longview::instruction_set()).errors) text += error + "\n";
    return text;
  }

 private:
  GoldenFile file_;
};

void set_metadata(Json& header, const std::string& name, const std::string& text) {
  header["__metadata__"][name] = text;
}

void edit_options(Json& header, const std::function<void(Json& options)>& edit) {
  Json options = Json::parse(header["__metadata__"]["options"].get<std::string>());
  edit(options);
  set_metadata(header, "options", options.dump());
}

/// An empty tensor after all others.
void add_tensor(Json& header, const std::string& list, const std::string& name, const std::string& type) {
  std::size_t end = 0;
  for (const auto& [other, entry] : header.items())
    if (other != "__metadata__") end = std::max(end, entry["data_offsets"][1].get<std::size_t>());
  header[name] = {{"dtype", type}, {"shape", {0}}, {"data_offsets", {end, end}}};
  const std::string others = header["__metadata__"][list].get<std::string>();
  set_metadata(header, list, others.empty() ? name : others + "," + name);
}

/// Both types reject the file, for that reason.
void expect_error(const std::string& stem, const std::function<void(Json& header)>& edit, const std::string& reason) {
  const Doctored file(stem, edit);
  for (const std::string& errors : {file.errors<double>(), file.errors<float>()})
    EXPECT_TRUE(errors.find(reason) != std::string::npos) << stem << ": expected " << reason << ", got " << errors;
}

/// One of every operator.
const std::vector<std::string> one_of_each{"full_attention__key-lengths-causal",
                                           "full_attention__sinks-window",
                                           "longformer_attention__padding-left",
                                           "linformer_attention__padding",
                                           "linformer_attention__convolution",
                                           "performer_attention__google-softmax",
                                           "random_features__positive-key",
                                           "relative_attention__memory",
                                           "relative_attention__compressive-positions",
                                           "sinusoidal_positions__width8",
                                           "compression__convolution",
                                           "compressive_memory__positions"};

TEST(GoldenSchema, AsTheyAreTheFilesPass) {
  for (const std::string& stem : one_of_each) {
    const Doctored file(stem, [](Json&) {});
    EXPECT_EQ(file.errors<double>() + file.errors<float>(), "") << stem;
  }
}

TEST(GoldenSchema, UnknownOption) {
  for (const std::string& stem : one_of_each)
    expect_error(
        stem, [](Json& header) { edit_options(header, [](Json& options) { options["colour"] = false; }); },
        "unknown: option colour");
}

TEST(GoldenSchema, UnknownTensor) {
  for (const std::string& stem : one_of_each) {
    expect_error(
        stem, [](Json& header) { add_tensor(header, "inputs", "mystery", "U8"); }, "unknown: mystery");
    expect_error(
        stem, [](Json& header) { add_tensor(header, "outputs", "mystery", "F64"); }, "unknown output mystery");
    expect_error(
        stem, [](Json& header) { add_tensor(header, "outputs", "d_mystery", "F64"); }, "unknown output d_mystery");
  }
}

TEST(GoldenSchema, TensorOfAnotherOperator) {
  expect_error(
      "full_attention__softcap", [](Json& header) { add_tensor(header, "inputs", "padding_mask", "U8"); },
      "unknown: padding_mask");
  expect_error(
      "longformer_attention__causal", [](Json& header) { add_tensor(header, "inputs", "sinks", "F64"); },
      "unknown: sinks");
}

TEST(GoldenSchema, UnknownOperator) {
  for (const char* op : {"bigbird_attention", "lsh_attention", "adaptive_span_attention", "sparse_attention", ""})
    for (const char* note : {"", "QUIRK kept"})
      expect_error(
          "full_attention__cross-d64",
          [&](Json& header) { set_metadata(header, "op", op), set_metadata(header, "note", note); },
          std::string("unknown op ") + op);
}

TEST(GoldenSchema, MissingOption) {
  for (const std::string& stem : one_of_each)
    expect_error(
        stem, [](Json& header) { edit_options(header, [](Json& options) { options.erase(options.begin().key()); }); },
        "no option");
}

void expect_unknown_value(const std::string& stem, const std::string& option, const Json& value) {
  expect_error(
      stem, [&](Json& header) { edit_options(header, [&](Json& options) { options[option] = value; }); }, option);
}

TEST(GoldenSchema, UnknownValueOfAnOption) {
  expect_unknown_value("full_attention__causal-square-d80", "causal", "diagonal");
  expect_unknown_value("linformer_attention__mean-pool", "projection", "median_pool");
  expect_unknown_value("performer_attention__google-softmax", "kernel", "cosine");
  expect_unknown_value("performer_attention__google-softmax", "stabilizer", "none");
  expect_unknown_value("performer_attention__google-softmax", "source_eps_rule", "eps inside the exponent");
  expect_unknown_value("relative_attention__memory", "causal", false);
  expect_unknown_value("compression__mean", "compression", "median");
  expect_unknown_value("compressive_memory__rate1", "remainder", "lucidrains_front_zero_pad");
  expect_unknown_value("compressive_memory__rate1", "update_only_on_full_segment", false);
}

TEST(GoldenSchema, MissingTensor) {
  const auto drop_from_list = [](Json& header) { set_metadata(header, "inputs", "query,key,value"); };
  expect_error("full_attention__sinks-gqa", drop_from_list, "neither input nor output");
}

TEST(GoldenSchema, OtherNumbersDiffer) {
  const auto double_scale = [](Json& header) {
    edit_options(header, [](Json& options) { options["scale"] = 2 * options["scale"].get<double>(); });
  };
  for (const std::string& stem : one_of_each)
    if (stem.find("attention") != std::string::npos && !stem.starts_with("performer"))
      expect_error(stem, double_scale, "elements differ");
}

/// Two gradients of one shape under each other's names.
TEST(GoldenSchema, OtherGradientsDiffer) {
  const std::map<std::string, std::pair<std::string, std::string>> swapped{
      {"full_attention__key-lengths-causal", {"d_key", "d_value"}},
      {"full_attention__window-3-2", {"d_query", "d_key"}},
      {"longformer_attention__padding-left", {"d_key", "d_key_global"}},
      {"linformer_attention__padding", {"d_key_projection", "d_value_projection"}},
      {"linformer_attention__convolution", {"d_key_conv_bias", "d_value_conv_bias"}},
      {"performer_attention__google-softmax", {"d_query", "d_key"}},
      {"relative_attention__memory", {"d_content_bias", "d_position_bias"}},
      {"compressive_memory__positions", {"d_compression_weight_2", "d_compression_weight_3"}}};
  for (const auto& [stem, names] : swapped) {
    const auto& [first, second] = names;
    expect_error(
        stem, [a = first, b = second](Json& header) { std::swap(header.at(a), header.at(b)); }, first + ": ");
  }
}

TEST(GoldenSchema, QuirksAreNamedAndNotRun) {
  const GoldenFile quirk(std::filesystem::path(LONGVIEW_GOLDEN_DIR) /
                         "compressive_memory__quirk-front-zero-padding.safetensors");
  const Report report = golden::run<double>(quirk, longview::instruction_set());
  EXPECT_TRUE(report.quirk.starts_with("QUIRK")) << report.quirk;
  EXPECT_EQ(report.compared, 0);
  EXPECT_TRUE(report.errors.empty());
}

// ---- The comparison

constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();

bool close(double expected, double got, double bound) { return golden::share_of_bound(expected, got, bound) <= 1; }

TEST(GoldenComparison, WithinTheBound) {
  EXPECT_TRUE(close(1, 1.5, 0.5));
  EXPECT_FALSE(close(1, 1.5, 0.25));
  EXPECT_TRUE(close(1, 1, 0));
  EXPECT_FALSE(close(0, 1e-300, 0));
}

TEST(GoldenComparison, InfinityIsExactAndNaNIsNeverRight) {
  EXPECT_TRUE(close(-infinity, -infinity, 1));
  for (const double got : {infinity, -1e308, nan}) EXPECT_FALSE(close(-infinity, got, infinity)) << got;
  for (const double got : {infinity, -infinity, nan}) EXPECT_FALSE(close(1, got, infinity)) << got;
  EXPECT_FALSE(close(nan, nan, 1));
}

TEST(GoldenComparison, RowsWithoutKeysAreZero) {
  golden::Tensor<double> lse({2}, -infinity), out({2, 3});
  Report report;
  golden::check_empty_rows(lse, out, report);
  EXPECT_TRUE(report.errors.empty());
  out(1, 2) = 1e-300;
  golden::check_empty_rows(lse, out, report);
  EXPECT_EQ(report.errors.size(), 1u);
}

TEST(GoldenComparison, LayoutsAreComparedBitByBit) {
  golden::Tensor<float> zero({1}, 0.0F), minus_zero({1}, -0.0F);
  Report report;
  golden::check_layouts<float>({{"out", zero}}, {{"out", zero}}, report);
  EXPECT_TRUE(report.errors.empty());
  golden::check_layouts<float>({{"out", zero}}, {{"out", minus_zero}}, report);
  EXPECT_EQ(report.errors.size(), 1u);
}

TEST(GoldenRunner, StridedTensorsHoldTheSameElementsElsewhere) {
  golden::Tensor<double> tensor({2, 3, 4, 5});
  for (std::size_t at = 0; at < tensor.elements().size(); ++at) tensor.elements()[at] = static_cast<double>(at);
  golden::Inputs<float> inputs(golden::Layout::strided);
  for (const std::size_t backwards : {0u, 1u, 2u}) {
    const auto view = inputs.tensor<4>(tensor);
    EXPECT_EQ(view.stride(3), 2);
    for (const std::size_t axis : {0u, 1u, 2u}) EXPECT_EQ(view.stride(axis) < 0, axis == backwards);
    EXPECT_GT(std::abs(view.stride(2)), 5 * view.stride(3));
    EXPECT_EQ(golden::widened(golden::copy_of(view)).elements(), tensor.elements());
  }
}

TEST(GoldenRunner, TheInstructionSetIsForcedAndRestored) {
  const InstructionSet before = longview::instruction_set();
  {
    const golden::ForcedInstructionSet forced(InstructionSet::portable);
    EXPECT_EQ(longview::instruction_set(), InstructionSet::portable);
  }
  EXPECT_EQ(longview::instruction_set(), before);
}

TEST(GoldenRunner, AFileThatIsNoneIsAnError) {
  const GoldenFile absent("absent.safetensors");
  EXPECT_EQ(golden::run<double>(absent, longview::instruction_set()).errors.size(), 1u);
}

int usage(const std::string& error) {
  std::cerr << "golden_test: " << error << "\nusage: golden_test [--golden DIR] [GoogleTest options]\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  std::filesystem::path directory = LONGVIEW_GOLDEN_DIR;
  for (int at = 1; at < argc; ++at) {
    const std::string option = argv[at];
    if (option.starts_with("--golden="))
      directory = option.substr(std::string("--golden=").size());
    else if (option == "--golden" && at + 1 < argc)
      directory = argv[++at];
    else
      return usage("unknown option " + option);
  }
  if (!std::filesystem::is_directory(directory)) return usage("no directory " + directory.string());
  if (!register_files(directory)) return usage("no *.safetensors file in " + directory.string());
  const int result = RUN_ALL_TESTS();
  if (testing::GTEST_FLAG(list_tests)) return result;
  if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) return usage("the filter selects no test");
  summary.print();
  return result;
}
