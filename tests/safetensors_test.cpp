// SPDX-License-Identifier: Apache-2.0
#include "../examples/safetensors.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace {

using safetensors::Extents;
using safetensors::File;

class Safetensors : public ::testing::Test {
 protected:
  Safetensors() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(test->test_suite_name()) + "." + test->name();
    for (char& letter : name)
      if (letter == '/') letter = '.';
    path_ = std::filesystem::path(::testing::TempDir()) / (name + ".safetensors");
  }
  ~Safetensors() override { std::filesystem::remove(path_); }

  void write_bytes(const std::string& bytes) const {
    std::filesystem::remove(path_);  // to truncate a file instead waits for the disk on some file systems
    std::ofstream(path_, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::string read_bytes() const {
    std::ifstream stream(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  /// A header of the length it says, and data.
  void write_file(const std::string& header, const std::string& data) const {
    write_bytes(length_of(header.size()) + header + data);
  }
  static std::string length_of(std::uint64_t length) {
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    return bytes;
  }
  template <typename T>
  static std::string bytes_of(const std::vector<T>& elements) {
    return {reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(T)};
  }
  /// The error of `action`, without the path that it must begin with.
  template <typename Action>
  std::string error_of(const Action& action) const {
    try {
      action();
    } catch (const safetensors::Error& error) {
      const std::string text = error.what(), begin = path_.string() + ": ";
      EXPECT_EQ(text.substr(0, begin.size()), begin);
      return text.size() > begin.size() ? text.substr(begin.size()) : "";
    }
    return "no error";
  }
  std::string error_of_opening() const {
    return error_of([&] { File{path_}; });
  }

  std::filesystem::path path_;
};

TEST_F(Safetensors, ReadsWhatItWrote) {
  const std::vector<float> a{1.5F, -2, std::numeric_limits<float>::infinity(), 0, 5, 6}, b{-0.0F};
  safetensors::write(path_,
                     std::vector<safetensors::FloatTensor>{{"b", {}, b}, {"a", {2, 3}, a}, {"none", {0, 4}, {}}});
  const File file(path_);
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b", "none"}));
  EXPECT_EQ(file.shape("a"), (Extents{2, 3}));
  EXPECT_EQ(file.shape("b"), Extents{});
  EXPECT_EQ(file.read<float>("a"), a);
  EXPECT_TRUE(std::signbit(file.read<float>("b").at(0)));
  EXPECT_TRUE(file.read<float>("none", {0, 4}).empty());
  EXPECT_EQ(file.read<double>("a").at(1), -2.0);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(read_bytes().size() % 4, 0U);
}

TEST_F(Safetensors, WritesMetadata) {
  safetensors::write(path_, {}, {{"config", R"({"width": 3})"}});
  const std::map<std::string, std::string> expected{{"config", R"({"width": 3})"}, {"format", "pt"}};
  EXPECT_EQ(File(path_).metadata(), expected);
}

TEST_F(Safetensors, WritesAlignedHeaders) {
  const std::vector<float> one{1};
  for (std::size_t length = 1; length <= 16; ++length) {
    safetensors::write(path_, std::vector<safetensors::FloatTensor>{{std::string(length, 'x'), {1}, one}});
    EXPECT_EQ(read_bytes().size() % 8, 4U);
    EXPECT_EQ(File(path_).read<float>(std::string(length, 'x')), one);
  }
}

TEST_F(Safetensors, WriterRefusesWhatItCouldNotRead) {
  const std::vector<float> two{1, 2};
  const auto error_of_writing = [&](const std::vector<safetensors::FloatTensor>& tensors) {
    return error_of([&] { safetensors::write(path_, tensors); });
  };
  EXPECT_EQ(error_of_writing({{"a", {2}, two}, {"a", {2}, two}}), "tensor 'a': the name is taken");
  EXPECT_EQ(error_of_writing({{"__metadata__", {2}, two}}), "tensor '__metadata__': the name is taken");
  EXPECT_EQ(error_of_writing({{"a", {3}, two}}), "tensor 'a': shape [3] for 2 elements");
  const std::filesystem::path nowhere = path_ / "none" / "file";
  EXPECT_THROW(safetensors::write(nowhere, std::vector<safetensors::FloatTensor>{{"a", {2}, two}}), safetensors::Error);
}

TEST_F(Safetensors, ConvertsEveryFloat16) {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  write_file(R"({"h":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}})", bytes_of(bits));
  const std::vector<float> values = File(path_).read<float>("h");
  for (unsigned i = 0; i < 65536; ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31), fraction = static_cast<int>(i & 1023);
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    EXPECT_EQ(std::signbit(values[i]), i >= 32768) << i;
    if (exponent < 31)
      EXPECT_EQ(std::fabs(static_cast<double>(values[i])), magnitude) << i;
    else
      EXPECT_TRUE(fraction == 0 ? std::isinf(values[i]) : std::isnan(values[i])) << i;
  }
}

TEST_F(Safetensors, ConvertsBfloat16AndFloat64) {
  const std::vector<std::uint16_t> bits{0x3F80, 0xC049, 0x0001, 0xFF80};
  const std::vector<double> doubles{0.5, 1e-3};
  write_file(R"({"b":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},)"
             R"("d":{"dtype":"F64","shape":[2],"data_offsets":[8,24]}})",
             bytes_of(bits) + bytes_of(doubles));
  const File file(path_);
  EXPECT_EQ(file.read<float>("b"),
            (std::vector<float>{1, -3.140625F, 0x1p-133F, -std::numeric_limits<float>::infinity()}));
  EXPECT_EQ(file.read<double>("d"), doubles);
  EXPECT_EQ(file.read<float>("d"), (std::vector<float>{0.5F, 1e-3F}));
}

TEST_F(Safetensors, ConvertsIntegers) {
  write_file(
      R"({"i":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},"u":{"dtype":"U8","shape":[1,3],"data_offsets":[8,11]},)"
      R"("l":{"dtype":"I64","shape":[1],"data_offsets":[11,19]}}   )",
      bytes_of(std::vector<std::int32_t>{-7, 7}) + bytes_of(std::vector<std::uint8_t>{0, 1, 255}) +
          bytes_of(std::vector<std::int64_t>{-(1LL << 40)}));
  const File file(path_);
  EXPECT_EQ(file.read<std::int64_t>("i"), (std::vector<std::int64_t>{-7, 7}));
  EXPECT_EQ(file.read<std::int64_t>("u", {1, 3}), (std::vector<std::int64_t>{0, 1, 255}));
  EXPECT_EQ(file.read<std::int64_t>("l"), (std::vector<std::int64_t>{-(1LL << 40)}));
}

TEST_F(Safetensors, RequestsAreChecked) {
  write_file(
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"n":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}})",
      std::string(5, '\0'));
  const File file(path_);
  EXPECT_EQ(error_of([&] { file.read<float>("b"); }), "tensor 'b': missing");
  EXPECT_EQ(error_of([&] { file.shape("b"); }), "tensor 'b': missing");
  EXPECT_EQ(error_of([&] { file.read<float>("a", {1, 2}); }), "tensor 'a': shape [1], expected [1, 2]");
  EXPECT_EQ(error_of([&] { file.read<float>("n"); }),
            "tensor 'n': dtype U8, expected floating point (F32, F16, BF16 or F64)");
  EXPECT_EQ(error_of([&] { file.read<std::int64_t>("a"); }),
            "tensor 'a': dtype F32, expected integers (I64, I32 or U8)");
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 5);
  EXPECT_EQ(error_of([&] { file.read<float>("a"); }), "tensor 'a': cannot be read");
}

