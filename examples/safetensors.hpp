// Tensors in safetensors files: 8 bytes with the length of the header, a JSON header, the elements. Reading is strict:
// whatever the format forbids is an error that names the file and the tensor.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace safetensors {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

using Extents = std::vector<std::int64_t>;

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline constexpr std::uint64_t most_header_bytes = 100'000'000;

struct TypeName {
  const char* name;
  std::size_t bytes;
  bool floating;
};
/// In the order of Type.
inline constexpr std::array<TypeName, 7> type_names{{{"F64", 8, true},
                                                     {"F32", 4, true},
                                                     {"F16", 2, true},
                                                     {"BF16", 2, true},
                                                     {"I64", 8, false},
                                                     {"I32", 4, false},
                                                     {"U8", 1, false}}};
enum class Type { f64, f32, f16, bf16, i64, i32, u8 };

inline const TypeName& description_of(Type type) { return type_names[static_cast<std::size_t>(type)]; }

/// [2, 48]
inline std::string text_of(const Extents& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

/// Product of the extents, or nothing where it does not fit.
inline std::optional<std::uint64_t> element_count(const Extents& shape) {
  std::uint64_t count = 1;
  for (const std::int64_t extent : shape) {
    const auto factor = static_cast<std::uint64_t>(extent);
    if (factor != 0 && count > std::numeric_limits<std::uint64_t>::max() / factor) return {};
    count *= factor;
  }
  return count;
}

inline float from_bfloat16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

inline float from_float16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU, fraction = bits & 0x3FFU;
  if (exponent == 0) {  // zero, or a multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  const std::uint32_t wide_exponent = exponent == 0x1FU ? 0xFFU : exponent + 112;
  return std::bit_cast<float>(sign | wide_exponent << 23 | fraction << 13);
}

/// An open file: the header is read and checked, elements are read when asked for.
class File {
 public:
  explicit File(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code problem;
    const std::uint64_t file_bytes = std::filesystem::file_size(path_, problem);
    if (problem) fail("cannot be read: " + problem.message());
    std::ifstream stream = open_at(0);
    std::uint64_t header_bytes = 0;
    if (file_bytes < sizeof header_bytes) fail("too short for a header (" + std::to_string(file_bytes) + " bytes)");
    read_bytes(stream, &header_bytes, sizeof header_bytes, "header");
    if (header_bytes > most_header_bytes)
      fail("header of " + std::to_string(header_bytes) + " bytes, at most 100000000");
    if (header_bytes > file_bytes - sizeof header_bytes)
      fail("header of " + std::to_string(header_bytes) + " bytes goes beyond the end of the file");
    std::string header(header_bytes, '\0');
    read_bytes(stream, header.data(), header.size(), "header");
    data_begin_ = sizeof header_bytes + header_bytes;
    read_header(parse(header));
    check_offsets(file_bytes - data_begin_);
  }

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(const std::string& name) const { return entries_.contains(name); }
  const Extents& shape(const std::string& name) const { return entry(name).shape; }
  Type type(const std::string& name) const { return entry(name).type; }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, found] : entries_) all.push_back(name);
    return all;
  }

  /// All elements, row-major. float and double come from F64, F32, F16 and BF16, std::int64_t from I64, I32 and U8.
  template <typename T>
  requires std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, std::int64_t> std::vector<T> read(
      const std::string& name)
  const {
    const Entry& found = entry(name);
    const TypeName& type = description_of(found.type);
    if (type.floating != std::is_floating_point_v<T>)
      fail(name, std::string("dtype ") + type.name + ", expected " +
                     (type.floating ? "integers (I64, I32 or U8)" : "floating point (F32, F16, BF16 or F64)"));
    switch (found.type) {
      case Type::f64:
        return converted<T, double>(name, found);
      case Type::f32:
        return converted<T, float>(name, found);
      case Type::f16:
        return converted<T, std::uint16_t>(name, found, from_float16);
      case Type::bf16:
        return converted<T, std::uint16_t>(name, found, from_bfloat16);
      case Type::i64:
        return converted<T, std::int64_t>(name, found);
      case Type::i32:
        return converted<T, std::int32_t>(name, found);
      case Type::u8:
        break;
    }
    return converted<T, std::uint8_t>(name, found);
  }

  /// Likewise, if the tensor has this shape.
  template <typename T>
  std::vector<T> read(const std::string& name, const Extents& expected) const {
    if (shape(name) != expected) fail(name, "shape " + text_of(shape(name)) + ", expected " + text_of(expected));
    return read<T>(name);
  }

  [[noreturn]] void fail(const std::string& what) const { throw Error(path_.string() + ": " + what); }
  [[noreturn]] void fail(const std::string& tensor, const std::string& what) const {
    fail("tensor '" + tensor + "': " + what);
  }

 private:
  struct Entry {
    Type type;
    Extents shape;
    std::uint64_t begin, end;
  };

  const Entry& entry(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) fail(name, "missing");
    return found->second;
  }

  std::ifstream open_at(std::uint64_t offset) const {
    std::ifstream stream(path_, std::ios::binary);
    if (!stream || !stream.seekg(static_cast<std::streamoff>(offset))) fail("cannot be read");
    return stream;
  }

  void read_bytes(std::ifstream& stream, void* to, std::uint64_t bytes, const std::string& what) const {
    if (!stream.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes))) fail(what + ": cannot be read");
  }

  /// nlohmann keeps the last of two equal keys without a word; tensors need no more than three levels.
  nlohmann::json parse(const std::string& header) const {
    if (header.empty() || header.front() != '{') fail("header does not begin with {");
    std::vector<std::set<std::string>> keys;
    int depth = 0;
    const auto watch = [&](int, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
      using Event = nlohmann::json::parse_event_t;
      if (event == Event::object_start || event == Event::array_start) {
        if (++depth > 3) fail("header is nested too deeply");
        if (event == Event::object_start) keys.emplace_back();
      } else if (event == Event::object_end || event == Event::array_end) {
        --depth;
        if (event == Event::object_end) keys.pop_back();
      } else if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
        fail("header has '" + parsed.get<std::string>() + "' twice");
      }
      return true;
    };
    try {
      return nlohmann::json::parse(header, watch);
    } catch (const nlohmann::json::exception& error) {
      fail(std::string("header is not JSON: ") + error.what());
    }
  }

  void read_header(const nlohmann::json& header) {
    for (const auto& [name, value] : header.items()) {
      if (name == "__metadata__")
        read_metadata(value);
      else
        entries_.emplace(name, read_entry(name, value));
    }
  }

  void read_metadata(const nlohmann::json& value) {
    if (!value.is_object()) fail("__metadata__ is not an object");
    for (const auto& [name, text] : value.items()) {
      if (!text.is_string()) fail("__metadata__: '" + name + "' is not a string");
      metadata_.emplace(name, text.get<std::string>());
    }
  }

  Entry read_entry(const std::string& name, const nlohmann::json& value) const {
    if (!value.is_object()) fail(name, "its entry is not an object");
    for (const char* field : {"dtype", "shape", "data_offsets"})
      if (!value.contains(field)) fail(name, std::string("no ") + field);
    if (value.size() != 3) fail(name, "fields besides dtype, shape and data_offsets");
    const Type type = read_type(name, value.at("dtype"));
    Extents shape = read_integers(name, "shape", value.at("shape"));
    const Extents offsets = read_integers(name, "data_offsets", value.at("data_offsets"));
    if (offsets.size() != 2 || offsets[0] > offsets[1])
      fail(name, "data_offsets " + text_of(offsets) + " are no range");
    const std::size_t width = description_of(type).bytes;
    const auto count = element_count(shape);
    if (!count || *count > std::numeric_limits<std::uint64_t>::max() / width)
      fail(name, "shape " + text_of(shape) + " is too large");
    const auto bytes = static_cast<std::uint64_t>(offsets[1] - offsets[0]);
    if (bytes != *count * width)
      fail(name, "shape " + text_of(shape) + " of " + description_of(type).name + " takes " +
                     std::to_string(*count * width) + " bytes, data_offsets give " + std::to_string(bytes));
    return {type, std::move(shape), static_cast<std::uint64_t>(offsets[0]), static_cast<std::uint64_t>(offsets[1])};
  }

  Type read_type(const std::string& name, const nlohmann::json& value) const {
    if (!value.is_string()) fail(name, "dtype is not a string");
    const auto text = value.get<std::string>();
    for (std::size_t type = 0; type < type_names.size(); ++type)
      if (text == type_names[type].name) return static_cast<Type>(type);
    fail(name, "unknown dtype '" + text + "'");
  }

  Extents read_integers(const std::string& name, const std::string& field, const nlohmann::json& value) const {
    if (!value.is_array()) fail(name, field + " is not an array");
    Extents integers;
    for (const auto& item : value) {
      constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
      if (!item.is_number_unsigned() || item.get<std::uint64_t>() > most)
        fail(name, field + " has something else than sizes");
      integers.push_back(item.get<std::int64_t>());
    }
    return integers;
  }

  /// Tensors follow one another without gaps and end with the file.
  void check_offsets(std::uint64_t data_bytes) const {
    std::vector<std::pair<std::string, Entry>> in_order(entries_.begin(), entries_.end());
    std::stable_sort(in_order.begin(), in_order.end(), [](const auto& a, const auto& b) {
      return std::pair(a.second.begin, a.second.end) < std::pair(b.second.begin, b.second.end);
    });
    std::uint64_t used = 0;
    for (const auto& [name, found] : in_order) {
      const std::string at = std::to_string(found.begin) + ", the tensor before ends at " + std::to_string(used);
      if (found.begin < used) fail(name, "overlaps: begins at " + at);
      if (found.begin > used) fail(name, "leaves a gap: begins at " + at);
      if (found.end > data_bytes)
        fail(name, "ends at " + std::to_string(found.end) + ", the file at " + std::to_string(data_bytes));
      used = found.end;
    }
    if (used != data_bytes) fail(std::to_string(data_bytes - used) + " bytes after the last tensor");
  }

  template <typename Stored>
  std::vector<Stored> stored(const std::string& name, const Entry& found) const {
    std::ifstream stream = open_at(data_begin_ + found.begin);
    std::vector<Stored> elements(static_cast<std::size_t>((found.end - found.begin) / sizeof(Stored)));
    read_bytes(stream, elements.data(), found.end - found.begin, "tensor '" + name + "'");
    return elements;
  }

  template <typename T, typename Stored, typename Convert = std::identity>
  std::vector<T> converted(const std::string& name, const Entry& found, Convert convert = {}) const {
    std::vector<Stored> elements = stored<Stored>(name, found);
    if constexpr (std::same_as<T, Stored>) {
      return elements;
    } else {
      std::vector<T> result(elements.size());
      std::transform(elements.begin(), elements.end(), result.begin(),
                     [&](Stored element) { return static_cast<T>(convert(element)); });
      return result;
    }
  }

  std::filesystem::path path_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Entry> entries_;
  std::uint64_t data_begin_ = 0;
};