TEST_F(Safetensors, FileMustHoldItsHeader) {
  EXPECT_EQ(error_of_opening().substr(0, 16), "cannot be read: ");
  write_bytes("");
  EXPECT_EQ(error_of_opening(), "too short for a header (0 bytes)");
  write_bytes("1234567");
  EXPECT_EQ(error_of_opening(), "too short for a header (7 bytes)");
  write_bytes(length_of(100'000'001) + "{}");
  EXPECT_EQ(error_of_opening(), "header of 100000001 bytes, at most 100000000");
  write_bytes(length_of(~std::uint64_t{0}) + "{}");
  EXPECT_EQ(error_of_opening(), "header of 18446744073709551615 bytes, at most 100000000");
  write_bytes(length_of(3) + "{}");
  EXPECT_EQ(error_of_opening(), "header of 3 bytes goes beyond the end of the file");
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  EXPECT_EQ(error_of_opening().substr(0, 14), "cannot be read");
}

struct BadHeader {
  std::string name, header, error;  ///< in a file with 8 bytes of data
  friend void PrintTo(const BadHeader& bad, std::ostream* os) { *os << bad.name; }
};

class SafetensorsHeader : public Safetensors, public ::testing::WithParamInterface<BadHeader> {};

TEST_P(SafetensorsHeader, IsRefused) {
  write_file(GetParam().header, std::string(8, '\0'));
  const std::string error = error_of_opening(), &expected = GetParam().error;
  EXPECT_EQ(error.substr(0, expected.size()), expected);
}