/// A tensor to be written as F32.
struct FloatTensor {
  std::string name;
  Extents shape;
  std::span<const float> elements;
};

/// Writes the tensors in the order given, aligned to their elements.
inline void write(const std::filesystem::path& path, std::span<const FloatTensor> tensors,
                  std::map<std::string, std::string> metadata = {}) {
  const auto fail = [&](const std::string& what) { throw Error(path.string() + ": " + what); };
  metadata.emplace("format", "pt");
  nlohmann::json header{{"__metadata__", metadata}};
  std::uint64_t end = 0;
  for (const FloatTensor& tensor : tensors) {
    if (header.contains(tensor.name)) fail("tensor '" + tensor.name + "': the name is taken");
    if (element_count(tensor.shape) != std::uint64_t{tensor.elements.size()})
      fail("tensor '" + tensor.name + "': shape " + text_of(tensor.shape) + " for " +
           std::to_string(tensor.elements.size()) + " elements");
    const std::uint64_t begin = end;
    end += tensor.elements.size_bytes();
    header[tensor.name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t header_bytes = text.size();
  if (header_bytes > most_header_bytes) fail("header of " + std::to_string(header_bytes) + " bytes, at most 100000000");

  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
  stream.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (const FloatTensor& tensor : tensors)
    stream.write(reinterpret_cast<const char*>(tensor.elements.data()),
                 static_cast<std::streamsize>(tensor.elements.size_bytes()));
  stream.close();
  if (!stream) fail("cannot be written");
}

}  // namespace safetensors