std::string entry(const std::string& fields) { return R"({"t":{)" + fields + "}}"; }
std::string ranged(const std::string& shape, const std::string& offsets) {
  return entry(R"("dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets);
}
std::string pair_of(const std::string& first, const std::string& second) {
  return R"({"s":{"dtype":"U8","shape":)" + first + R"(},"t":{"dtype":"U8","shape":)" + second + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    Bad, SafetensorsHeader,
    ::testing::Values(
        BadHeader{"Empty", "", "header does not begin with {"},
        BadHeader{"Space", " {}", "header does not begin with {"},
        BadHeader{"ByteOrderMark", "\xEF\xBB\xBF{}", "header does not begin with {"},
        BadHeader{"NoJson", "{]", "header is not JSON: "}, BadHeader{"CutOff", R"({"t":)", "header is not JSON: "},
        BadHeader{"Trailing", "{}x", "header is not JSON: "},
        BadHeader{"BadUtf8", "{\"\xFF\":1}", "header is not JSON: "},
        BadHeader{"Deep", "{\"t\":" + std::string(100'000, '['), "header is nested too deeply"},
        BadHeader{"SameTensorTwice", R"({"t":1,"t":1})", "header has 't' twice"},
        BadHeader{"SameFieldTwice", R"({"t":{"dtype":"F32","dtype":"F32"}})", "header has 'dtype' twice"},
        BadHeader{"MetadataNoObject", R"({"__metadata__":1})", "__metadata__ is not an object"},
        BadHeader{"MetadataNoString", R"({"__metadata__":{"a":1}})", "__metadata__: 'a' is not a string"},
        BadHeader{"EntryNoObject", R"({"t":[]})", "tensor 't': its entry is not an object"},
        BadHeader{"NoDtype", entry(R"("shape":[2],"data_offsets":[0,8])"), "tensor 't': no dtype"},
        BadHeader{"NoShape", entry(R"("dtype":"F32","data_offsets":[0,8])"), "tensor 't': no shape"},
        BadHeader{"NoOffsets", entry(R"("dtype":"F32","shape":[2])"), "tensor 't': no data_offsets"},
        BadHeader{"MoreFields", entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":0)"),
                  "tensor 't': fields besides"},
        BadHeader{"DtypeNoString", entry(R"("dtype":4,"shape":[2],"data_offsets":[0,8])"),
                  "tensor 't': dtype is not a string"},
        BadHeader{"UnknownDtype", entry(R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])"),
                  "tensor 't': unknown dtype 'F8_E4M3'"},
        BadHeader{"LowerCaseDtype", entry(R"("dtype":"f32","shape":[2],"data_offsets":[0,8])"),
                  "tensor 't': unknown dtype 'f32'"},
        BadHeader{"ShapeNoArray", ranged("2", "[0,8]"), "tensor 't': shape is not an array"},
        BadHeader{"NegativeExtent", ranged("[-2]", "[0,8]"), "tensor 't': shape has something else than sizes"},
        BadHeader{"FractionalExtent", ranged("[2.0]", "[0,8]"), "tensor 't': shape has something else than sizes"},
        BadHeader{"HugeExtent", ranged("[18446744073709551615]", "[0,8]"),
                  "tensor 't': shape has something else than sizes"},
        BadHeader{"CountOverflows", ranged("[4294967296,4294967296]", "[0,8]"),
                  "tensor 't': shape [4294967296, 4294967296] is too large"},
        BadHeader{"BytesOverflow", ranged("[4611686018427387904]", "[0,8]"),
                  "tensor 't': shape [4611686018427387904] is too large"},
        BadHeader{"OneOffset", ranged("[2]", "[0]"), "tensor 't': data_offsets [0] are no range"},
        BadHeader{"ThreeOffsets", ranged("[2]", "[0,8,8]"), "tensor 't': data_offsets [0, 8, 8] are no range"},
        BadHeader{"Backwards", ranged("[2]", "[8,0]"), "tensor 't': data_offsets [8, 0] are no range"},
        BadHeader{"NegativeOffset", ranged("[2]", "[-8,0]"), "tensor 't': data_offsets has something else than sizes"},
        BadHeader{"TooFewBytes", ranged("[3]", "[0,8]"),
                  "tensor 't': shape [3] of F32 takes 12 bytes, data_offsets give 8"},
        BadHeader{"TooManyBytes", ranged("[1]", "[0,8]"),
                  "tensor 't': shape [1] of F32 takes 4 bytes, data_offsets give 8"},
        BadHeader{"BeyondTheEnd", ranged("[3]", "[0,12]"), "tensor 't': ends at 12, the file at 8"},
        BadHeader{"FarBeyondTheEnd", ranged("[2]", "[9223372036854775799,9223372036854775807]"),
                  "tensor 't': leaves a gap: begins at 9223372036854775799, the tensor before ends at 0"},
        BadHeader{"GapInFront", ranged("[1]", "[4,8]"),
                  "tensor 't': leaves a gap: begins at 4, the tensor before ends at 0"},
        BadHeader{"Overlap", pair_of(R"([8],"data_offsets":[0,8])", R"([4],"data_offsets":[4,8])"),
                  "tensor 't': overlaps: begins at 4, the tensor before ends at 8"},
        BadHeader{"Same", pair_of(R"([8],"data_offsets":[0,8])", R"([8],"data_offsets":[0,8])"),
                  "tensor 't': overlaps: begins at 0, the tensor before ends at 8"},
        BadHeader{"GapBetween", pair_of(R"([3],"data_offsets":[0,3])", R"([4],"data_offsets":[4,8])"),
                  "tensor 't': leaves a gap: begins at 4, the tensor before ends at 3"},
        BadHeader{"BytesLeft", ranged("[1]", "[0,4]"), "4 bytes after the last tensor"},
        BadHeader{"NoTensorForTheData", "{}", "8 bytes after the last tensor"}),
    [](const auto& test) { return test.param.name; });

// Whatever the bytes, the reader accepts the file or refuses it by its own error.
TEST_F(Safetensors, MutatedFilesAreReadOrRefused) {
  const std::vector<float> elements{1, 2, 3, 4, 5, 6};
  safetensors::write(path_, std::vector<safetensors::FloatTensor>{{"first", {2, 1}, std::span(elements).first(2)},
                                                                  {"second", {4}, std::span(elements).last(4)}});
  const std::string original = read_bytes();
  std::mt19937 random(1);
  const auto below = [&](std::size_t count) { return random() % count; };
  const std::string alphabet = "0123456789{}[]\",:-.eF_IUB ";
  int accepted = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = original;
    for (std::size_t change = 1 + below(3); change > 0 && !bytes.empty(); --change) {
      const std::size_t at = below(bytes.size());
      if (const auto kind = below(6); kind == 0)
        bytes[at] = static_cast<char>(below(256));
      else if (kind == 1)
        bytes.erase(at, 1 + below(8));
      else if (kind == 2)
        bytes.insert(at, bytes.substr(below(bytes.size()), below(12)));
      else
        bytes[at] = alphabet[below(alphabet.size())];
    }
    write_bytes(bytes);
    try {
      const File file(path_);
      for (const std::string& name : file.names())
        if (safetensors::description_of(file.type(name)).floating)
          file.read<float>(name);
        else
          file.read<std::int64_t>(name);
      ++accepted;
    } catch (const safetensors::Error& error) {
      ASSERT_EQ(std::string(error.what()).find(path_.string() + ": "), 0U);
    }
  }
  EXPECT_GT(accepted, 0);  // such as changed elements
}

}  // namespace
